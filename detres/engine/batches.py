"""The order of images, and loaders that give it with workers and resumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

Part = TypeVar("Part")


@dataclass(frozen=True)
class Share:
    """Which images of a step a process looks at: of each of `parts` equal parts of the step, one
    after the other, the `rank`-th of `size` equal shares.
    """

    rank: int = 0
    size: int = 1
    parts: int = 1

    def of(self, items: Sequence[Part]) -> list[Sequence[Part]]:
        """Return this process's share of each part, `parts` sequences of the same length; raises
        ValueError for a number of items that cannot be divided so.
        """
        each, rest = divmod(len(items), self.size * self.parts)
        if rest:
            raise ValueError(
                f"{len(items)} images a step cannot be divided among {self.size} processes in "
                f"{self.parts} parts"
            )
        starts = [(part * self.size + self.rank) * each for part in range(self.parts)]
        return [items[start : start + each] for start in starts]


WHOLE = Share()
"""What one process by itself gets."""


class StepSampler:
    """The images of every training step as lists of (index, item seed), a pure function of (seed,
    step).

    aspect_ratios: (N,) width / height. Every epoch has ceil(N / batch_size) steps and shuffles
    anew. Wide (ratio >= 1) and tall images go to batches of their own, which saves padding; what is
    left over of both shares the last one or two of the epoch's batches, and the very last is filled
    up with images of the same epoch drawn again. So every batch is full and every image comes once
    an epoch, up to batch_size - 1 of them twice (oftener only when N < batch_size). Batches come in
    random order. start_step: the first step to give; the order before it is not replayed. steps:
    the first step not to give. share: of a step, what one of several processes gets, in as many
    lists as the step has parts; the steps are the same for all shares.

    Raises ValueError without images, for a batch_size below 1, and where it cannot be shared out.
    """

    def __init__(
        self,
        aspect_ratios: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        steps: int,
        start_step: int = 0,
        group_by_aspect: bool = True,
        share: Share = WHOLE,
    ) -> None:
        if len(aspect_ratios) == 0 or batch_size < 1:
            raise ValueError(
                f"{len(aspect_ratios)} images in batches of {batch_size}: both must be at least 1"
            )
        self.tall = (np.asarray(aspect_ratios) < 1) & group_by_aspect
        self.batch_size, self.seed, self.steps, self.start_step = (
            batch_size,
            seed,
            steps,
            start_step,
        )
        self.steps_per_epoch = -(-len(self.tall) // batch_size)
        self.share = share
        share.of(range(batch_size))

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.share.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.whole_steps():
            yield from self.share.of(step)

    def whole_steps(self) -> Iterator[list[tuple[int, int]]]:
        """Yield every step with the images of all shares."""
        epoch, batches = -1, np.zeros((0, 0))
        for step in range(self.start_step, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                batches = self._epoch_batches(epoch)
            seeds = np.random.SeedSequence((self.seed, 1, step)).generate_state(self.batch_size)
            yield list(
                zip(batches[step % self.steps_per_epoch].tolist(), seeds.tolist(), strict=True)
            )

    def _epoch_batches(self, epoch: int) -> np.ndarray:
        """Indices (steps_per_epoch, batch_size) of one epoch."""
        rng = np.random.default_rng((self.seed, 0, epoch))
        order = rng.permutation(len(self.tall))
        groups = order[~self.tall[order]], order[self.tall[order]]
        whole = [len(group) // self.batch_size * self.batch_size for group in groups]
        full = [group[:num] for group, num in zip(groups, whole, strict=True)]
        left_over = [group[num:] for group, num in zip(groups, whole, strict=True)]
        missing = self.steps_per_epoch * self.batch_size - len(order)
        indices = np.concatenate([*full, *left_over, np.resize(order, missing)])
        return rng.permutation(indices.reshape(self.steps_per_epoch, self.batch_size))


def make_loader(
    dataset: Dataset,
    collate_items: Callable,
    batches: StepSampler | list[list[tuple[int, int]]],
    num_workers: int,
) -> DataLoader:
    """Return a loader over `batches` of (index, item seed), each put together by `collate_items`;
    one thread a worker.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate_items,
        worker_init_fn=_start_worker,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # the default would advance the global one, on which the model's sampling depends
        generator=torch.Generator(),
    )


def once_in_order(
    num_items: int, batch_size: int, share: Share = WHOLE
) -> list[list[tuple[int, int]]]:
    """Return batches of (index, item seed 0) in which every item comes once, in order; the last one
    may be short.

    share: of several processes each gets every size-th of the batches, so there may be none.
    """
    items = [(index, 0) for index in range(num_items)]
    batches = [items[start : start + batch_size] for start in range(0, num_items, batch_size)]
    return batches[share.rank :: share.size]


def targets_to(device: torch.device, targets: object) -> object:
    """Return the targets of a batch, or each of a list of those of its images, on `device`."""
    if isinstance(targets, list):
        return [target.to(device) for target in targets]
    return targets.to(device)


def _start_worker(_worker: int) -> None:
    """One thread a worker: more would only compete with the other workers and the training process.

    And a process group of its own: a terminal sends Ctrl-C, and `timeout` SIGTERM, to the whole
    group of the training process, which stops in good order and needs its workers until then.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

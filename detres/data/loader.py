"""Annotations -> batches: the data set, the order of images, collation and the loaders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detres.image_io import pad_images, read_image
from detres.structures import Annotations, ImageBatch, Target

Transform = Callable[[np.ndarray, Target, int], tuple[np.ndarray, Target]]
Item = tuple[np.ndarray, Target, tuple[int, int]]


class DetectionDataset(Dataset):
    """Images and targets of annotated data, read and transformed one by one; items are asked for
    with a seed.

    Raises ValueError when there are no images.
    """

    def __init__(self, annotations: Annotations, transform: Transform) -> None:
        if len(annotations) == 0:
            raise ValueError(f"{annotations.source} has no images")
        self.annotations, self.transform = annotations, transform

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Return (image (h, w, 3) uint8 RGB, target, (H, W) px of the file as read) for key (index,
        seed).

        Raises ImageReadError or ValueError naming the file when it cannot be read or has another
        size than annotated.
        """
        index, seed = key
        stated = self.annotations.image_sizes[index]
        image = read_image(self.annotations.image_files[index], (int(stated[0]), int(stated[1])))
        original_size = image.shape[:2]
        image, target = self.transform(image, self.annotations.target(index), seed)
        return image, target, original_size

    def aspect_ratios(self) -> np.ndarray:
        """Return width / height (N,) float64 as annotated; 1 where the annotation does not state
        the size.
        """
        height, width = self.annotations.image_sizes.astype(np.float64).T
        known = (height > 0) & (width > 0)
        return np.divide(width, height, out=np.ones_like(height), where=known)


class StepSampler:
    """The images of every training step as lists of (index, item seed), a pure function of (seed,
    step).

    aspect_ratios: (N,) width / height. Every epoch has ceil(N / batch_size) steps and shuffles
    anew. Wide (ratio >= 1) and tall images go to batches of their own, which saves padding; what is
    left over of both shares the last one or two of the epoch's batches, and the very last is filled
    up with images of the same epoch drawn again. So every batch is full and every image comes once
    an epoch, up to batch_size - 1 of them twice (oftener only when N < batch_size). Batches come in
    random order. start_step: the first step to give; the order before it is not replayed. steps:
    the first step not to give.

    Raises ValueError without images or for a batch_size below 1.
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

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
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


def collate(items: Sequence[Item]) -> tuple[ImageBatch, list[Target]]:
    """Return one padded batch and the targets; raises ValueError for no items."""
    targets = [target for _, target, _ in items]
    images = pad_images(
        [image for image, _, _ in items],
        original_sizes=[size for _, _, size in items],
        ids=[target.image_id for target in targets],
    )
    return images, targets


def train_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Return a loader of (ImageBatch, list[Target]) for the steps start_step..steps - 1, in
    StepSampler's order.

    The batches depend on neither num_workers nor start_step, so a resumed run sees what a straight
    one would.
    """
    sampler = StepSampler(
        dataset.aspect_ratios(),
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        start_step=start_step,
    )
    return make_loader(dataset, collate, sampler, num_workers)


def eval_loader(dataset: DetectionDataset, *, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Return a loader of (ImageBatch, list[Target]) over all images once, in their order; the last
    batch may be short.
    """
    items = [(index, 0) for index in range(len(dataset))]
    return make_loader(
        dataset,
        collate,
        [items[i : i + batch_size] for i in range(0, len(items), batch_size)],
        num_workers,
    )


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


def _start_worker(_worker: int) -> None:
    """One thread a worker: more would only compete with the other workers and the training process.

    And a process group of its own: a terminal sends Ctrl-C, and `timeout` SIGTERM, to the whole
    group of the training process, which stops in good order and needs its workers until then.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

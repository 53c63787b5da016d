"""What a detector is judged by while it learns: the same few held-out images on the way, all of
them at the end, and its losses on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detres.detection.annotations import Annotations
from detres.detection.build import build_val_set, eval_loader
from detres.detection.config import DetectionConfig
from detres.detection.structures import ImageBatch, Predictions, Proposals, Scale, Target
from detres.engine.batches import WHOLE, Share
from detres.engine.distributed import Group
from detres.eval_mode import evaluating

_CHOICE = 2
"""Of the streams of random numbers that come of a run's seed: see engine.batches.StepSampler."""


class HeldOut:
    """The held-out images of a run, of which every evaluation looks at the same `number`, and the
    one at the end at all.

    val: all of them; part: those, (number,) in the order of `val`, drawn by the seed of `config`;
    of two numbers the larger has the images of the smaller and more. proposals: of the images of
    `val`, None without. other_scales: further ones at which the detector wants to see them.
    share: of the batches, what one of several processes looks at.
    """

    def __init__(
        self,
        config: DetectionConfig,
        val: Annotations,
        number: int,
        *,
        proposals: Proposals | None = None,
        other_scales: tuple[Scale, ...] = (),
        share: Share = WHOLE,
    ) -> None:
        self.val, self.config, self.other_scales, self.share = val, config, other_scales, share
        self.all_batches = self._batches(val, proposals)
        self.part, self.part_batches, self.rows = val, self.all_batches, np.arange(len(val))
        if number < len(val):
            order = np.random.default_rng((config.seed, _CHOICE)).permutation(len(val))
            self.rows = np.sort(order[:number])
            self.part = val.subset(self.rows, f"{number} of {len(val)} images of {val.source}")
            of_part = None if proposals is None else proposals.of_images(self.rows)
            self.part_batches = self._batches(self.part, of_part)

    @property
    def is_divided(self) -> bool:
        """Whether evaluations on the way look at fewer images than there are."""
        return len(self.part) < len(self.val)

    def predictions_of_part(self, found: Predictions) -> Predictions:
        """Return of what was found in all images what was found in those of the part."""
        rows = np.isin(found.image_ids, self.part.image_ids)
        return replace(
            found,
            image_ids=found.image_ids[rows],
            boxes=found.boxes[rows],
            scores=found.scores[rows],
            labels=found.labels[rows],
            sides=None if found.sides is None else found.sides[rows],
            seen=self.part.image_ids,
        )

    def _batches(self, images: Annotations, proposals: Proposals | None) -> DataLoader:
        return eval_loader(
            build_val_set(self.config.model, images, self.other_scales, proposals),
            batch_size=self.config.eval.batch_size,
            num_workers=self.config.data.workers,
            share=self.share,
        )


class Batches(Sized, Iterable[tuple[ImageBatch, list[Target]]], Protocol):
    """Batches of images with their objects, of which it is known how many there are."""


class WithLosses:
    """Passes on batches of held-out images, and takes the losses of `model` on them as they pass.

    ids: (N,) of the images whose losses are taken; those of others are not. An image is taken
    alone, in eval mode, and what is sampled for it depends on `seed` and its place in `ids` only:
    equal weights have equal losses, whatever the batches, and no random number of the training is
    used up.
    """

    def __init__(
        self,
        batches: Batches,
        model: nn.Module,
        ids: np.ndarray,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.batches, self.model, self.seed, self.device = batches, model, seed, device
        self.place = {image_id: place for place, image_id in enumerate(ids.tolist())}
        self.sums: dict[str, Tensor] = {}
        self.number = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[ImageBatch, list[Target]]]:
        for images, targets in self.batches:
            self._take(images, targets)
            yield images, targets

    def means(self, group: Group) -> tuple[dict[str, float], int]:
        """Return "val_loss", the total, and "val_" and the name of every term: means over the
        images that have passed in all processes of `group`, empty without any; and their number.
        """
        own = {name: value.item() for name, value in self.sums.items()}
        found = group.gather((own, self.number))
        number = sum(each for _, each in found)
        names = dict.fromkeys(name for sums, _ in found for name in sums)
        means = {
            f"val_{name}": sum(sums.get(name, 0.0) for sums, _ in found) / number for name in names
        }
        return means, number

    def _take(self, images: ImageBatch, targets: list[Target]) -> None:
        with evaluating(self.model):
            for row, image_id in enumerate(images.ids):
                if image_id not in self.place:
                    continue
                seed = self.seed * 1_000_003 + self.place[image_id]
                one = replace(images.select([row]).to(self.device), seeds=(seed,))
                losses = self.model(one, [targets[row].to(self.device)])
                for name, value in {"loss": losses.total(), **losses.terms()}.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                self.number += 1

"""Annotations + transform -> batches: the data set, the order of the images, the loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detres.image_io import pad_images, read_image
from detres.structures import Annotations, ImageBatch, ImageId, Target

Transform = Callable[[np.ndarray, Target, int], tuple[np.ndarray, Target]]
Sample = tuple[np.ndarray, Target, tuple[int, int], ImageId]


class DetectionDataset(Dataset):
    """Reads image `index`, transforms it with `seed`, and returns (image, target, (h, w) of the file as read, image id)."""

    def __init__(self, annotations: Annotations, transform: Transform) -> None:
        self.annotations = annotations
        self.transform = transform

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Raises ImageReadError or ValueError naming the file when the image cannot be used."""
        index, seed = key
        target = self.annotations.target(index)
        height, width = self.annotations.image_sizes[index].tolist()
        image = read_image(str(self.annotations.image_files[index]), stated_size=(height, width))
        original_size = image.shape[:2]
        image, target = self.transform(image, target, seed)
        return image, target, original_size, target.image_id


class TrainOrder(Sampler):
    """Which images form the batch of each step: a pure function of (seed, step), so training resumes anywhere exactly.

    Each epoch is a fresh permutation. Landscape and portrait images are kept apart, so that little is padded, and every
    batch is full: within an epoch each kind fills its batches in permuted order, the leftovers of both kinds share the
    last ones, and what then remains (fewer than batch_size images) waits for another epoch's shuffle. With fewer images
    than batch_size, images repeat within the batch.
    """

    def __init__(self, aspect_ratios: np.ndarray, *, batch_size: int, seed: int, start_step: int, steps: int) -> None:
        """aspect_ratios: (N,) height / width."""
        self.landscape = aspect_ratios <= 1
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.steps = steps

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield for each step the (image index, augmentation seed) pairs of its batch."""
        epoch, batches = -1, np.zeros((0, self.batch_size), np.int64)
        per_epoch = max(1, len(self.landscape) // self.batch_size)
        for step in range(self.start_step, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                batches = self.epoch_batches(epoch)
            rng = np.random.default_rng((self.seed, 1, step))
            seeds = rng.integers(0, 2**31, self.batch_size)
            yield list(zip(batches[step % per_epoch].tolist(), seeds.tolist(), strict=True))

    def epoch_batches(self, epoch: int) -> np.ndarray:
        """Return the batches (B, batch_size) of image indices of one epoch."""
        rng = np.random.default_rng((self.seed, 0, epoch))
        order = rng.permutation(len(self.landscape))
        if len(order) < self.batch_size:
            return np.resize(order, (1, self.batch_size))
        full, leftovers = [], []
        for kind in (order[self.landscape[order]], order[~self.landscape[order]]):
            whole = len(kind) // self.batch_size * self.batch_size
            full.append(kind[:whole].reshape(-1, self.batch_size))
            leftovers.append(kind[whole:])
        rest = np.concatenate(leftovers)
        whole = len(rest) // self.batch_size * self.batch_size
        batches = np.concatenate([*full, rest[:whole].reshape(-1, self.batch_size)])
        return batches[rng.permutation(len(batches))]


def collate(samples: list[Sample]) -> tuple[ImageBatch, list[Target]]:
    """Pad the images of N samples into one batch; targets stay a list."""
    images, targets, original_sizes, ids = zip(*samples, strict=True)
    return pad_images(images, original_sizes=original_sizes, ids=ids), list(targets)


def train_loader(dataset: DetectionDataset, *, batch_size: int, steps: int, seed: int, start_step: int, num_workers: int) -> DataLoader:
    """Return a loader of the batches of steps start_step..steps - 1, the same whatever the number of workers."""
    sizes = dataset.annotations.image_sizes
    aspect_ratios = sizes[:, 0] / np.maximum(sizes[:, 1], 1)
    order = TrainOrder(aspect_ratios, batch_size=batch_size, seed=seed, start_step=start_step, steps=steps)
    return _loader(dataset, order, num_workers)


def eval_loader(dataset: DetectionDataset, *, batch_size: int, num_workers: int) -> DataLoader:
    """Return a loader of every image once, in order; the last batch may be short."""
    keys = [(index, 0) for index in range(len(dataset))]
    return _loader(dataset, [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)], num_workers)


def _loader(dataset: DetectionDataset, batches: Sampler | list, num_workers: int) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=_one_thread,
        pin_memory=torch.cuda.is_available(),
    )


def _one_thread(_: int) -> None:
    """Keep a worker to one thread: several workers each with a thread a core only get in each other's way."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

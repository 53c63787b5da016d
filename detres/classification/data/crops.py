"""Crops for classification: AlexNet's scale and crop augmentation of image files (paper, section
3.4), and the loaders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import RandAugment

from detres.classification.structures import ClassTargets, CropBatch
from detres.engine.batches import WHOLE, Share, StepSampler, make_loader, once_in_order
from detres.images.decode import ImageReadError, decode_image
from detres.images.resize import resize_image, resized_window, scaled_size
from detres.images.source import EncodedImages

CropTransform = Callable[[np.ndarray, int], np.ndarray]
Item = tuple[np.ndarray | None, int, str]

PCA_VALUES = np.array([0.2175, 0.0188, 0.0045]) * 255
PCA_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
"""Of ImageNet's RGB pixels: eigenvalues on the 0..255 scale and eigenvectors in columns
(fb.resnet.torch; the paper's own were never published).
"""


class TrainCrop:
    """A square crop of a randomly scaled image or its mirror, its colours shifted.

    short_sides: (low, high) px, both included, between which the short side is drawn. crop_side:
    px. flip: probability. pca: standard deviation of the shift along each principal component of
    colour, 0.1 in AlexNet; the shifted values are rounded and clipped to 0..255. randaugment:
    magnitude, 1..30, of two random operations before that (Cubuk et al. 2020, by torchvision; not
    in the paper); 0 is none. Raises ValueError when a scaled image could be smaller than the crop.
    """

    def __init__(
        self,
        *,
        short_sides: tuple[int, int],
        crop_side: int,
        flip: float,
        pca: float,
        randaugment: int = 0,
    ) -> None:
        if not crop_side <= short_sides[0] <= short_sides[1]:
            raise ValueError(
                f"short sides {short_sides[0]}..{short_sides[1]} px do not hold a crop of "
                f"{crop_side} px"
            )
        self.short_sides, self.crop_side, self.flip, self.pca = short_sides, crop_side, flip, pca
        self.randaugment = RandAugment(magnitude=randaugment) if randaugment else None

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return (crop_side, crop_side, 3) uint8, a pure function of the image (H, W, 3) uint8 and
        the seed.
        """
        rng = np.random.default_rng(seed)
        short_side = int(rng.integers(self.short_sides[0], self.short_sides[1] + 1))
        height, width = scaled_size(*image.shape[:2], short_side)
        top = int(rng.integers(0, height - self.crop_side + 1))
        left = int(rng.integers(0, width - self.crop_side + 1))
        crop = resized_window(image, (height, width), (top, left), self.crop_side)
        if rng.random() < self.flip:
            crop = crop[:, ::-1]
        if self.randaugment is not None:
            crop = self._augmented(crop, int(rng.integers(2**63 - 1)))
        if self.pca:
            shift = PCA_VECTORS @ (rng.normal(0, self.pca, 3) * PCA_VALUES)
            crop = np.clip(np.rint(crop + shift.astype(np.float32)), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(crop)

    def _augmented(self, crop: np.ndarray, seed: int) -> np.ndarray:
        """The crop (S, S, 3) after torchvision's operations, which draw from the CPU's global
        generator.
        """
        planes = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds the GPU's
            return self.randaugment(planes).permute(1, 2, 0).numpy()


class CenterCrop:
    """The centre square of an image whose short side is scaled to `short_side` px.

    Raises ValueError when that does not hold a crop of `crop_side` px.
    """

    def __init__(self, *, short_side: int, crop_side: int) -> None:
        if short_side < crop_side:
            raise ValueError(
                f"a short side of {short_side} px does not hold a crop of {crop_side} px"
            )
        self.short_side, self.crop_side = short_side, crop_side

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:  # noqa: ARG002
        """Return (crop_side, crop_side, 3) uint8 of `image` (H, W, 3) uint8; nothing is random."""
        size = scaled_size(*image.shape[:2], self.short_side)
        top, left = (round((side - self.crop_side) / 2) for side in size)
        return resized_window(image, size, (top, left), self.crop_side)


class WholeImage:
    """The whole image, its short side scaled to `short_side` px; None: as it is. For views that are
    cut out later.
    """

    def __init__(self, *, short_side: int | None) -> None:
        self.short_side = short_side

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:  # noqa: ARG002
        """Return (h, w, 3) uint8 of `image` (H, W, 3) uint8; nothing is random."""
        if self.short_side is None:
            return image
        return resize_image(image, scaled_size(*image.shape[:2], self.short_side))


class CropDataset(Dataset):
    """Encoded images and labels, read and cropped one by one; items are asked for with a seed.

    damaged: whether an image that cannot be decoded is an error, or its place is taken by another
    of its batch and its name given there. A file that is gone, or a server that does not answer, is
    always an error.
    """

    def __init__(
        self,
        images: EncodedImages,
        transform: CropTransform,
        *,
        damaged: Literal["error", "skip"] = "error",
    ) -> None:
        self.images, self.transform, self.damaged = images, transform, damaged

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Return (crop (S, S, 3) uint8 RGB, label, name) for key (index, seed); the crop is None
        for a damaged image to be skipped.

        Raises ImageReadError naming one that is not.
        """
        index, seed = key
        name = self.images.name(index)
        data = self.images.read_bytes(index)
        try:
            crop = self.transform(decode_image(data, name), seed)
        except ImageReadError:
            if self.damaged == "error":
                raise
            crop = None
        return crop, int(self.images.labels[index]), name


def mean_of_crops(crops: CropDataset, number: int) -> Tensor:
    """Return the mean (3, S, S) float32 of `number` crops of S px at even distances, or of all;
    damaged ones that are skipped do not count.

    Raises ImageReadError when none can be read, or there is none.
    """
    total, count = 0.0, 0
    rows = np.linspace(0, len(crops) - 1, number if len(crops) else 0).round().astype(int)
    for index in np.unique(rows).tolist():
        crop, _, _ = crops[index, 0]
        if crop is not None:
            total, count = total + crop.astype(np.float64), count + 1
    if count == 0:
        raise ImageReadError(f"{crops.images.source}: no image for the mean can be read")
    return torch.from_numpy(total / count).float().permute(2, 0, 1).contiguous()


def collate_crops(items: Sequence[Item]) -> tuple[CropBatch, ClassTargets]:
    """Return one batch of crops of one size, and its labels; good images take the places of damaged
    ones in turn.

    Raises ImageReadError when all are damaged.
    """
    good = [item for item in items if item[0] is not None]
    damaged = tuple(name for crop, _, name in items if crop is None)
    if not good:
        raise ImageReadError(
            f"none of the {len(items)} images of a batch can be read, the first is {damaged[0]}"
        )
    crops, labels, names = zip(*(good * len(items))[: len(items)], strict=True)
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)  # channels last in memory
    return CropBatch(pixels, names, damaged), ClassTargets(torch.tensor(labels))


def crop_train_loader(
    dataset: CropDataset,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    share: Share = WHOLE,
) -> DataLoader:
    """Return a loader of (CropBatch, ClassTargets) for the steps start_step..steps - 1, in
    StepSampler's order, of `batch_size` images each, or the `share` of them in its parts.
    """
    sampler = StepSampler(
        np.ones(len(dataset)),
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        start_step=start_step,
        group_by_aspect=False,
        share=share,
    )
    return make_loader(dataset, collate_crops, sampler, num_workers)


def crop_eval_loader(
    dataset: CropDataset, *, batch_size: int, num_workers: int = 0, share: Share = WHOLE
) -> DataLoader:
    """Return a loader over all images once, in their order, or the `share` of their batches; the
    last batch may be short.
    """
    batches = once_in_order(len(dataset), batch_size, share)
    return make_loader(dataset, collate_crops, batches, num_workers)

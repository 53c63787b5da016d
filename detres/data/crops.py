"""Crops for classification: AlexNet's scale and crop augmentation of image files (paper, section
3.4), and the loaders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import RandAugment

from detres.data.encoded import ImageFiles, ImageShards
from detres.data.loader import StepSampler, make_loader
from detres.image_io import ImageReadError, decode_image, resize_image
from detres.structures import ClassTargets, CropBatch

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

    shorter: (low, high) px, both included, between which the shorter side is drawn. crop: px. flip:
    probability. pca: standard deviation of the shift along each principal component of colour, 0.1
    in AlexNet; the shifted values are rounded and clipped to 0..255. randaugment: magnitude, 1..30,
    of two random operations before that (Cubuk et al. 2020, by torchvision; not in the paper); 0 is
    none. Raises ValueError when a scaled image could be smaller than the crop.
    """

    def __init__(
        self, *, shorter: tuple[int, int], crop: int, flip: float, pca: float, randaugment: int = 0
    ) -> None:
        if not crop <= shorter[0] <= shorter[1]:
            raise ValueError(
                f"shorter sides {shorter[0]}..{shorter[1]} px do not hold a crop of {crop} px"
            )
        self.shorter, self.crop, self.flip, self.pca = shorter, crop, flip, pca
        self.randaugment = RandAugment(magnitude=randaugment) if randaugment else None

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return (crop, crop, 3) uint8, a pure function of the image (H, W, 3) uint8 and the
        seed.
        """
        rng = np.random.default_rng(seed)
        height, width = scaled_size(
            *image.shape[:2], int(rng.integers(self.shorter[0], self.shorter[1] + 1))
        )
        top, left = (
            int(rng.integers(0, height - self.crop + 1)),
            int(rng.integers(0, width - self.crop + 1)),
        )
        crop = resized_window(image, (height, width), (top, left), self.crop)
        if rng.random() < self.flip:
            crop = crop[:, ::-1]
        if self.randaugment is not None:
            with torch.random.fork_rng(
                devices=[]
            ):  # torchvision draws from the CPU's global generator
                torch.default_generator.manual_seed(
                    int(rng.integers(2**63 - 1))
                )  # torch.manual_seed would also seed the GPU's
                crop = (
                    self.randaugment(torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1))
                    .permute(1, 2, 0)
                    .numpy()
                )
        if self.pca:
            shift = PCA_VECTORS @ (rng.normal(0, self.pca, 3) * PCA_VALUES)
            crop = np.clip(np.rint(crop + shift.astype(np.float32)), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(crop)


class CenterCrop:
    """The centre square of an image whose shorter side is scaled to `shorter` px; `shorter` is at
    least `crop`.
    """

    def __init__(self, *, shorter: int, crop: int) -> None:
        if shorter < crop:
            raise ValueError(f"a shorter side of {shorter} px does not hold a crop of {crop} px")
        self.shorter, self.crop = shorter, crop

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:  # noqa: ARG002
        """Return (crop, crop, 3) uint8; nothing is random."""
        height, width = scaled_size(*image.shape[:2], self.shorter)
        return resized_window(
            image,
            (height, width),
            (round((height - self.crop) / 2), round((width - self.crop) / 2)),
            self.crop,
        )


class WholeImage:
    """The whole image, its shorter side scaled to `shorter` px; None: as it is. For views that are
    cut out later.
    """

    def __init__(self, *, shorter: int | None) -> None:
        self.shorter = shorter

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:  # noqa: ARG002
        """Return (h, w, 3) uint8; nothing is random."""
        return (
            image
            if self.shorter is None
            else resize_image(image, scaled_size(*image.shape[:2], self.shorter))
        )


def scaled_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Return (h, w) px with the shorter side at `shorter` and the longer one rounded down, as
    torchvision does.
    """
    return (
        (shorter, shorter * width // height)
        if height <= width
        else (shorter * height // width, shorter)
    )


def resized_window(
    image: np.ndarray, size: tuple[int, int], corner: tuple[int, int], side: int
) -> np.ndarray:
    """Return the (side, side, 3) window at `corner` (top, left) of `image` resized to `size` (h,
    w), bilinear as Caffe resized.

    Only the window's own pixels are computed, to a 32nd of a pixel.
    """
    scale_y, scale_x = image.shape[0] / size[0], image.shape[1] / size[1]
    # pixel centres sit at +0.5: source = (target + corner + 0.5) * scale - 0.5
    to_source = np.array(
        [
            (scale_x, 0, (corner[1] + 0.5) * scale_x - 0.5),
            (0, scale_y, (corner[0] + 0.5) * scale_y - 0.5),
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        image, to_source, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


class CropDataset(Dataset):
    """Encoded images and labels, read and cropped one by one; items are asked for with a seed.

    damaged: whether an image that cannot be decoded is an error, or its place is taken by another
    of its batch and its name given there. A file that is gone, or a server that does not answer, is
    always an error.
    """

    def __init__(
        self,
        images: ImageFiles | ImageShards,
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
) -> DataLoader:
    """Return a loader of (CropBatch, ClassTargets) for the steps start_step..steps - 1, in
    StepSampler's order.
    """
    sampler = StepSampler(
        np.ones(len(dataset)),
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        start_step=start_step,
        group_by_aspect=False,
    )
    return make_loader(dataset, collate_crops, sampler, num_workers)


def crop_eval_loader(dataset: CropDataset, *, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Return a loader over all images once, in their order; the last batch may be short."""
    items = [(index, 0) for index in range(len(dataset))]
    return make_loader(
        dataset,
        collate_crops,
        [items[start : start + batch_size] for start in range(0, len(items), batch_size)],
        num_workers,
    )

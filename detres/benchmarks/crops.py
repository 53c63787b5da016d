"""JPEG files to random crops on one core, against Pillow and torchvision's transforms."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from detres.benchmarks.timing import Timing
from detres.classification.data.crops import CropDataset, TrainCrop
from detres.classification.data.image_folder import read_image_folder
from detres.detection.data.shapes import draw_shapes_image
from detres.images.resize import resize_image

SHORT_SIDES, CROP_SIDE = (256, 480), 224
"""Px, as on ImageNet (paper, section 3.4)."""


def benchmark_crops(timing: Timing, folder: Path | None) -> None:
    """Time decoding, scaling, cropping and mirroring of the images in `folder`, a folder a class
    (None: drawn ones of 500x375 px); ours shifts colours too.
    """
    with tempfile.TemporaryDirectory() as temporary:
        files = read_image_folder(folder or drawn_photographs(Path(temporary)))
        crop = TrainCrop(short_sides=SHORT_SIDES, crop_side=CROP_SIDE, flip=0.5, pca=0.1)
        dataset = CropDataset(files, crop)
        chosen = np.random.default_rng(0).permutation(len(files))[:200].tolist()
        then = transforms.Compose(
            [
                transforms.RandomCrop(CROP_SIDE),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

        def ours() -> None:
            for index in chosen:
                dataset[index, index]

        def theirs() -> None:
            low, high = SHORT_SIDES
            for index in chosen:
                image = Image.open(files.name(index)).convert("RGB")
                short_side = int(torch.randint(low, high + 1, ()))
                then(transforms.functional.resize(image, short_side))

        threads = torch.get_num_threads()
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        on_cpu = replace(timing, device=torch.device("cpu"))
        on_cpu.row(f"{len(chosen)} JPEG files to {CROP_SIDE} px crops, one core", ours, theirs)
        torch.set_num_threads(threads)


def drawn_photographs(folder: Path, size: tuple[int, int] = (375, 500), number: int = 200) -> Path:
    """Write drawn images of `size` (h, w) px as JPEG files of one class, and return the folder."""
    (folder / "drawn").mkdir()
    for row in range(number):
        pixels = resize_image(draw_shapes_image(0, "val", row)[0], size)
        Image.fromarray(pixels).save(folder / "drawn" / f"{row:03d}.jpg", quality=90)
    return folder

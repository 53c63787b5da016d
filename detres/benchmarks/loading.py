"""JPEG files to the tensors that a detector is fed with, on one core, against Pillow and
torchvision's transforms.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from detres.benchmarks.crops import drawn_photographs
from detres.benchmarks.timing import Timing
from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.data.loader import DetectionDataset, collate
from detres.detection.data.transforms import EvalTransform, TrainTransform
from detres.images.cache import ImageCache

SIZES = {(375, 500): 100, (1200, 1600): 20}
"""(h, w) px of files, and how many: VOC's, and a camera's."""

_CACHE = 1 << 30


def benchmark_loading(timing: Timing, short_side: int) -> None:
    """Time decoding and resizing to `short_side` px, into a batch of one: ours at full size, where
    it helps at a reduced scale, and from the cache.
    """
    max_side = short_side * 5 // 3
    resize = EvalTransform(short_side=short_side, max_side=max_side)
    needed = TrainTransform(short_sides=(short_side,), max_side=max_side).largest
    pillow = transforms.Compose([transforms.Resize(short_side), transforms.PILToTensor()])
    on_cpu = replace(timing, device=torch.device("cpu"))
    threads = torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for (height, width), number in SIZES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = drawn_photographs(Path(temporary), (height, width), number)
            images = _without_objects(sorted(folder.rglob("*.jpg")), (height, width))
            jobs = {"": DetectionDataset(images, resize)}
            if min(height, width) >= 2 * short_side:
                jobs[", reduced decoding"] = DetectionDataset(images, resize, needed=needed)
            cache = ImageCache(number, _CACHE)
            jobs[", cached"] = DetectionDataset(images, resize, cache=cache)

            def theirs(files: tuple[str, ...] = tuple(images.image_files.tolist())) -> None:
                for file in files:
                    pillow(Image.open(file).convert("RGB"))

            for how, dataset in jobs.items():

                def ours(dataset: DetectionDataset = dataset) -> None:
                    for index in range(len(dataset)):
                        collate([dataset[index, 0]])

                job = f"{number} JPEG of {width}x{height} px to {short_side}{how}"
                on_cpu.row(job, ours, theirs, names=("ours", "Pillow, torchvision"))
    torch.set_num_threads(threads)


def _without_objects(files: list[Path], size: tuple[int, int]) -> Annotations:
    number = len(files)
    return Annotations(
        source="drawn photographs",
        class_map=ClassMap(("drawn",), (1,)),
        image_ids=np.arange(number),
        image_files=np.array([str(file) for file in files]),
        image_sizes=np.tile(np.array(size, np.int32), (number, 1)),
        offsets=np.zeros(number + 1, np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        areas=np.zeros(0),
        crowd=np.zeros(0, bool),
        difficult=np.zeros(0, bool),
        ids=np.zeros(0, np.int64),
        dropped={},
    )

"""Batches of images of any sizes, and what a model finds in them."""

from __future__ import annotations

import numpy as np
import torch

from detres.detection.inference.detect import batch_of, detect_batch
from detres.detection.structures import ImageBatch
from tests.detection.test_detector import FindsWholeImages


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_batch_has_its_images_at_the_scale_asked_for_and_at_others():
    images = [noise(90, 150), noise(40, 40)]
    batch = batch_of(images, (7, "b"), (64, 128), [(32, 64), (80, 80)])
    assert batch.ids == (7, "b")
    assert batch.sizes == ((64, 107), (64, 64))
    assert batch.original_sizes == ((90, 150), (40, 40))
    assert {scale: each.sizes for scale, each in batch.others.items()} == {
        (32, 64): ((32, 53), (32, 32)),
        (80, 80): ((48, 80), (80, 80)),
    }
    assert all(each.original_sizes == batch.original_sizes for each in batch.others.values())


def test_without_a_scale_images_keep_their_pixels():
    images = [noise(90, 150), noise(40, 40)]
    batch = batch_of(images, (0, 1), None)
    assert batch.sizes == batch.original_sizes == ((90, 150), (40, 40))
    for image, pixels, (height, width) in zip(images, batch.pixels, batch.sizes, strict=True):
        inside = pixels[:, :height, :width].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(inside, image)
    assert batch.others == {}


def test_a_batch_is_detected_in_the_pixels_of_the_files():
    model = FindsWholeImages()
    images = ImageBatch(
        torch.zeros((2, 3, 32, 64), dtype=torch.uint8), ((32, 64), (20, 10)), ((64, 256), (5, 5)),
        (0, 1),
    )  # fmt: skip
    first, second = detect_batch(model, images, torch.device("cpu"))
    assert first.boxes.tolist() == [[0, 0, 256, 64]]
    assert second.boxes.tolist() == [[0, 0, 5, 5]]
    assert (first.labels.tolist(), second.labels.tolist()) == ([1], [2])
    assert model.training

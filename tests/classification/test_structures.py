from __future__ import annotations

import torch

from detres.classification.structures import ClassTargets, CropBatch


def test_batches_move_between_devices() -> None:
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    images, targets = CropBatch(pixels, (0, 1, 2)), ClassTargets(torch.tensor([0, 1, 2]))
    assert len(images) == 3
    moved, labels = images.to("meta"), targets.to("meta")
    assert moved.pixels.device.type == labels.labels.device.type == "meta"
    assert moved.ids == images.ids
    assert moved.pixels.shape == images.pixels.shape
    assert images.pixels.device.type == "cpu"
    assert torch.equal(images.to("cpu").pixels, images.pixels)

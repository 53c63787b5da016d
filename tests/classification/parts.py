"""Small classifiers and configurations for the tests."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from backbones import resnet_cifar
from detres.classification.config import ClassificationConfig
from detres.classification.model import ClassificationModel
from detres.classification.structures import CropBatch
from detres.config import check
from tests.backbones.nets import randomise_norms

NAMES = ("cat", "dog", "owl")


def config_of(*, data: dict | None = None, **sections: dict) -> ClassificationConfig:
    """A run of ResNet-20 on an image folder, crops of 32 px; each section takes more keys."""
    model = {"network": {"name": "resnet20"}, **sections.get("model", {})}
    tree = {
        "name": "test",
        "data": folder_data() if data is None else data,
        "model": model,
        "train": {"steps": 4, "batch_size": 2, **sections.get("train", {})},
        "eval": {"short_side": 36, "batch_size": 2, **sections.get("eval", {})},
    }
    return check(ClassificationConfig, tree, "test")


def folder_data(**fields: object) -> dict:
    return {
        "format": "folder",
        "crop_side": 32,
        "short_sides": [36, 40],
        "workers": 0,
        **fields,
    }


def random_model(num_classes: int = 3) -> ClassificationModel:
    """A CIFAR network of random weights whose probabilities differ plainly from image to image:
    logits of noise are centred at zero.
    """
    model = ClassificationModel(net=randomise_norms(resnet_cifar(20, num_classes=num_classes)))
    pixels = torch.from_numpy(np.stack([noise(32, 32, seed) for seed in range(100, 108)]))
    with torch.no_grad():
        images = CropBatch(pixels.permute(0, 3, 1, 2), ())
        model.net.fc.weight.mul_(1.5 / model.eval()(images).std(dim=0).mean())
        model.net.fc.bias.sub_(model(images).mean(dim=0))
    return model.train()


def constant_model() -> ClassificationModel:
    """Probabilities 0.3, 0.1 and 0.6, whatever the image."""
    net = resnet_cifar(20, num_classes=3)
    nn.init.zeros_(net.fc.weight)
    net.fc.bias.data = torch.tensor([math.log(3), 0.0, math.log(6)])
    return ClassificationModel(net=net)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise in blocks of 4x4 px."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, 0).repeat(4, 1)[:height, :width])


def write_folder(
    root: Path, *, number: int = 2, size: tuple[int, int] = (40, 48), names: tuple[str, ...] = NAMES
) -> Path:
    """Write root/train and root/val, `number` PNG files of (h, w) a class in each."""
    for split, first in (("train", 0), ("val", 1000)):
        for label, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for n in range(number):
                image = noise(*size, first + 10 * label + n)
                Image.fromarray(image).save(root / split / name / f"{n}.png")
    return root

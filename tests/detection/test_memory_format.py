"""Every convolution of a training step and of inference reads a map that is channels last."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from tests.engine.test_step import MODEL, K, batch_of, make_images


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": {**MODEL["backbone"], "norm": norm}, **more}
        for norm in ("group", "batch")
        for more in ({}, {"layout": "fpn", "anchors": {"sizes": [8, 16, 32, 64, 128]}})
    ],
)
def test_all_maps_are_channels_last(change: dict) -> None:
    model = build_detector(check(ModelConfig, MODEL | change, "test"), K, pretrained=False)
    seen: dict[str, bool] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, given, name=name: seen.__setitem__(
                    name,
                    all(
                        each.is_contiguous(memory_format=torch.channels_last)
                        for each in (module.weight, given[0])
                    ),
                )
            )
    images, targets = batch_of(*make_images([2, 1, 3]), [0, 1, 2])
    for training in (True, False):
        seen.clear()
        if training:
            model.train()(images, targets)
        else:
            model.eval()(images)
        assert len(seen) > 15
        assert [name for name, last in seen.items() if not last] == []

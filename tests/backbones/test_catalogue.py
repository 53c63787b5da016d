from __future__ import annotations

import json

import pytest
import torch

from backbones import InputSpec
from backbones.catalogue import normalize_pixels

NOW = {
    "channel_order": "bgr",
    "mean": [1.0, 2.0, 3.0],
    "std": [4.0, 5.0, 6.0],
    "short_side": 40,
    "crop_side": 32,
}
SPEC = InputSpec("bgr", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 40, 32)


def without(name, **others):
    return {**{key: value for key, value in NOW.items() if key != name}, **others}


def test_a_specification_is_written_with_its_fields_names():
    assert json.loads(SPEC.to_json()) == NOW
    assert InputSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    "fields",
    [
        NOW,
        without("short_side", resize=40),
        without("crop_side", crop=32),
        {**{k: NOW[k] for k in ("channel_order", "mean", "std")}, "resize": 40, "crop": 32},
        {**NOW, "mean": [1, 2, 3]},
    ],
)
def test_a_specification_is_read_with_its_present_and_its_earlier_names(fields):
    found = InputSpec.from_json(json.dumps(fields))
    assert found == SPEC
    assert found.mean_image is None
    assert all(type(value) is float for value in found.mean)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        [],
        {**NOW, "resize": 40},
        {**NOW, "crop": 32},
        without("crop_side", resize=40),
        without("short_side", crop=32),
        without("short_side"),
        without("crop_side", crop="32"),
        without("crop_side", crop=0),
        without("short_side", resize=-1),
        without("short_side", resize=True),
        without("short_side", shorter=40),
    ],
)
def test_a_specification_of_mixed_or_missing_names_is_refused(fields):
    with pytest.raises(ValueError, match="not an input specification: "):
        InputSpec.from_json(json.dumps(fields))


def test_pixels_are_normalised_by_hand():
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 8.0])
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    assert normalize_pixels(images, "rgb", mean, std, None).flatten().tolist() == [4.5, 4.5, 3.375]
    found = normalize_pixels(images, "bgr", mean, std, None)
    assert found.flatten().tolist() == [14.5, 4.5, 0.875]
    image = torch.tensor([30.0, 16.0, 2.0]).view(3, 1, 1)
    assert normalize_pixels(images, "bgr", mean, std, image).flatten().tolist() == [0.0, 1.0, 1.0]
    assert images.flatten().tolist() == [10, 20, 30]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_result_is_new_and_of_the_same_memory_format(order, dtype):
    images = torch.randint(0, 256, (2, 3, 6, 5)).to(dtype)
    zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    for form in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=form)
        found = normalize_pixels(given, order, zero, one, None)
        assert found.is_contiguous(memory_format=form)
        assert found.data_ptr() != given.data_ptr()
        assert torch.equal(found, images.float() if order == "rgb" else images.flip(1).float())
    assert normalize_pixels(images[:0], order, zero, one, None).shape == (0, 3, 6, 5)

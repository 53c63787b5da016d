from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backbones import PUBLISHED, InputSpec
from backbones.catalogue import (
    CAFFE,
    IMAGENET,
    file_named,
    known_by_name,
    known_file,
    normalize_pixels,
)

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


@pytest.mark.parametrize(
    ("path", "stride"),
    [
        ("resnet50.tv_in1k.safetensors", "torchvision"),
        ("timm_resnet18.tv_in1k.pth", "torchvision"),
        ("resnet50.a1_in1k/model.safetensors", "torchvision"),
        ("models--timm--resnet101.gluon_in1k/snapshots/0a1b/model.safetensors", "torchvision"),
        ("resnet50.fb_swsl_ig1b_ft_in1k.bin", "torchvision"),
        ("resnet50_tv2_in1k.pth", "torchvision"),
        ("resnet50_8xb32_in1k_20210831-ea4938fc.pth", "torchvision"),
        ("resnet50_batch256_imagenet_20200708-cfb998bf.pth", "torchvision"),
        ("resnet50_msra-5891d200.pth", "original"),
        ("resnet101_caffe.pth", "original"),
        ("resnet50.pth", None),
        ("resnet50_imagenet.pth", None),
        ("resnet50_in1k.pth", None),
        ("caffe/resnet50.pth", None),
        ("wide_resnet50_2.pth", None),
    ],
)
def test_names_that_tell_where_a_bottleneck_has_its_stride(path, stride):
    known = known_by_name(Path("/data") / path)
    assert (known and known[0]) == (stride and {"stride_placement": stride})
    if known:
        assert known[1] == (CAFFE if stride == "original" else IMAGENET)


def test_published_files_are_known_by_digest_and_by_name():
    for entry in PUBLISHED.values():
        assert known_file(f"{entry.sha256_prefix}{'0' * 56}").file == entry.file
        assert file_named(entry.file).file == entry.file
    earlier = file_named("resnet50-19c8e357.pth")
    assert earlier.traits == (("stride_placement", "torchvision"), ("pool1", "torch"))
    assert known_file("19c8e357" + "0" * 56) == earlier
    assert known_file("0" * 64) is None
    assert file_named("resnet50.pth") is None


def test_timms_names_are_those_of_torchvisions_files():
    for tag, version, depths in (
        ("tv", "v1", (18, 34, 50, 101, 152)),
        ("tv2", "v2", (50, 101, 152)),
    ):
        for depth in depths:
            published = PUBLISHED[f"torchvision/resnet{depth}.{version}"]
            assert PUBLISHED[f"timm/resnet{depth}.{tag}_in1k"] is published

"""Normalising: numpy in float64 and the specification are the witnesses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones import InputSpec
from detres.images.normalize import PixelNormalizer


def spec_of(**fields) -> InputSpec:
    """A specification of images of 32 px, ImageNet's but for `fields`."""
    return InputSpec(short_side=32, crop_side=32, **fields)


def random_pixels(num: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (num, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def test_normalising_by_hand() -> None:
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 4)
    rgb = PixelNormalizer(spec_of(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0)))(pixels)
    assert rgb.shape == (1, 3, 2, 4)
    assert rgb.dtype == torch.float32
    assert rgb[0, :, 1, 3].tolist() == [4.5, 4.5, 3.375]
    bgr = PixelNormalizer(spec_of(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), channel_order="bgr"))(
        pixels
    )
    assert bgr[0, :, 0, 2].tolist() == [
        14.5,
        4.5,
        0.875,
    ]  # (30 - 1) / 2, (20 - 2) / 4, (10 - 3) / 8


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (32, 28), (16, 16)])
def test_normalising_equals_numpy_and_the_specification(
    order: str, with_image: bool, size: tuple[int, int]
) -> None:
    mean_image = torch.rand(3, 32, 32) * 255 if with_image else None
    spec = spec_of(channel_order=order, mean_image=mean_image)
    pixels = random_pixels(3, *size)
    found = PixelNormalizer(spec)(pixels)
    assert torch.equal(found, spec.normalize(pixels))
    own_size = with_image and size == (32, 32)
    mean = mean_image.double().numpy() if own_size else np.array(spec.mean).reshape(3, 1, 1)
    values = pixels.double().numpy()
    values = values[:, ::-1] if order == "bgr" else values
    np.testing.assert_allclose(
        found.numpy(), (values - mean) / np.array(spec.std).reshape(3, 1, 1), rtol=1e-5, atol=1e-5
    )


def test_the_mean_image_is_for_images_of_its_own_size_alone() -> None:
    image = torch.arange(3 * 32 * 32, dtype=torch.float32).view(3, 32, 32) / 100
    normalizer = PixelNormalizer(
        spec_of(mean=(5.0, 6.0, 7.0), std=(1.0, 1.0, 1.0), mean_image=image)
    )
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(normalizer(black)[0], -image)
    for height, width in ((32, 31), (31, 32), (64, 64)):
        other = normalizer(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        assert (other == -torch.tensor([5.0, 6.0, 7.0]).view(3, 1, 1)).all()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("last", [True, False])
def test_the_result_is_channels_last_and_the_images_stay_as_they_are(
    order: str, last: bool
) -> None:
    normalizer = PixelNormalizer(spec_of(channel_order=order))
    pixels = random_pixels(2, 32, 32).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    before = pixels.clone()
    found = normalizer(pixels)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()
    assert torch.equal(pixels, before)
    assert torch.equal(normalizer(pixels), found)


def test_a_plain_specification_is_imagenets() -> None:
    normalizer = PixelNormalizer(InputSpec())
    assert normalizer.mean.flatten().tolist() == pytest.approx(InputSpec().mean)
    assert normalizer.std.flatten().tolist() == pytest.approx(InputSpec().std)
    assert normalizer.mean_image is None


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("with_image", [True, False])
def test_padding_is_zero_and_the_rest_as_without_sizes(order: str, with_image: bool) -> None:
    mean_image = torch.rand(3, 32, 32) * 255 if with_image else None
    normalizer = PixelNormalizer(spec_of(channel_order=order, mean_image=mean_image))
    pixels = random_pixels(3, 32, 32)
    plain = normalizer(pixels)
    found = normalizer(pixels, [(32, 32), (20, 32), (7, 1)])
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1, :, :20], plain[1, :, :20])
    assert torch.equal(found[2, :, :7, :1], plain[2, :, :7, :1])
    assert found[1, :, 20:].count_nonzero() == 0
    assert found[2].count_nonzero() == plain[2, :, :7, :1].count_nonzero()
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_its_tensors_follow_from_the_specification_and_move_with_it() -> None:
    normalizer = PixelNormalizer(spec_of(mean_image=torch.zeros(3, 32, 32)))
    assert normalizer.state_dict() == {}
    assert {name for name, _ in normalizer.named_buffers()} == {"mean", "std", "mean_image"}
    moved = normalizer.to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())
    pixels = torch.empty(1, 3, 32, 32, dtype=torch.uint8, device="meta")
    assert moved(pixels).shape == (1, 3, 32, 32)


def test_no_images_are_no_images() -> None:
    found = PixelNormalizer(spec_of())(torch.zeros(0, 3, 32, 32, dtype=torch.uint8))
    assert found.shape == (0, 3, 32, 32)
    assert found.dtype == torch.float32


def test_pixels_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        PixelNormalizer(spec_of())(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))

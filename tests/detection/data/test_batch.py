"""Images of different sizes -> one padded batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detres.detection.data.batch import pad_images


def test_pad_images_puts_zeros_right_and_below() -> None:
    images = [np.full((30, 40, 3), 7, np.uint8), np.full((33, 20, 3), 9, np.uint8)]
    batch = pad_images(images, original_sizes=[(60, 80), (66, 40)], ids=[4, "b"])
    assert batch.pixels.shape == (2, 3, 33, 40)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes == ((30, 40), (33, 20))
    assert batch.original_sizes == ((60, 80), (66, 40))
    assert batch.ids == (4, "b")
    assert (batch.pixels[0, :, :30, :40] == 7).all()
    assert batch.pixels[0].sum() == 7 * 30 * 40 * 3
    assert batch.pixels[1].sum() == 9 * 33 * 20 * 3


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(40, 53)], (40, 53)),  # an image alone is not padded
        ([(40, 53), (40, 53)], (40, 53)),
        ([(40, 53), (61, 33)], (61, 53)),
        ([(4, 53)], (32, 53)),  # but every stage needs a cell
    ],
)
def test_pad_images_takes_the_smallest_size_that_holds_all(sizes, expected) -> None:
    images = [np.ones((*size, 3), np.uint8) for size in sizes]
    batch = pad_images(images, original_sizes=sizes, ids=range(len(sizes)))
    assert batch.pixels.shape == (len(sizes), 3, *expected)
    assert batch.sizes == tuple(sizes)


def test_pad_images_refuses_nothing_and_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        pad_images([], original_sizes=[], ids=[])
    image = np.ones((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="2 images has 1 original sizes and 2 ids"):
        pad_images([image, image], original_sizes=[(8, 8)], ids=[1, 2])
    with pytest.raises(ValueError, match="1 images has 1 original sizes and 2 ids"):
        pad_images([image], original_sizes=[(8, 8)], ids=[1, 2])


@pytest.mark.parametrize(
    "image",
    [np.ones((8, 8), np.uint8), np.ones((8, 8, 4), np.uint8), np.ones((8, 8, 3), np.float64)],
)
def test_pad_images_names_an_image_of_another_kind(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image b is .*, expected uint8 \(H, W, 3\)"):
        pad_images(
            [np.ones((8, 8, 3), np.uint8), image], original_sizes=[(8, 8)] * 2, ids=["a", "b"]
        )


def test_pad_images_takes_views_with_negative_strides() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    batch = pad_images([photo[:, ::-1, ::-1]], original_sizes=[(24, 40)], ids=[1])
    np.testing.assert_array_equal(
        batch.pixels[0, :, :24, :40].permute(1, 2, 0).numpy(), photo[:, ::-1, ::-1]
    )


def test_images_that_resizing_did_not_round_stay_as_they_are() -> None:
    """One of them makes the batch float32, on the same scale."""
    image, other = np.full((8, 9, 3), 7, np.uint8), np.full((6, 5, 3), 7.25, np.float32)
    batch = pad_images([image, other], original_sizes=[(8, 9), (6, 5)], ids=[1, 2])
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels[0, :, :8, :9].unique().tolist() == [7.0]
    assert batch.pixels[1].unique().tolist() == [0.0, 7.25]

"""Which pictures are the same: by their pixels, and by their looks."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from detres.images.decode import read_image
from detres.images.look_alikes import (
    difference_hash,
    print_of,
    same_pictures,
    similar_pictures,
)
from tests.images.pixels import noise, smooth


def alike(*images: np.ndarray) -> list[tuple[int, int, bool]]:
    """(first row, second row, whether they are copies) of those that look alike."""
    prints = [print_of(image) for image in images]
    pairs, copies = similar_pictures(
        np.stack([each.hash for each in prints]), np.stack([each.small for each in prints])
    )
    return [(*pair, copy) for pair, copy in zip(pairs.tolist(), copies.tolist(), strict=True)]


def encoded(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_the_hash_of_a_ramp_by_hand() -> None:
    """Brighter to the right everywhere, and never brighter below: ones, then zeros."""
    ramp = np.tile(np.arange(0, 90, dtype=np.uint8), (90, 1))
    assert difference_hash(ramp).tolist() == [255] * 8 + [0] * 8
    assert difference_hash(ramp.T.copy()).tolist() == [0] * 8 + [255] * 8
    assert difference_hash(ramp[:, ::-1].copy()).tolist() == [0] * 16


def test_a_hash_of_a_picture_smaller_than_its_grid() -> None:
    assert difference_hash(np.array([[7]], np.uint8)).tolist() == [0] * 16


def test_equal_pixels_are_the_same_picture_and_a_changed_one_is_not() -> None:
    image = noise(20, 30)
    other = image.copy()
    other[19, 29, 2] ^= 1
    pictures = (image, other, image.copy(), noise(4, 4), other.copy(), image.copy())
    first = same_pictures([print_of(each).digest for each in pictures])
    assert first.tolist() == [0, 1, 0, 3, 1, 0]
    assert same_pictures([]).shape == (0,)


def test_the_same_bytes_in_another_shape_are_another_picture() -> None:
    image = noise(20, 30)
    assert print_of(image).digest != print_of(image.reshape(30, 20, 3)).digest


def test_a_view_with_strides_has_the_print_of_its_copy() -> None:
    turned = noise(20, 30)[:, ::-1]
    assert print_of(turned).digest == print_of(turned.copy()).digest


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: encoded(image, 40),
        lambda image: cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA),
        lambda image: cv2.resize(image, (416, 416)),
        lambda image: (image * 0.9).astype(np.uint8),
        lambda image: np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8),
    ],
    ids=["re-encoded", "halved", "squashed", "darker", "brighter"],
)
def test_copies_are_found_and_others_are_not(copy) -> None:
    image = cv2.resize(smooth(24, 32), (320, 240))
    others = [cv2.resize(smooth(24, 32, seed), (320, 240)) for seed in (1, 2, 3)]
    assert alike(others[0], image, others[1], copy(image), others[2]) == [(1, 3, True)]


def test_a_mirrored_picture_is_another() -> None:
    image = cv2.resize(smooth(24, 32), (320, 240))
    assert alike(image, image[:, ::-1].copy()) == []


def test_frames_of_one_scene_look_alike_but_are_no_copies() -> None:
    """Of a camera that stands most of each frame stays; a large change is another picture."""
    scene = cv2.resize(smooth(24, 32), (320, 240))
    little, much = scene.copy(), scene.copy()
    little[100:115, 60:75] = 255 - little[100:115, 60:75]
    much[20:220, 60:300] = 255 - much[20:220, 60:300]
    assert alike(scene, little, much) == [(0, 1, False)]


def test_pictures_without_contrast_are_copies_of_none() -> None:
    flat = np.full((40, 40, 3), 200, np.uint8)
    assert alike(flat, flat.copy(), flat + 1) == []


def test_pairs_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of pictures that are compared at once."""
    images = [cv2.resize(smooth(24, 32, seed), (64, 48)) for seed in (0, 1, 0, 2, 1, 0)]
    expected = [(0, 2, True), (0, 5, True), (1, 4, True), (2, 5, True)]
    for rows in (1, 2, 5, 6, 100):
        monkeypatch.setattr("detres.images.look_alikes._ROWS", rows)
        assert sorted(alike(*images)) == expected


def test_no_pictures_are_no_pairs() -> None:
    pairs, copies = similar_pictures(np.zeros((0, 16), np.uint8), np.zeros((0, 16, 16), np.uint8))
    assert pairs.shape == (0, 2)
    assert copies.shape == (0,)


def test_photographs_and_their_copies(shared_data) -> None:
    """Of 160 photographs no two are taken for one, and every copy of them is found."""
    files = sorted(shared_data("coco_mini").glob("*2017/*.jpg"))
    images = [read_image(file) for file in files]
    assert alike(*images) == []
    for row, image in enumerate(images[::4]):
        small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        ways = (encoded(image, 30), small, encoded(small, 50), cv2.resize(image, (300, 300)))
        assert alike(image, ways[row % 4]) == [(0, 1, True)], (files[row * 4], row % 4)

from __future__ import annotations

import numpy as np
import pytest

from detres.images.cache import ImageCache
from detres.images.decode import DecodedImage
from tests.images.pixels import noise


def same(one: DecodedImage | None, other: DecodedImage) -> None:
    assert one is not None
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one[1:] == other[1:]
    assert one.pixels.flags.writeable


def test_what_is_put_in_comes_back_as_long_as_there_is_room() -> None:
    images = [
        DecodedImage(noise(4, 5, 0), (4, 5)),
        DecodedImage(noise(10, 10, 1), (10, 10)),
        DecodedImage(noise(3, 7, 2), (6, 13), 2, (0, 1)),
    ]
    cache = ImageCache(4, (20 + 21) * 3)  # the one of 10x10 px has no room
    for index, image in enumerate(images):
        assert cache.get(index) is None
        cache.put(index, image)
    same(cache.get(0), images[0])
    assert cache.get(1) is None
    same(cache.get(2), images[2])
    assert cache.get(3) is None
    assert len(cache) == 2


def test_an_image_is_kept_once_and_is_not_its_user_s() -> None:
    first = DecodedImage(noise(4, 5), (4, 5))
    cache = ImageCache(2, 2 * 60)
    cache.put(0, first)
    cache.put(0, DecodedImage(noise(4, 5, 1), (4, 5)))
    cache.get(0).pixels[:] = 0
    same(cache.get(0), first)
    cache.put(1, first)  # the room of the second is not lost
    assert len(cache) == 2


def test_empty_sets_and_budgets() -> None:
    assert len(ImageCache(0, 1)) == 0
    with pytest.raises(ValueError, match="a cache of 0 bytes, expected 1 or more"):
        ImageCache(1, 0)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detres.detection.inference.pictures import captions_of, write_jpeg
from detres.images.decode import read_image
from tests.detection.evaluation.scenes import TWO


def test_captions_by_hand() -> None:
    captions = captions_of(TWO, np.array([2, 1, 2]), np.array([0.5, 0.987, 1.0]))
    assert captions == ["dog 0.50", "cat 0.99", "dog 1.00"]
    assert captions_of(TWO, np.zeros(0, np.int64), np.zeros(0)) == []
    with pytest.raises(IndexError, match=r"outside 0\.\.1"):
        captions_of(TWO, np.array([3]), np.array([0.5]))


def test_a_jpeg_holds_the_pixels_in_rgb(tmp_path: Path) -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:] = (200, 40, 90)
    write_jpeg(tmp_path / "a.jpg", image)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - image).max() <= 6
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
    with pytest.raises(OSError, match=r"a\.jpg"):  # which is a file, no folder
        write_jpeg(tmp_path / "a.jpg" / "b.jpg", image)

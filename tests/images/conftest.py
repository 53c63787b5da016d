"""A photograph for the tests of images."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def photo() -> np.ndarray:
    """(24, 40, 3), smooth enough for JPEG to keep, with no symmetry: any turn or channel swap is
    seen.
    """
    rows, columns = np.mgrid[0:24, 0:40]
    return np.stack((rows * 10, columns * 6, 255 - rows * 5 - columns * 3), axis=2).astype(np.uint8)

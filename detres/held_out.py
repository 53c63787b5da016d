"""Which images of a training set are held out of it, for a set that has no validation images of its
own.
"""

from __future__ import annotations

import numpy as np


def held_out_rows(total: int, number: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of `total` images that stay, and the `number` of them that are held out,
    (total - number,) and (number,) int64, both rising.

    Drawn by a permutation that is always the same, so that whatever asks again gets the same, and
    more of them hold the fewer. source: of the images, for messages. Raises ValueError unless 0 <
    number < total.
    """
    if not 0 < number < total:
        raise ValueError(f"{source}: cannot hold out {number} of {total} images")
    order = np.random.default_rng(0).permutation(total)
    return np.sort(order[number:]), np.sort(order[:number])

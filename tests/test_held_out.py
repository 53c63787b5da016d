from __future__ import annotations

import numpy as np
import pytest

from detres.held_out import held_out_rows


@pytest.mark.parametrize(("total", "number"), [(2, 1), (10, 3), (1000, 999)])
def test_every_row_stays_or_is_held_out(total, number):
    kept, held = held_out_rows(total, number, "set")
    assert sorted([*kept, *held]) == list(range(total))
    assert (len(kept), len(held)) == (total - number, number)
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()


def test_the_same_are_drawn_always_and_from_everywhere():
    kept, held = held_out_rows(10_000, 100, "set")
    again = held_out_rows(10_000, 100, "set")
    np.testing.assert_array_equal(held, again[1])
    np.testing.assert_array_equal(kept, again[0])
    assert set(held.tolist()) < set(held_out_rows(10_000, 300, "set")[1].tolist())
    assert abs(held.mean() - 5000) < 1000  # not the first, or the last, in the order of the files


@pytest.mark.parametrize(("total", "number"), [(5, 0), (5, 5), (5, 6), (0, 1), (5, -1)])
def test_all_or_none_cannot_be_held_out(total, number):
    with pytest.raises(ValueError, match=f"photographs: cannot hold out {number} of {total} ima"):
        held_out_rows(total, number, "photographs")

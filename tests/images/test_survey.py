"""Many image files looked at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detres.images.look_alikes import print_of
from detres.images.survey import survey
from tests.images.pixels import noise
from tests.images.test_decode import save


@pytest.mark.parametrize("workers", [0, 2])
def test_what_every_file_is_in_its_place(tmp_path: Path, workers: int) -> None:
    """More files than one process is given at a time."""
    files = [str(save(noise(6, 9, seed), tmp_path / f"{seed}.png")) for seed in range(20)]
    turned = save(noise(6, 9, 99), tmp_path / "turned.png", 6)
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(files[0]).read_bytes()[:60])
    files[3], files[17] = str(cut), str(turned)
    found = survey(files, workers)
    assert len(found) == 20
    assert np.flatnonzero(~found.readable).tolist() == [3]
    assert f"image file {cut} cannot be read" in found.faults[3]
    assert found.sizes[[0, 3, 17]].tolist() == [[6, 9], [0, 0], [6, 9]]
    assert found.upright_sizes[[0, 3, 17]].tolist() == [[6, 9], [0, 0], [9, 6]]
    assert found.orientations[[0, 17]].tolist() == [1, 6]
    assert found.prints[5].digest == print_of(noise(6, 9, 5)).digest
    assert found.prints[17].digest == print_of(np.rot90(noise(6, 9, 99), 3).copy()).digest


def test_a_slice_has_the_same_files(tmp_path: Path) -> None:
    files = [str(save(noise(6, 9 + n, n), tmp_path / f"{n}.png")) for n in range(3)]
    assert survey(files, 0)[1:3].sizes.tolist() == [[6, 10], [6, 11]]


def test_no_files() -> None:
    found = survey([], 2)
    assert len(found) == 0
    assert found.sizes.shape == found.upright_sizes.shape == (0, 2)
    assert found.readable.shape == (0,)

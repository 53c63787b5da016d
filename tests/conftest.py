"""Shared fixtures: where the real photographs are, and small models that build in milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # the workers share the cores: one each, also in the processes they start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

SHARED_DATA = Path(
    os.environ.get("DETRES_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return a function: name of a folder of real photographs -> its path; skips the test when it
    is not there.
    """

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(
                f"real data not found at {path} (set DETRES_TEST_DATA to the folder that holds "
                f"{name.split('/', maxsplit=1)[0]})"
            )
        return path

    return find


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


LARGE = 1_000_000
"""Bytes."""


@pytest.fixture(autouse=True)
def _leave_no_weights(request: pytest.FixtureRequest) -> Iterator[None]:
    """pytest keeps the folders of three sessions; with the weights of every run they would take
    gigabytes.
    """
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for path in folder.rglob("*") if folder is not None else ():
        if path.is_file() and not path.is_symlink() and path.stat().st_size > LARGE:
            path.unlink()

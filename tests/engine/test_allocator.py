"""In processes of their own: what is set stays set."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from detres.engine.allocator import keep_pages
import resource
print(keep_pages())
def fill():
    torch.ones(8, 2**20)  # 32 MiB
for _ in range(20):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

GLIBC = platform.libc_ver()[0] == "glibc"


def answers(**environment: str) -> tuple[str, int]:
    """What keep_pages says, and the page faults of four further tensors."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=True,
        capture_output=True,
        text=True,
        env={**own, **environment},
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(not GLIBC, reason="a C library without mallopt")
def test_pages_are_kept_unless_the_environment_chooses():
    said, faults = answers()
    assert said == "True"
    chosen, faults_as_chosen = answers(MALLOC_TRIM_THRESHOLD_="131072")
    assert chosen == "False"
    assert faults < faults_as_chosen / 10
    assert answers(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] == "False"

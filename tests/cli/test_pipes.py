"""A command whose reader is gone, as of `predict | head`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", ["settings.py", "reproduce.py --dry-run"])
def test_a_closed_pipe_ends_a_command_without_a_word(command: str) -> None:
    name, *flags = command.split()
    begun = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / name), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    begun.stdout.close()
    said = begun.stderr.read().decode()
    begun.stderr.close()
    assert begun.wait() == 141
    assert said == ""

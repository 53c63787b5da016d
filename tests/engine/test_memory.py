"""What is said of the memory that a training takes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from detres.engine import memory


@pytest.mark.skipif(memory.resource is None, reason="the system does not tell")
def test_it_is_about_what_this_process_takes():
    number = re.fullmatch(r"(\d+\.\d) GiB", memory.most_memory())[1]
    assert 0.1 <= float(number) < 100  # torch alone takes more than the first


@pytest.mark.parametrize(("platform", "said"), [("linux", "3.0 GiB"), ("darwin", "0.0 GiB")])
def test_systems_count_in_kibibytes_or_in_bytes(monkeypatch, platform, said):
    usage = SimpleNamespace(ru_maxrss=3 * 2**20)
    fake = SimpleNamespace(getrusage=lambda _: usage, RUSAGE_SELF=0)
    monkeypatch.setattr(memory, "resource", fake)
    monkeypatch.setattr(memory.sys, "platform", platform)
    assert memory.most_memory() == said


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "resource", None)
    assert memory.most_memory() is None

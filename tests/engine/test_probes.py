"""Which arithmetic is the faster one here, measured or refused in words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch._inductor import config as inductor

from detres.engine import probes
from detres.engine.probes import compile_failure

CPU = torch.device("cpu")


@pytest.fixture
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    with inductor.patch({"force_disable_caches": True}):
        yield
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.usefixtures("nothing_compiled_yet")
def test_nothing_fails_where_there_is_a_compiler() -> None:
    assert compile_failure(CPU) is None


@pytest.mark.usefixtures("nothing_compiled_yet")
def test_a_missing_compiler_is_named_in_one_line() -> None:
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        failure = compile_failure(CPU)
    assert "no-such-compiler" in failure
    assert "\n" not in failure


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(1.0, 0.5, "bf16"), (1.0, 0.9, "fp32"), (1.0, 4.0, "fp32")]
)
def test_bf16_only_where_it_is_clearly_faster(monkeypatch, fp32, bf16, expected):
    seconds = {torch.float32: fp32, torch.bfloat16: bf16}
    monkeypatch.setattr(probes, "_convolution_seconds", lambda _device, dtype: seconds[dtype])
    assert probes.faster_precision(CPU) == expected


def test_both_precisions_are_timed_here():
    for dtype in (torch.float32, torch.bfloat16):
        assert 0 < probes._convolution_seconds(CPU, dtype) < 10

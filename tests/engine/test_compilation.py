from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch._inductor import config as inductor

from detres.engine.compilation import compile_failure

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

"""What a machine can do, told from what it is; and why not, in words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor

from detres.engine.probes import compile_failure, native_precision

CPU = torch.device("cpu")


@pytest.fixture
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    with inductor.patch({"force_disable_caches": True}):
        yield
    torch._dynamo.reset()


@pytest.mark.slow
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
    ("instructions", "expected", "why"),
    [
        ({"avx2", "avx512_bf16"}, "bf16", "bf16 instructions, avx512_bf16"),
        ({"amx_bf16", "avx512_bf16"}, "bf16", "bf16 instructions, amx_bf16"),
        ({"neon", "bf16"}, "bf16", "bf16 instructions, bf16"),
        ({"avx2", "avx512_f", "avx512_fp16", "amx_tile"}, "fp32", "no bf16 instructions"),
        (set(), "fp32", "no bf16 instructions"),
    ],
)
def test_a_processor_computes_in_what_it_has_instructions_for(
    monkeypatch, instructions, expected, why
):
    capabilities = dict.fromkeys(instructions, True) | {"avx_vnni": False, "num_sockets": 1}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    precision, reason = native_precision(CPU)
    assert precision == expected
    assert reason == f"the processor has {why}"


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"),
    [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")],
)
def test_an_older_pytorch_is_asked_instruction_by_instruction(monkeypatch, amx, avx512, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert native_precision(CPU)[0] == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), "fp32"), ((8, 0), "bf16"), ((8, 6), "bf16"), ((9, 0), "bf16")],
)
def test_a_gpu_computes_in_bf16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    precision, reason = native_precision(torch.device("cuda"))
    assert precision == expected
    assert f"compute capability is {capability[0]}.{capability[1]}," in reason


def test_of_another_device_nothing_is_assumed():
    assert native_precision(torch.device("mps"))[0] == "fp32"


def test_the_answer_here_is_what_linux_says_of_the_processor():
    flags = (
        set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    )
    if "avx2" not in flags:
        pytest.skip("needs Linux on x86")
    has = bool(flags & {"avx512_bf16", "amx_bf16"})
    assert native_precision(CPU)[0] == ("bf16" if has else "fp32")

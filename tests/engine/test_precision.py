from __future__ import annotations

import pytest
import torch

from detres.engine import precision


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(1.0, 0.5, "bf16"), (1.0, 0.9, "fp32"), (1.0, 4.0, "fp32")]
)
def test_bf16_only_where_it_is_clearly_faster(monkeypatch, fp32, bf16, expected):
    seconds = {torch.float32: fp32, torch.bfloat16: bf16}
    monkeypatch.setattr(precision, "_convolution_seconds", lambda _device, dtype: seconds[dtype])
    assert precision.faster_precision(torch.device("cpu")) == expected


def test_both_precisions_are_timed_here():
    for dtype in (torch.float32, torch.bfloat16):
        assert 0 < precision._convolution_seconds(torch.device("cpu"), dtype) < 10

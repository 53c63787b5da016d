"""torch's own operators of oneDNN, which torch.compile lowers to on CPUs.

They are not part of torch's documented interface: where one is missing, plain operators do the
same.
"""

from __future__ import annotations

import torch
from torch import Tensor

ONEDNN = torch.ops.mkldnn


def has_onednn(weight: Tensor) -> bool:
    """Return whether they all are there, and take a weight (...) of this kind."""
    names = (
        "_convolution_pointwise",
        "_convolution_pointwise_",
        "_reorder_convolution_weight",
        "_linear_pointwise",
        "_reorder_linear_weight",
    )
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    known = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and ONEDNN._is_mkldnn_bf16_supported()
    )
    return known and all(hasattr(ONEDNN, name) for name in names)

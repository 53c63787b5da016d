"""Which cells of a batch's feature map are an image's own, for layers that look beyond a cell."""

from __future__ import annotations

from backbones.padding import Padding
from detres.detection.structures import FeatureMap


def padding_of(feature: FeatureMap) -> Padding | None:
    """Return the padding of a map (N, C, H, W); None where every image fills all of it."""
    if not feature.padded:
        return None
    height, width = feature.values.shape[2:]
    return Padding.of(feature.sizes, (height, width), feature.values.device)

"""Detectron's Faster R-CNN, C4 and FPN: its blobs under our names, and the settings of its
baselines of December 2017.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from backbones.weight_names import to_own_names

_RPN = re.compile(r"(?P<start>|.*\.)conv_rpn(?P<pyramid>_fpn2)?_w")

_RESNET = re.compile(r"(conv1|res_conv1|res\d_\d+_branch\w+)_(w|b|bn_s|bn_b)")

_RULES = (
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", r"fpn.lateral.conv\1.conv"),
    (r"fpn_res(\d)_\d+_sum", r"fpn.output.conv\1.conv"),
    (r"conv_rpn(?:_fpn2)?", r"rpn.head.conv"),
    (r"rpn_cls_logits(?:_fpn2)?", r"rpn.head.objectness"),
    (r"rpn_bbox_pred(?:_fpn2)?", r"rpn.head.deltas"),
    (r"fc6", r"roi_head.box_head.layers.0"),
    (r"fc7", r"roi_head.box_head.layers.2"),
    (r"(cls_score|bbox_pred)", r"roi_head.predictor.\1"),
)
"""Detectron's name, without _w or _b -> ours."""

_LEFT = {
    "_[mask]": "the mask head",
    "mask_fcn": "the mask head",
    "conv5_mask": "the mask head",
    "conv_fcn": "the keypoint head",
    "kps_": "the keypoint head",
}
"""Beginning of a name -> the part it is of."""

_KIND = {"w": "weight", "b": "bias"}


class Blobs(NamedTuple):
    """A detector's tensors under our names; the names of its blobs that are not taken over, with
    the part each is of, and of those that are of no known part; whether it has a pyramid.
    """

    tensors: dict[str, Tensor]
    left: dict[str, str]
    unknown: list[str]
    pyramid: bool


def read_blobs(tensors: Mapping[str, Tensor]) -> Blobs | None:
    """Return the detector that tensors, of any shape (...,), are the blobs of; None where they are
    of none.

    Momenta of its solver are passed over; boxes of background, which is the first class, are
    dropped.
    """
    rpn = next((match for name in tensors if (match := _RPN.fullmatch(name))), None)
    if rpn is None:
        return None
    start, pyramid = rpn["start"], rpn["pyramid"] is not None
    blobs = {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start) and not name.endswith("_momentum")
    }
    resnet, found, left, unknown = {}, {}, {}, []
    for name, tensor in blobs.items():
        part = next((what for begin, what in _LEFT.items() if name.startswith(begin)), None)
        if part is not None:
            left[name] = part
        elif _RESNET.fullmatch(name):
            resnet[name] = tensor
        elif (own := _own_name(name)) is not None:
            found[own] = tensor
        else:
            unknown.append(name)
    for kind in _KIND.values():
        name = f"roi_head.predictor.bbox_pred.{kind}"
        if name in found and found[name].dim() > 0:
            found[name] = found[name][4:]
    conv5 = "backbone.layer4." if pyramid else "roi_head.box_head.conv5."
    for name, tensor in to_own_names(resnet).tensors.items():
        found[re.sub(r"^backbone\.layer4\.", conv5, f"backbone.{name}")] = tensor
    return Blobs(found, left, unknown, pyramid)


def _own_name(blob: str) -> str | None:
    stem, _, kind = blob.rpartition("_")
    for pattern, new in _RULES:
        match = re.fullmatch(pattern, stem)
        if match is not None and kind in _KIND:
            return f"{match.expand(new)}.{_KIND[kind]}"
    return None


def settings_of(blobs: Blobs) -> dict:
    """Return the settings of a model with these blobs, as YAML has them, but for its backbone and
    input: of Detectron's baselines of that kind.
    """
    anchors = blobs.tensors.get("rpn.head.objectness.bias", torch.zeros(15)).numel()
    sizes = [32, 64, 128, 256, 512]
    if not blobs.pyramid and anchors == 12:  # Detectron's own default, without 32 px
        sizes = sizes[1:]
    return {
        "layout": "fpn" if blobs.pyramid else "c4",
        "anchors": {"sizes": sizes, "aspect_ratios": [0.5, 1, 2], "style": "py-faster-rcnn"},
        "rpn": {
            "objectness": "sigmoid",
            "min_size": 0,
            "train_pre_nms_top_n": 2000 if blobs.pyramid else 12000,
            "train_post_nms_top_n": 2000,
            "test_pre_nms_top_n": 1000 if blobs.pyramid else 6000,
            "test_post_nms_top_n": 1000,
        },
        "roi": {
            "pool": "roi_align",
            "pool_size": 7 if blobs.pyramid else 14,
            "sampling_ratio": 2 if blobs.pyramid else 0,
            "batch_size": 512,
            "nms_thresh": 0.5,
        },
    }

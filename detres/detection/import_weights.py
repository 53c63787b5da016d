"""Detectors of others: torchvision's, detectron2's and Detectron's Faster R-CNN, from their files
to ours, with the settings under which they detect the same.

Every tensor of such a file is used or named: what belongs to masks or keypoints is left out and
said. Shapes: K classes, A anchors a cell, D features of a region.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from backbones import WeightsError
from backbones.catalogue import CAFFE, DETECTRON, IMAGENET, InputSpec
from backbones.download import digest_of
from backbones.state_search import Contents, preferred
from backbones.weights import read_contents
from detres.class_map import GAP, ClassMap
from detres.config import ConfigError, check
from detres.console import plural, shortened
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.data.coco_classes import COCO_CLASSES
from detres.detection.data.voc import VOC_CLASSES
from detres.detection.import_detectron import Blobs, read_blobs, settings_of
from detres.detection.models.anchors import cell_anchors
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.files import WHAT_FILES_HOLD, CheckpointError, load_model_state

LISTED = 4
"""Of more names a message has the first."""


@dataclass(frozen=True)
class Imported:
    """A detector of others: model, configuration and classes as load_detector gives them, and what
    is to be said of it, a line each.
    """

    detector: FasterRCNN
    config: DetectionConfig
    class_map: ClassMap
    notes: tuple[str, ...]


@dataclass
class _Reading:
    """The tensors of a file under our names, and the settings they ask for, while they are read.

    project: whose file it is. left: names in the file of what is not taken over, with the part it
    is of. notes: what else is to be said.
    """

    project: str
    tensors: dict[str, Tensor]
    model: dict = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def import_detector(path: Path, classes: Sequence[str] | None = None) -> Imported:
    """Return the detector that a file of torchvision, detectron2 or Detectron holds: state dicts of
    torch.save, wrapped or not, and .pkl of the last two.

    classes: its class names in its order; by default, of 80 (torchvision: 90) COCO's, of 20
    PASCAL VOC's, of others "class 1", ..., which is said.

    Raises CheckpointError naming the file when it is no detector of these, or one of another kind
    (RetinaNet, a cascade, a dilated conv5, other anchors), one of ours, or a whole pickled module,
    when tensors are missing, unknown or mis-shaped, and for another number of `classes` or a name
    that is there twice; nothing that a pickle names is run.
    """
    try:
        contents, metadata, _ = read_contents(path)
    except WeightsError as error:
        raise CheckpointError(str(error)) from None
    if metadata.keys() >= {*WHAT_FILES_HOLD["a detector"]}:
        raise CheckpointError(
            f"{path} holds a detector of detres already: it predicts, and others start from it, as "
            "it is"
        )
    if contents.modules and not contents.tensors:
        raise CheckpointError(
            f"{path} holds a whole pickled module ({', '.join(contents.modules)}), whose code is "
            "not run: where it was made, save torch.save(model.state_dict(), FILE), and give that"
        )
    tensors, taken = _of_one_detector(contents, path)
    reading = _read(tensors, path)
    reading.notes += taken
    class_map = _classes(reading, classes, path)
    tree = {
        "name": "imported",
        "model": reading.model,
        "data": {"format": "coco", **dict.fromkeys(_ENTRIES, ("unknown",))},
        "train": {"steps": 1, "eval_every": 0},
    }
    try:
        config = check(DetectionConfig, tree, str(path))
    except ConfigError as error:  # of numbers in the file that no detector has
        raise CheckpointError("; ".join(str(error).splitlines())) from None
    detector = build_detector(config.model, len(class_map), pretrained=False)
    load_model_state(detector, _with_counters(reading.tensors, detector), path)
    left = dict.fromkeys(reading.left.values())
    notes = [f"{path}: a detector of {reading.project}, {len(reading.tensors)} tensors"]
    notes += [f"{path}: left out: {'; '.join(left)}"] if left else []
    notes += [f"{path}: {note}" for note in reading.notes]
    return Imported(detector.eval(), config, class_map, tuple(notes))


_ENTRIES = ("train", "train_images", "val", "val_images")
"""Of a configuration, what nobody knows of a detector of others."""


def holds_detector(path: Path) -> bool:
    """Whether a file holds detectors of others, by the names of its tensors, such as
    import_detector reads or refuses by their kind; raises WeightsError for one that cannot be read.
    """
    tensors = read_contents(path)[0].tensors
    return bool(_prefixes(tensors)) or read_blobs(tensors) is not None


def _prefixes(names: Iterable[str]) -> list[str]:
    """What torchvision's or detectron2's names of detectors are behind, once each."""
    matches = (re.fullmatch(rf"(|.*\.){_PREDICTOR}", name) for name in names)
    return list(dict.fromkeys(match[1] for match in matches if match))


def _of_one_detector(contents: Contents, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors below the wrapper that the detector is in, "model." in detectron2's files, and
    what is to be said where there are several: as of backbones, an average of weights is taken
    before what is averaged.
    """
    prefixes = _prefixes(contents.tensors)
    if not prefixes:
        return dict(contents.tensors), []
    chosen = preferred(prefixes, contents.swapped)
    found, *others = (_below(prefix, prefixes, contents.tensors) for prefix in chosen)
    if any(not _same(found, other) for other in others):
        raise CheckpointError(
            f"{path} holds {len(chosen)} detectors and does not say which to take: "
            f"{', '.join(map(_shown, chosen))}. Save the one you mean by itself"
        )
    passed_over = [prefix for prefix in prefixes if prefix not in chosen]
    notes = []
    if passed_over:
        before = ", ".join(map(_shown, passed_over))
        notes.append(f"taken from {_shown(chosen[0])}, which is evaluated, and not from {before}")
    return found, notes


def _below(
    prefix: str, prefixes: Sequence[str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of the detector behind one of the prefixes, by their names behind it."""
    inner = tuple(other for other in prefixes if len(other) > len(prefix))
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(inner)
    }


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _shown(prefix: str) -> str:
    return prefix.removesuffix(".") or "the names without a prefix"


_PREDICTOR = r"roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.(?:weight|bias)"
"""Names of what torchvision's and detectron2's detectors end in."""


def _read(tensors: dict[str, Tensor], path: Path) -> _Reading:
    blobs = read_blobs(tensors)
    if blobs is not None:
        return _detectron(blobs, path)
    if "backbone.res5.0.conv1.weight" in tensors and _DILATED in tensors:
        raise CheckpointError(
            f"{path} holds detectron2's Faster R-CNN of the kind DC5, with a dilated conv5 as its "
            f"one map, which is not read; {_READ}"
        )
    for mark, read in _READERS.items():
        if mark in tensors and any(re.fullmatch(_PREDICTOR, name) for name in tensors):
            return read(tensors, path)
    for mark, what in _OTHERS.items():
        if any(mark in name for name in tensors):
            raise CheckpointError(f"{path} holds {what}, which is not read; {_READ}")
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors, so no detector; {_READ}")
    raise CheckpointError(
        f"{path} holds no detector that is known, by its tensors "
        f"{', '.join(list(tensors)[:LISTED])}, ...; {_READ}"
    )


_READ = (
    "read are Faster R-CNN of torchvision (fasterrcnn_resnet50_fpn and _v2), and of detectron2 and "
    "Detectron (C4 and FPN on ResNets)"
)

_DILATED = "roi_heads.box_head.fc1.weight"
"""Beside a conv5 in the backbone, and no pyramid."""

_OTHERS = {
    "head.cls_subnet": "detectron2's RetinaNet",
    "head.classification_head": "torchvision's RetinaNet",
    "roi_heads.box_predictor.0.cls_score": "a cascade of heads",
    "backbone.body.0.": "a detector of torchvision on MobileNet",
    "roi_heads.box_predictor": "a detector of another backbone",
    "transformer.": "a DETR",
    "bbox_head.": "a detector of mmdetection",
}
"""Part of a tensor's name -> what such a file holds."""


# --- torchvision


def _torchvision(tensors: dict[str, Tensor], path: Path) -> _Reading:
    second = "rpn.head.conv.1.0.weight" in tensors
    reading = _Reading("torchvision", {})
    _rename(tensors, _TORCHVISION, _TORCHVISION_LEFT, reading, path)
    found = reading.tensors
    boxes = "roi_head.predictor.bbox_pred"
    for kind in ("weight", "bias"):  # the first box is that of background, which has none
        name = f"{boxes}.{kind}"
        if name in found and found[name].dim() > 0:
            found[name] = found[name][4:]
    if not second and _is_published_first(path):
        _fold_epsilon(found)
    reading.model = {
        "layout": "fpn",
        "backbone": _backbone(found, path, "torchvision", "batch" if second else "frozen"),
        "fpn": {"norm": "batch" if second else None},
        "input": {
            **_input(IMAGENET),
            "short_side": 800,
            "max_side": 1333,
            "resize": "torchvision",
            "multiple_of": 32,
        },
        "anchors": {**_ANCHORS, "style": "torchvision"},
        "rpn": {
            **_RPN,
            "width": 256,
            "num_convs": 2 if second else 1,
            "train_pre_nms_top_n": 2000,
            "train_post_nms_top_n": 2000,
            "test_pre_nms_top_n": 1000,
            "test_post_nms_top_n": 1000,
        },
        "roi": {
            "pool": "roi_align",
            "pool_size": 7,
            "sampling_ratio": 2,
            "num_convs": 4 if second else 0,
            "num_fc": 1 if second else 2,
            "batch_size": 512,
            "smooth_l1_beta": 1 / 9,
            "nms_thresh": 0.5,
        },
    }
    return reading


_TORCHVISION = (
    (r"backbone\.body\.(.*)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"fpn.lateral.conv{0}.conv.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"fpn.output.conv{0}.conv.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.(.*)", r"fpn.lateral.conv{0}.norm.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.(.*)", r"fpn.output.conv{0}.norm.\2"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)", r"rpn.head.conv.\1"),
    (r"rpn\.head\.conv\.1\.0\.(weight|bias)", r"rpn.head.more_convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(.*)", r"rpn.head.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(.*)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(.*)", r"roi_head.box_head.layers.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(.*)", r"roi_head.box_head.layers.2.\1"),
    (r"roi_heads\.box_head\.(\d)\.0\.(.*)", r"roi_head.box_head.convs.\1.\2"),
    (r"roi_heads\.box_head\.(\d)\.1\.(.*)", r"roi_head.box_head.norms.\1.\2"),
    (r"roi_heads\.box_head\.5\.(.*)", r"roi_head.box_head.fc.layers.0.\1"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(.*)", r"roi_head.predictor.\1.\2"),
)
"""torchvision's name -> ours; {0}: the number of the stage, two more than its own count."""

_TORCHVISION_LEFT = {
    "roi_heads.mask": "the mask head",
    "roi_heads.keypoint": "the keypoint head",
}


WITHOUT_EPSILON = {
    "258fb6c6": "fasterrcnn_resnet50_fpn",
    "bf2d0c1e": "maskrcnn_resnet50_fpn",
    "fc266e95": "keypointrcnn_resnet50_fpn",
}
"""Beginning of the digest of a file that torchvision has published, which is in its name too ->
its model, whose norms have an epsilon of 0 with it (overwrite_eps of models/detection).
"""


def _is_published_first(path: Path) -> bool:
    """Whether a file is one of WITHOUT_EPSILON, by its name or, renamed, by what is in it."""
    return any(digits in path.name for digits in WITHOUT_EPSILON) or (
        digest_of(path).startswith(tuple(WITHOUT_EPSILON))
    )


def _fold_epsilon(tensors: dict[str, Tensor]) -> None:
    """Make up by their scales for the epsilon of the norms of WITHOUT_EPSILON, which torchvision
    sets to 0 where it loads such a file; ours is 1e-5, as in all others of its models.
    """
    for name in [name for name in tensors if name.endswith(".running_var")]:
        var = tensors[name].double()
        scale = name.replace("running_var", "weight")
        factor = ((var + EPSILON) / var.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
        tensors[scale] = (tensors[scale].double() * factor).to(tensors[scale].dtype)


EPSILON = 1e-5
"""Of our batch norms."""


# --- detectron2


def _detectron2(tensors: dict[str, Tensor], path: Path) -> _Reading:
    pyramid = "backbone.fpn_lateral2.weight" in tensors
    reading = _Reading("detectron2", {})
    _rename(tensors, _DETECTRON2, _DETECTRON2_LEFT, reading, path)
    found = reading.tensors
    for kind in ("weight", "bias"):  # background stands last
        name = f"roi_head.predictor.cls_score.{kind}"
        if name in found and found[name].dim() > 0:
            found[name] = found[name].roll(1, dims=0)
    if not pyramid:  # conv5 goes over every region
        found = {
            re.sub(r"^backbone\.layer4\.", "roi_head.box_head.conv5.", name): tensor
            for name, tensor in found.items()
        }
        reading.tensors = found
    spec = _stated_pixels(tensors, path)
    if spec.std != CAFFE.std:
        reading.notes.append(
            "its pixels are divided by deviations, as of networks of torchvision, so the stride of "
            "a bottleneck is taken to be in the 3x3"
        )
    rows = _rows(found, "roi_head.predictor.bbox_pred.weight", path)
    num_classes = _rows(found, "roi_head.predictor.cls_score.weight", path) - 1
    reading.model = {
        "layout": "fpn" if pyramid else "c4",
        "backbone": _backbone(found, path, "original" if spec.std == CAFFE.std else "torchvision"),
        "input": {
            **_input(spec),
            "short_side": 800,
            "max_side": 1333,
            "train_short_sides": [640, 672, 704, 736, 768, 800],
            "resize": "pillow",
            "multiple_of": 32 if pyramid else None,
        },
        "anchors": _stated_anchors(tensors, path, pyramid=pyramid),
        "rpn": {
            **_RPN,
            "width": _rows(found, "rpn.head.conv.weight", path),
            "smooth_l1_beta": 0,
            "loss_normalizer": "batch_size",
            "train_pre_nms_top_n": 2000 if pyramid else 12000,
            "train_post_nms_top_n": 1000 if pyramid else 2000,
            "test_pre_nms_top_n": 1000 if pyramid else 6000,
            "test_post_nms_top_n": 1000,
        },
        "roi": {
            "pool": "roi_align_aligned",
            "pool_size": 7 if pyramid else 14,
            "sampling_ratio": 0,
            "batch_size": 512,
            "smooth_l1_beta": 0,
            "nms_thresh": 0.5,
            "class_agnostic": rows == 4 and num_classes > 1,
        },
    }
    return reading


def _stated_pixels(tensors: Mapping[str, Tensor], path: Path) -> InputSpec:
    """The pixels that a detector wants, where its file states them; detectron2's baselines' where
    it does not. Means that rise are of BGR, as in its own configurations.
    """
    stated = [tensors.get(name) for name in ("pixel_mean", "pixel_std")]
    if any(each is None for each in stated):
        return CAFFE
    mean, std = (tuple(round(v, 3) for v in each.flatten().tolist()) for each in stated)
    numbers = all(math.isfinite(each) for each in (*mean, *std))
    if len(mean) != 3 or len(std) != 3 or not numbers or min(std) <= 0 or min(mean) < 0:
        raise CheckpointError(
            f"{path}: pixel_mean {list(mean)} and pixel_std {list(std)} are no means and "
            "deviations of three colours"
        )
    return InputSpec(channel_order="bgr" if mean[0] <= mean[2] else "rgb", mean=mean, std=std)


def _stated_anchors(tensors: Mapping[str, Tensor], path: Path, *, pyramid: bool) -> dict:
    """The anchors of a detector, where its file states those of each map's first cell, in the
    fewest digits that give them; detectron2's baselines' where it does not.
    """
    prefix = "proposal_generator.anchor_generator.cell_anchors."
    stated = [tensor for name, tensor in tensors.items() if name.startswith(prefix)]
    if not stated:
        return {**_ANCHORS, "style": "detectron2"}
    if all(
        each.dim() == 2 and each.shape[1] == 4 and len(each) > 0 and each.is_floating_point()
        for each in stated
    ):
        sides = [each[:, 2:].double() - each[:, :2].double() for each in stated]  # (A, 2): w, h
        areas = [each.prod(dim=1).sqrt() for each in sides]
        # size-major: as many of one size as there are aspect ratios
        num_ratios = int(((areas[0] - areas[0][0]).abs() < 1e-2 * areas[0][0]).sum()) or 1
        ratios = (sides[0][:, 1] / sides[0][:, 0])[:num_ratios].tolist()
        own = [each[::num_ratios].tolist() for each in areas]
        for digits in range(1, 9):
            short = tuple(float(f"{each:.{digits}g}") for each in ratios)
            sizes = [tuple(float(f"{each:.{digits}g}") for each in of_map) for of_map in own]
            if _are_anchors(stated, sizes, short) and all(
                len(of_map) == 1 for of_map in sizes if pyramid
            ):
                flat = [size for of_map in sizes for size in of_map]
                return {"sizes": flat, "aspect_ratios": list(short), "style": "detectron2"}
    raise CheckpointError(
        f"{path} states other anchors than are known, {[tuple(each.shape) for each in stated]} of "
        "its maps: expected those of detectron2's DefaultAnchorGenerator, of one size a map in a "
        "pyramid and of the same aspect ratios on all"
    )


def _are_anchors(
    stated: Sequence[Tensor], sizes: Sequence[tuple[float, ...]], ratios: tuple[float, ...]
) -> bool:
    """Whether the anchors of every map, (A, 4) px, are those of its sizes and these ratios."""
    made = [cell_anchors(of_map, ratios, stride=1, style="detectron2") for of_map in sizes]
    return all(
        one.shape == other.shape
        and torch.allclose(one.float(), other, rtol=max(1e-6, torch.finfo(one.dtype).eps), atol=0)
        for one, other in zip(stated, made, strict=True)
    )


_BLOCK = r"res(\d)\.(\d+)\."
_DETECTRON2 = (
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", r"backbone.conv1.weight"),
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.(.*)", r"backbone.bn1.\1"),
    *(
        (rf"{place}{_BLOCK}{there}", rf"backbone.layer{{-1}}.\2.{here}")
        for place in (r"backbone\.(?:bottom_up\.)?", r"roi_heads\.")
        for there, here in (
            (r"conv(\d)\.weight", r"conv\3.weight"),
            (r"conv(\d)\.norm\.(.*)", r"bn\3.\4"),
            (r"shortcut\.weight", r"downsample.0.weight"),
            (r"shortcut\.norm\.(.*)", r"downsample.1.\3"),
        )
    ),
    (r"backbone\.fpn_lateral(\d)\.(.*)", r"fpn.lateral.conv\1.conv.\2"),
    (r"backbone\.fpn_output(\d)\.(.*)", r"fpn.output.conv\1.conv.\2"),
    (r"proposal_generator\.rpn_head\.conv\.(.*)", r"rpn.head.conv.\1"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(.*)", r"rpn.head.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(.*)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box_head\.fc1\.(.*)", r"roi_head.box_head.layers.0.\1"),
    (r"roi_heads\.box_head\.fc2\.(.*)", r"roi_head.box_head.layers.2.\1"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(.*)", r"roi_head.predictor.\1.\2"),
)
"""detectron2's name -> ours; {-1}: the number of the layer, one less than that of res."""

_DETECTRON2_LEFT = {
    "roi_heads.mask": "the mask head",
    "roi_heads.keypoint": "the keypoint head",
    "proposal_generator.anchor_generator": "anchors, which are in the settings",
    "pixel_mean": "pixel means, which are in the settings",
    "pixel_std": "pixel means, which are in the settings",
}


# --- Detectron


def _detectron(blobs: Blobs, path: Path) -> _Reading:
    _require_known(blobs.unknown, path)
    reading = _Reading("Detectron", blobs.tensors, settings_of(blobs), blobs.left)
    found = reading.tensors
    reading.model["rpn"]["width"] = _rows(found, "rpn.head.conv.weight", path)
    reading.model |= {
        "backbone": _backbone(found, path, "original"),
        "input": {
            **_input(DETECTRON),
            "short_side": 800,
            "max_side": 1333,
            "multiple_of": 32 if blobs.pyramid else None,
        },
    }
    reading.notes.append(
        "Detectron counts the last pixel of a box as inside, and so do the numbers that are read: "
        "boxes may lie up to a pixel beside those of its own code"
    )
    return reading


# --- what they share


_RPN = {"objectness": "sigmoid", "train_anchors": "all", "min_size": 0}
_ANCHORS = {"sizes": [32, 64, 128, 256, 512], "aspect_ratios": [0.5, 1, 2]}

_READERS: dict[str, Callable[[dict[str, Tensor], Path], _Reading]] = {
    "backbone.body.conv1.weight": _torchvision,
    "backbone.stem.conv1.weight": _detectron2,
    "backbone.bottom_up.stem.conv1.weight": _detectron2,
}
"""A tensor that a file has -> who reads it."""


def _rename(
    tensors: dict[str, Tensor],
    rules: Sequence[tuple[str, str]],
    left: Mapping[str, str],
    reading: _Reading,
    path: Path,
) -> None:
    """Put the tensors under our names; raises CheckpointError for one that is of no known part."""
    unknown = []
    for name, tensor in tensors.items():
        part = next((what for start, what in left.items() if name.startswith(start)), None)
        rule = next(((p, new) for p, new in rules if re.fullmatch(p, name)), None)
        if part is not None:
            reading.left[name] = part
        elif rule is not None:
            reading.tensors[_named(name, *rule)] = tensor
        elif not name.endswith(_COUNTER):
            unknown.append(name)
    _require_known(unknown, path)


def _require_known(unknown: Sequence[str], path: Path) -> None:
    """Raise CheckpointError for tensors that are of no known part."""
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} tensors are of no part that is known, such as "
            f"{', '.join(unknown[:LISTED])}; {_READ}"
        )


def _named(name: str, pattern: str, new: str) -> str:
    match = re.fullmatch(pattern, name)
    made = match.expand(new)
    return re.sub(
        r"\{(0|-1)\}", lambda shift: str(int(match[1]) + (2 if shift[1] == "0" else -1)), made
    )


def _input(spec: InputSpec) -> dict:
    return {"mean": spec.mean, "std": spec.std, "channel_order": spec.channel_order}


def _rows(tensors: Mapping[str, Tensor], name: str, path: Path) -> int:
    if name not in tensors:
        raise CheckpointError(f"{path} lacks {name}: half a file, or of another architecture")
    if tensors[name].dim() == 0:
        raise CheckpointError(f"{path}: {name} is a single number, expected a row for each output")
    return len(tensors[name])


def _backbone(
    tensors: Mapping[str, Tensor], path: Path, stride: str, norm: str = "frozen"
) -> dict[str, object]:
    """Its settings, where conv1 and conv2_x stay as they are in training."""
    return {
        "name": _depth(tensors, path),
        "stride_placement": stride,
        "norm": norm,
        "freeze_at": 2,
        "weights": str(path),
    }


def _depth(tensors: Mapping[str, Tensor], path: Path) -> str:
    """The ResNet by how many blocks its stages have."""
    blocks = {int(m[1]) for name in tensors if (m := re.match(r"backbone\.layer3\.(\d+)\.", name))}
    third = {int(m[1]) for name in tensors if (m := re.match(r"backbone\.layer2\.(\d+)\.", name))}
    found = _DEPTHS.get((len(third), len(blocks)))
    shape = getattr(tensors.get("backbone.layer1.0.conv2.weight"), "shape", _CONV2)
    if len(shape) == len(_CONV2) and shape != _CONV2:
        kind = "grouped (ResNeXt)" if shape[1] < _CONV2[1] else "of another width (a wide ResNet)"
        raise CheckpointError(
            f"{path}: its convolutions are {kind}, {shape[0]} x {shape[1]} in conv2_x, expected "
            f"{_CONV2[0]} x {_CONV2[1]}: such a network is not read; {_READ}"
        )
    if found is None or "backbone.layer1.0.conv3.weight" not in tensors:
        raise CheckpointError(
            f"{path}: a ResNet of {len(third)} and {len(blocks)} blocks in conv3 and conv4 is not "
            f"known; expected {', '.join(_DEPTHS.values())}"
        )
    return found


_CONV2 = (64, 64, 3, 3)
"""Of the 3x3 convolutions in conv2_x of a ResNet of bottlenecks."""

_DEPTHS = {(4, 6): "resnet50", (4, 23): "resnet101", (8, 36): "resnet152"}
"""Blocks in conv3 and in conv4 -> the network."""


_COUNTER = "num_batches_tracked"


def _with_counters(tensors: Mapping[str, Tensor], detector: FasterRCNN) -> dict[str, Tensor]:
    """With the counters of batches of our norms, of which others keep none or their own."""
    own = detector.state_dict()
    kept = {name: each for name, each in tensors.items() if not name.endswith(_COUNTER)}
    return kept | {name: own[name] for name in own if name.endswith(_COUNTER)}


def _classes(reading: _Reading, given: Sequence[str] | None, path: Path) -> ClassMap:
    num = _rows(reading.tensors, "roi_head.predictor.cls_score.weight", path) - 1
    if given is not None:
        if len(given) != num:
            raise CheckpointError(
                f"{path} has {plural(num, 'class', 'classes')} beside background, and "
                f"{plural(len(given), 'name')} given: {shortened(', '.join(map(repr, given)))}"
            )
        if twice := [name for name, count in Counter(given).items() if count > 1]:
            raise CheckpointError(
                f"{path}: of the names for its classes, {twice[0]} is there twice"
            )
        return ClassMap.of_names(given)
    if num == len(COCO_CLASSES):
        return COCO_CLASSES
    if reading.project == "torchvision" and num == max(COCO_CLASSES.source_ids):
        names = dict(zip(COCO_CLASSES.source_ids, COCO_CLASSES.names, strict=True))
        numbers = range(1, num + 1)  # torchvision keeps the gaps of COCO's ids as classes
        return ClassMap(tuple(names.get(n, f"{GAP}{n}") for n in numbers), tuple(numbers))
    if num == len(VOC_CLASSES):
        return ClassMap.of_names(VOC_CLASSES)
    reading.notes.append("its classes are not named in it: they are called class 1, class 2, ...")
    return ClassMap.of_names([f"class {number}" for number in range(1, num + 1)])

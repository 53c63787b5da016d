"""A trained detector is the start of one for other classes: what of it moves over.

The paper starts its detector of PASCAL VOC from that of COCO (appendix B, the rows "+++" of tables
10 and 11); fine-tuning to one's own classes is the same. Shapes: K classes, A anchors a cell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from detres.class_map import ClassMap
from detres.config import Notice
from detres.detection.config import ModelConfig
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import label_of
from detres.detection.weights_file import load_detector
from detres.files import CheckpointError, load_model_state

_ONE_CLASS = (
    ("aeroplane", "airplane"),
    ("diningtable", "dining table"),
    ("motorbike", "motorcycle"),
    ("pottedplant", "potted plant"),
    ("sofa", "couch"),
    ("tvmonitor", "tv"),
)
"""Names of PASCAL VOC and of COCO for the same thing, where capitals, blanks, dashes and
underscores do not make the difference.
"""

_MUST_AGREE = (
    ("backbone", ("name", "shortcut", "shortcut_padding", "stride_placement", "width", "pool1")),
    ("backbone", ("fc_width",)),
    ("input", ("channel_order", "mean", "std")),
    ("rpn", ("width", "objectness", "num_convs")),
    ("roi", ("pool_size", "context", "class_agnostic", "box_weights")),
)
_OF_A_PYRAMID = (("fpn", ("width", "norm")), ("roi", ("num_convs", "num_fc", "fc_width")))
"""Settings of a model with which the tensors of a detector have another shape, or another meaning
that no shape shows.
"""

_COUNTER = "num_batches_tracked"

LISTED = 8
"""Of more classes a report names the first."""


def start_from(
    detector: FasterRCNN, config: ModelConfig, class_map: ClassMap, path: Path, notice: Notice
) -> str:
    """Fill `detector`, built by `config` for the classes of `class_map`, from the detector in
    `path`, and return in words what moved.

    Everything moves but the rows of the predictor for classes whose name the file does not have,
    and the rows of the RPN for anchors it does not have: those stay as they were initialised.
    Background, and what all classes share, always moves. notice: as in `load_detector`.

    Raises CheckpointError when the file is no detector, or one with another network, input or head,
    naming the settings that differ; the detector is then unchanged.
    """
    trained, given, classes = load_detector(path, notice)
    require_agreement(config, given.model, path)
    own, theirs = detector.state_dict(), trained.state_dict()
    # a counter of batches, which a frozen norm lacks, says nothing of the network
    tensors = {name: tensor for name, tensor in theirs.items() if not name.endswith(_COUNTER)}
    tensors |= {name: theirs.get(name, own[name]) for name in own if name.endswith(_COUNTER)}
    pairs = same_classes(class_map.names, classes.names)
    head = "roi_head.predictor."
    rows = [(0, 0), *((label_of(mine), label_of(other)) for mine, other in pairs.items())]
    for kind in ("weight", "bias"):
        _move(tensors, own, theirs, f"{head}cls_score.{kind}", rows, 1)
        if not config.roi.class_agnostic:
            _move(tensors, own, theirs, f"{head}bbox_pred.{kind}", list(pairs.items()), 4)
    known = _same_anchors(detector, trained)
    of_objectness = known
    if config.rpn.objectness == "softmax":  # all backgrounds, then all foregrounds
        mine, other = (_cell(each).shape[0] for each in (detector, trained))
        of_objectness = [*known, *((a + mine, b + other) for a, b in known)]
    for kind in ("weight", "bias"):
        _move(tensors, own, theirs, f"rpn.head.objectness.{kind}", of_objectness, 1)
        _move(tensors, own, theirs, f"rpn.head.deltas.{kind}", known, 4)
    load_model_state(detector, tensors, path)
    return _report(path, class_map, classes, pairs, len(known), len(_cell(detector)))


def require_agreement(mine: ModelConfig, theirs: ModelConfig, path: Path) -> None:
    """Raise CheckpointError, naming every setting, for a model whose tensors mean something else
    than those of the detector in `path`.
    """
    if mine.layout != theirs.layout:
        raise CheckpointError(
            f"{path} holds a detector of another architecture: its weights mean what they do with "
            f"model.layout={theirs.layout}"
        )
    differing = []
    for section, keys in (*_MUST_AGREE, *(_OF_A_PYRAMID if mine.layout == "fpn" else ())):
        for key in keys:
            own, there = (getattr(getattr(model, section), key) for model in (mine, theirs))
            if _neutral(key, own) != _neutral(key, there):
                value = json.dumps(there)  # as YAML has it, too
                differing.append(f"model.{section}.{key}={value}".replace('"', ""))
    if differing:
        raise CheckpointError(
            f"{path} holds a detector of another architecture or input: its weights mean what they "
            f"do with {', '.join(differing)}"
        )


def _neutral(key: str, value: object) -> object:
    """A setting that is not given means the network's own default."""
    defaults = {
        "shortcut": "B",
        "shortcut_padding": "end",
        "width": 1.0,
        "pool1": "torch",
        "fc_width": 4096,
    }
    if key in ("mean", "std"):
        return tuple(round(number, 3) for number in value)
    return defaults.get(key) if value is None else value


def same_classes(mine: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """Return index in `mine` -> index in `theirs` of the classes with the same name: letter by
    letter, else but for capitals, blanks, dashes and underscores, else by VOC's and COCO's names
    for the same thing.

    A name that fits several of the others, or is fitted by several, is matched by the strictest
    rule alone under which it is the only one.
    """
    found: dict[int, int] = {}
    for rule in (str, _plain, _canonical):
        left = {name: k for k, name in enumerate(theirs) if k not in found.values()}
        keys = [rule(name) for name in left]
        wanted = [rule(name) for k, name in enumerate(mine) if k not in found]
        for k, name in enumerate(mine):
            key = rule(name)
            if k not in found and keys.count(key) == wanted.count(key) == 1:
                found[k] = list(left.values())[keys.index(key)]
    return dict(sorted(found.items()))


def _plain(name: str) -> str:
    return "".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _canonical(name: str) -> str:
    plain = _plain(name)
    return next((_plain(names[0]) for names in _ONE_CLASS if plain in map(_plain, names)), plain)


def _cell(detector: FasterRCNN) -> Tensor:
    """The anchors (A, 4) of the rows of the RPN; of a pyramid, whose levels share the rows, those
    of its finest one.
    """
    return next(iter(detector.rpn.anchors.values())).cell


_SAME_RATIO = 0.1
"""By which the logarithms of two aspect ratios may differ: torchvision's sides are whole px."""


def _same_anchors(mine: FasterRCNN, theirs: FasterRCNN) -> list[tuple[int, int]]:
    """(row, their row) of the anchors (A, 4) that both have; in a pyramid, of the same aspect
    ratio, for its levels have anchors of every size in common.
    """
    cells = _cell(mine), _cell(theirs)
    if len(mine.rpn.anchors) == 1:
        equal = (cells[0][:, None] == cells[1][None]).all(dim=2)  # (A, A')
    else:
        sides = [cell[:, 2:] - cell[:, :2] for cell in cells]
        ratios = [(each[:, 1] / each[:, 0]).log() for each in sides]
        equal = (ratios[0][:, None] - ratios[1][None]).abs() < _SAME_RATIO
    return [tuple(pair) for pair in equal.nonzero().tolist()]


def _move(
    tensors: dict[str, Tensor],
    own: dict[str, Tensor],
    theirs: dict[str, Tensor],
    name: str,
    rows: list[tuple[int, int]],
    each: int,
) -> None:
    """Put into `tensors` the layer `name` (rows, ...) as it was initialised, but for `rows` of
    `theirs`, blocks of `each` rows.
    """
    mixed = own[name].clone()
    for mine, other in rows:
        mixed[mine * each : (mine + 1) * each] = theirs[name][other * each : (other + 1) * each]
    tensors[name] = mixed


def _report(
    path: Path,
    mine: ClassMap,
    theirs: ClassMap,
    pairs: dict[int, int],
    known_anchors: int,
    num_anchors: int,
) -> str:
    moved = [
        mine.names[k] if mine.names[k] == theirs.names[other]
        else f"{mine.names[k]} ({theirs.names[other]})"
        for k, other in pairs.items()
    ]  # fmt: skip
    fresh = [name for k, name in enumerate(mine.names) if k not in pairs]
    line = (
        f"{path}: {len(moved)} of {len(mine)} classes by name of its {len(theirs)}: "
        f"{_listed(moved)}; fresh: {_listed(fresh)}"
    )
    if known_anchors < num_anchors:
        line += f"; {known_anchors} of {num_anchors} anchors, the others fresh"
    return line


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none") + more

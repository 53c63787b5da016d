"""The settings of a run that nobody configured, chosen from its data and the machine.

The values are those of configurations that were measured (configs/bccd_r18.yaml and
voc_r50_half.yaml on a processor) or the paper's (on a GPU); what depends on the data is computed
from them.
"""

from __future__ import annotations

import os
import re
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from backbones.vgg import FC_GRID
from detres.config import in_yaml
from detres.detection.annotations import Annotations
from detres.detection.config import VGGS, InputConfig, ModelConfig
from detres.detection.data.anchor_fit import (
    ENOUGH,
    LARGER_SIDES,
    PYRAMID_STRIDES,
    STRIDE,
    AnchorChoice,
    boxes_in_training,
    fewest_anchors,
    fit_of,
    reachable,
)
from detres.detection.pretrained import Pretrained
from detres.images.processes import usable_cores

GIB = 2**30


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen: `key` = `value`, plain as in YAML (a mapping for several keys of
    one section), and why.
    """

    key: str
    value: object
    reason: str

    def settings(self) -> list[str]:
        """Return it as KEY=VALUE, one for each key."""
        if not isinstance(self.value, dict):
            return [f"{self.key}={in_yaml(self.value)}"]
        return [f"{self.key}.{key}={in_yaml(value)}" for key, value in self.value.items()]

    def line(self) -> str:
        """Return it as a shell takes it, with the reason behind."""
        return f"{' '.join(quoted(setting) for setting in self.settings())}  # {self.reason}"


def quoted(setting: str) -> str:
    """Return a setting as a shell takes it."""
    if "'" in setting:
        return shlex.quote(setting)
    return f"'{setting}'" if re.search(r"[^\w./=:@%+-]", setting) else setting


@dataclass(frozen=True)
class Machine:
    """What trains: device "cpu" or "cuda", its memory in GiB, and processor cores."""

    device: str
    memory: float
    cores: int

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """Return what `device` is."""
        cores = usable_cores()
        if device.type == "cuda":
            return cls("cuda", torch.cuda.get_device_properties(device).total_memory / GIB, cores)
        try:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        except (AttributeError, ValueError, OSError):  # Windows has none
            memory = 8.0
        return cls("cpu", memory, cores)


@dataclass(frozen=True)
class Trained:
    """A trained detector to start from: its file and its model's settings."""

    path: Path
    model: ModelConfig


Start = Pretrained | Trained | None
"""What the weights start from; None: random ones."""


@dataclass(frozen=True)
class Recipe:
    """How a start is trained: the optimisation, how long, and what of the detector goes with it.

    name: in words. epochs, least, most: the number of steps is that of `epochs`, within these
    bounds. backbone, rpn, roi, data, train: settings of these sections. short_side: px, at most
    `enlarge` times that of the images. jitter: whether training draws scales around it.
    """

    name: str
    epochs: float
    least: int
    most: int
    batch: int
    gib_an_image: float
    short_side: int
    train: dict[str, object]
    backbone: dict[str, object]
    rpn: dict[str, object]
    roi: dict[str, object]
    data: dict[str, object]
    jitter: bool = False
    enlarge: float = 1.0


_COMMON = {"schedule": "cosine", "clip_grad_norm": 10.0, "precision": "auto"}
_ADAMW = {
    **_COMMON,
    "optimizer": "adamw",
    "lr": 1e-3,
    "reference_batch": 4,
    "weight_decay": 1e-4,
    "warmup_steps": 50,
}
_SGD = {**_COMMON, "lr": 5e-3, "reference_batch": 2, "weight_decay": 5e-4, "warmup_steps": 200}
_LEARNING = {"name": "resnet18", "stride_placement": "torchvision", "norm": "batch", "freeze_at": 0}
_SMALL_RPN = {
    "width": 256,
    "objectness": "sigmoid",
    "train_anchors": "all",
    "min_size": 4.0,
    "train_pre_nms_top_n": 1000,
    "train_post_nms_top_n": 200,
    "test_pre_nms_top_n": 1000,
    "test_post_nms_top_n": 200,
}
_SMALL_ROI = {
    "pool": "roi_align",
    "pool_size": 7,
    "batch_size": 32,
    "positive_fraction": 0.5,
    "smooth_l1_beta": 1 / 9,
    "nms_thresh": 0.5,
}

RANDOM_ON_CPU = Recipe(
    name="what configs/bccd_r18.yaml was tried with: random weights, a CPU",
    epochs=8, least=600, most=4000, batch=4, gib_an_image=0.75, short_side=300,
    train=_ADAMW, backbone=_LEARNING, rpn=_SMALL_RPN, roi=_SMALL_ROI, data={},
)  # fmt: skip

PRETRAINED_ON_CPU = Recipe(
    name="what configs/voc_r50_half.yaml was tried with: pretrained weights, a CPU",
    epochs=13, least=1000, most=8000, batch=2, gib_an_image=1.5, short_side=400,
    train=_SGD, backbone={"norm": "frozen", "freeze_at": 2},
    rpn={
        **_SMALL_RPN,
        "train_pre_nms_top_n": 2000, "train_post_nms_top_n": 500,
        "test_pre_nms_top_n": 2000, "test_post_nms_top_n": 300,
    },
    roi={"pool": "roi_align", "batch_size": 64, "smooth_l1_beta": 1 / 9, "nms_thresh": 0.4},
    data={"color": 0.3}, jitter=True, enlarge=2.0,
)  # fmt: skip

# boxes at the border and small ones are learnt too, which the paper leaves out
_GPU_RPN = {"train_anchors": "all", "min_size": 4.0}

RANDOM_ON_GPU = Recipe(
    name="from random weights on a GPU",
    epochs=36, least=1500, most=90_000, batch=8, gib_an_image=4.0, short_side=600,
    train={**_ADAMW, "reference_batch": 8}, backbone=_LEARNING, rpn=_GPU_RPN, roi={}, data={},
    enlarge=2.0,  # the paper shows images of 375 px at 600
)  # fmt: skip

PRETRAINED_ON_GPU = Recipe(
    name="as the paper, from pretrained weights on a GPU",
    epochs=12, least=1500, most=90_000, batch=8, gib_an_image=5.0, short_side=600,
    train={**_SGD, "lr": 1e-3, "warmup_steps": 500},
    backbone={"norm": "frozen", "freeze_at": 2}, rpn=_GPU_RPN, roi={}, data={},
    enlarge=2.0,  # the paper shows images of 375 px at 600
)  # fmt: skip

FINE_TUNED_RATE = 0.2
"""Of the rate from scratch: what is there should move, not be learnt anew."""

FINE_TUNED_LENGTH = 0.5

_LARGEST = {"cpu": 400, "cuda": 800}
_SMALLEST = 96

_TO_SPARE = 0.003
"""Of the boxes: where not that many more than ENOUGH can be covered, only a great many anchors do.
"""

_CAP = 1000 / 600
"""max_side / short_side of py-faster-rcnn."""

_JITTER = (0.8, 0.9, 1.0, 1.1)
"""Scales of training images from pretrained weights: configs/voc_r50_half.yaml's, of its 400 px."""

_CANONICAL_SIDE, _FINEST_SIDE = 224, 32
"""px, of Lin et al. 2017: of the regions of p4, and of the anchors of p2."""

_FEW_OBJECTS = 1000
"""A class: with fewer, one box a region for all classes is learnt better than one a class."""


def recipe_of(start: Start, device: str) -> Recipe:
    """Return how a start is trained on a device."""
    learning = start is None or (isinstance(start, Pretrained) and start.facts.ours)
    if isinstance(start, Trained):
        learning = start.model.backbone.norm != "frozen"
    if device == "cpu":
        return RANDOM_ON_CPU if learning else PRETRAINED_ON_CPU
    return RANDOM_ON_GPU if learning else PRETRAINED_ON_GPU


class _Chooser:
    """Collects choices; what the user gave is not chosen."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given, self.choices = given, []
        self.known = dict(given)

    def pick(self, key: str, value: object, reason: str) -> None:
        """Choose a key that is neither given nor chosen."""
        if key not in self.known:
            self.choices.append(Choice(key, value, reason))
            self.known[key] = value

    def pick_section(self, section: str, values: Mapping[str, object], reason: str) -> None:
        """Choose several keys of a section in one line."""
        left = {k: v for k, v in values.items() if f"{section}.{k}" not in self.given}
        if left:
            self.choices.append(Choice(section, left, reason))
            self.known |= {f"{section}.{key}": value for key, value in left.items()}

    def __getitem__(self, key: str) -> object:
        return self.known.get(key)


def choose(
    train: Annotations,
    num_val: int,
    *,
    machine: Machine,
    start: Start,
    protocol: str,
    given: Mapping[str, object],
    steps: int | None = None,
) -> list[Choice]:
    """Return the settings of a run on `train`, in the order of a configuration's sections.

    num_val: images that it is evaluated on. protocol: of evaluation. given: settings of the user by
    whole key (model.input.short_side), which are not chosen, and which what depends on them
    follows. steps: where a time says how many.
    """
    found, recipe = _Chooser(given), recipe_of(start, machine.device)
    found.pick_section("data", _of_data(recipe, machine), f"{recipe.name}; {machine.cores} cores")
    if isinstance(start, Trained):
        _as_trained(found, start)
    else:
        _choose_model(found, train, recipe, start, machine)
    _choose_training(found, len(train), num_val, recipe, machine, start, steps)
    found.pick("eval.protocol", protocol, "the one that data in this layout are known by")
    found.pick(
        "eval.batch_size", min(4, recipe.batch * 2), "as many images at once as memory holds"
    )
    return found.choices


def _of_data(recipe: Recipe, machine: Machine) -> dict[str, object]:
    most = 1 if machine.device == "cpu" else 4
    return {**recipe.data, "workers": min(most, machine.cores - 1)}


def _as_trained(found: _Chooser, start: Trained) -> None:
    """The model of the weights, its first stages frozen."""
    tree = start.model.model_dump(mode="json", exclude_defaults=True)
    why = f"as {start.path} was trained"
    found.pick("model.layout", start.model.layout, why)
    sizes = _sizes_in_proportion(found, start.model.input)
    for section in ("fpn", "input", "anchors", "rpn", "roi"):
        values = tree.get(section, {})
        if section == "input" and sizes:
            found.pick_section("model.input", sizes, "as model.input.short_side, in proportion")
            values = {key: value for key, value in values.items() if key not in sizes}
        found.pick_section(f"model.{section}", values, why)
    backbone = start.model.backbone.model_dump(mode="json", exclude_none=True)
    backbone |= {"weights": str(start.path), "freeze_at": max(2, start.model.backbone.freeze_at)}
    why = f"{why}; conv1 and conv2_x stay as they are: what edges look like is learnt already"
    found.pick_section("model.backbone", backbone, why)


def _sizes_in_proportion(found: _Chooser, trained: InputConfig) -> dict[str, object]:
    """The other sizes of images where the user gives the short side alone; none where not."""
    told = found["model.input.short_side"]
    if told is None or int(told) == trained.short_side:
        return {}
    factor = int(told) / trained.short_side
    cap = int(found["model.input.max_side"] or max(1, round(trained.max_side * factor)))
    sides = sorted({min(cap, max(1, round(side * factor))) for side in trained.train_short_sides})
    return {"max_side": cap, "train_short_sides": sides} if sides else {"max_side": cap}


def _choose_model(
    found: _Chooser, train: Annotations, recipe: Recipe, start: Pretrained | None, machine: Machine
) -> None:
    backbone, why = dict(recipe.backbone), "no pretrained one at hand, so a small one that learns"
    pixels: dict[str, object] = {}
    if start is not None:
        backbone |= {**start.facts.settings, "weights": start.weights}
        why = f"pretrained, {start.where}: {start.facts.words}"
        if recipe.backbone["norm"] == "frozen":
            why += "; its norm and first stages stay as they are"
        spec = start.facts.input_spec
        if spec is not None:
            pixels = {
                "channel_order": spec.channel_order,
                "mean": list(spec.mean),
                "std": list(spec.std),
            }
    name = found["model.backbone.name"] or backbone.get("name", "resnet101")
    found.pick_section("model.backbone", _that_it_has(str(name), backbone), why)
    found.pick_section("model.input", pixels, "what these weights expect")
    _choose_scale(found, train, recipe, machine)
    found.pick_section("model.rpn", _of_rpn(recipe, train), recipe.name)
    roi = _of_roi(recipe, train)
    if name in VGGS:
        roi["pool_size"] = FC_GRID
    if found["model.layout"] == "fpn":
        roi["pool_size"] = 7
        finest = min(found["model.anchors.sizes"])
        side = _CANONICAL_SIDE * finest / _FINEST_SIDE
        found.pick("model.fpn.canonical_side", round(side), "as 224 px beside anchors from 32 px")
        found.pick("model.input.multiple_of", 32, "so that every level has whole cells")
    found.pick_section("model.roi", roi, recipe.name)


def _that_it_has(name: str, backbone: dict[str, object]) -> dict[str, object]:
    """Without what a VGG has not."""
    if name not in VGGS:
        return {"stride_placement": "torchvision", **backbone}
    absent = {"stride_placement", "pool1", *(() if name.endswith("_bn") else ("norm",))}
    return {key: value for key, value in backbone.items() if key not in absent}


def _choose_scale(found: _Chooser, train: Annotations, recipe: Recipe, machine: Machine) -> None:
    """The size of images, and the anchors that fit the boxes at it."""
    inside = found["model.rpn.train_anchors"] == "inside"
    style = str(found["model.anchors.style"] or "detectron2")
    if "model.input.short_side" not in found.given:
        side, why = _short_side(found, train, recipe, machine, style)
        found.pick("model.input.short_side", side, why)
    side = int(found["model.input.short_side"])
    resized = _input_of(found, recipe, side)
    found.pick("model.input.max_side", resized.max_side, "5/3 of short_side, as 1000 of 600")
    if recipe.jitter:
        sides = list(resized.train_short_sides)
        found.pick("model.input.train_short_sides", sides, "scales in training, around short_side")
    scaled = boxes_in_training(train, resized)
    among = _told_anchors(found)
    anchors = fewest_anchors(scaled, style=style, inside=inside, among=among)
    fit = fit_of(scaled, anchors, inside=inside, pyramid=among.pyramid)
    why = f"{fit.on_grid:.1%} of {fit.num_boxes} boxes reach IoU 0.5 with one, as few as do it"
    if fit.on_grid < ENOUGH:
        between = PYRAMID_STRIDES[0] if among.pyramid else STRIDE
        why += f"; {fit.by_shape:.1%} but for the {between} px between cells"
    chosen = {"sizes": list(anchors.sizes), "aspect_ratios": list(anchors.aspect_ratios)}
    found.pick_section("model.anchors", {**chosen, "style": style}, why)


def _told_anchors(found: _Chooser) -> AnchorChoice:
    """What anchors may be chosen from: beside the sizes or the aspect ratios of the user, only the
    others.
    """
    told = found["model.anchors.sizes"], found["model.anchors.aspect_ratios"]
    return AnchorChoice.of(*told, pyramid=found["model.layout"] == "fpn")


def _short_side(
    found: _Chooser, train: Annotations, recipe: Recipe, machine: Machine, style: str
) -> tuple[int, str]:
    """The smallest short side at which anchors can cover the boxes, and why."""
    inside = found["model.rpn.train_anchors"] == "inside"
    shorts = [side for side in train.image_sizes.min(axis=1).tolist() if side > 0]
    own = int(statistics.median(shorts)) if shorts else recipe.short_side
    first = max(_SMALLEST, min(recipe.short_side, int(recipe.enlarge * own)))
    longest = found["model.input.max_side"]
    first = min(first, longest or first)
    largest = max(first, min(_LARGEST[machine.device], longest or _LARGEST[machine.device]))
    rungs = [first, *(rung for rung in LARGER_SIDES if first < rung <= largest)]
    why = f"the short sides of the images are {own} px; at this one, anchors reach their boxes"
    for side in rungs:
        scaled = boxes_in_training(train, _input_of(found, recipe, side))
        told = _told_anchors(found)
        share = reachable(scaled, style=style, inside=inside, among=told).on_grid
        if share >= ENOUGH + _TO_SPARE or len(scaled) == 0:
            break
        why = "small boxes need it: the cells of the map are 16 px apart"
    if share < ENOUGH + _TO_SPARE:
        why = f"small boxes ask for more ({share:.1%} can be covered), which would take long"
    return side, why


def _input_of(found: _Chooser, recipe: Recipe, side: int) -> InputConfig:
    """The sizes of training images at a short side."""
    sides = found["model.input.train_short_sides"]
    cap = int(found["model.input.max_side"] or max(round(side * _CAP), *(sides or (0,))))
    if sides is None and recipe.jitter:
        sides = sorted({min(cap, round(side * factor)) for factor in _JITTER})
    return InputConfig(short_side=side, max_side=cap, train_short_sides=tuple(sides or ()))


def _of_rpn(recipe: Recipe, train: Annotations) -> dict[str, object]:
    """More proposals where images are full."""
    enough = 2 * _most_objects(train)
    rpn = dict(recipe.rpn)
    for key, default in (("train_post_nms_top_n", 2000), ("test_post_nms_top_n", 300)):
        if enough > rpn.get(key, default):
            rpn[key] = enough
    return rpn


def _of_roi(recipe: Recipe, train: Annotations) -> dict[str, object]:
    roi = dict(recipe.roi)
    if recipe.backbone["norm"] == "frozen" and train.num_objects < _FEW_OBJECTS * len(
        train.class_map
    ):
        roi["class_agnostic"] = True
    most = _most_objects(train)
    return {**roi, "detections_per_image": most} if most > 100 else roi


def _most_objects(train: Annotations) -> int:
    """Of one image."""
    return int(np.diff(train.offsets).max(initial=0))


def _choose_training(
    found: _Chooser,
    num_images: int,
    num_val: int,
    recipe: Recipe,
    machine: Machine,
    start: Start,
    steps: int | None,
) -> None:
    tuned = isinstance(start, Trained)
    scale = (int(found["model.input.short_side"] or 600) / recipe.short_side) ** 2
    room = machine.memory / 2 if machine.device == "cpu" else machine.memory - 2
    batch = recipe.batch
    while batch > 1 and (batch > num_images or batch * recipe.gib_an_image * scale > room):
        batch //= 2
    found.pick("train.batch_size", batch, f"{machine.memory:.0f} GiB of memory")
    batch = found["train.batch_size"]
    if batch == "auto":  # then a step has the reference batch
        batch = found["train.reference_batch"] or recipe.train["reference_batch"]
    batch = int(batch)
    if found["train.epochs"] is None:
        length, why = _length(recipe, num_images, batch, tuned)
        if steps is not None:
            length, why = steps, "what the time allows"
        found.pick("train.steps", length, why)
    else:
        length = max(1, round(float(found["train.epochs"]) * num_images / batch))
    length = int(found["train.steps"] or length)
    optimisation, why = dict(recipe.train), recipe.name
    told = found["train.optimizer"]
    if told is not None and told != optimisation.get("optimizer", "sgd"):
        optimisation = dict(_SGD if told == "sgd" else _ADAMW)
    if found["train.milestones"]:
        optimisation["schedule"] = "multistep"
    if tuned:
        optimisation["lr"] = float(f"{optimisation['lr'] * FINE_TUNED_RATE:g}")
        why = f"{FINE_TUNED_RATE:g} of the rate from scratch: what is there moves over"
    optimisation["warmup_steps"] = min(int(optimisation["warmup_steps"]), length // 5)
    found.pick_section("train", optimisation, why)
    if found["train.schedule"] == "plateau":
        found.pick("train.eval_every", max(1, length // 20), "a plateau is one of evaluations")
    found.pick("train.eval_every", "auto", f"some of {num_val} images five times, all at the end")


def _length(recipe: Recipe, num_images: int, batch: int, tuned: bool) -> tuple[int, str]:
    """Steps, and why so many; whole tens."""
    share = FINE_TUNED_LENGTH if tuned else 1.0
    least, most = (bound * share * recipe.batch / batch for bound in (recipe.least, recipe.most))
    wanted = recipe.epochs * share * num_images / batch
    length = min(max(wanted, least), most)
    length = max(1, round(length / 10)) * 10
    why = f"{length * batch / num_images:.3g} epochs of {num_images} images"
    if tuned:
        why += ", half of what it takes from scratch"
    if wanted > most:
        why += ", as many as take hours, not days; a time or train.steps says otherwise"
    return length, why

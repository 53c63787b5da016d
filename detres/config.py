"""Typed, frozen, strict configuration: YAML file + `--set key=value` -> Config.

Every key is checked at every depth; nothing is inherited between files. A default is the paper's
value where the paper has one, else py-faster-rcnn's; the comment beside it says where from. A YAML
file states only what differs.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, key and what was expected."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class BackboneConfig(Section):
    """Which residual network feeds the detector, and what of it learns."""

    name: str = "resnet101"
    shortcut: Literal["A", "B", "C"] | None = (
        None  # None: the network's own; B for every ResNet (paper, section 4.1)
    )
    stride_placement: Literal["original", "torchvision"] = (
        "original"  # stride 2 in the 1x1 (paper) or the 3x3 of a bottleneck
    )
    norm: Literal["frozen", "batch", "group"] = (
        "frozen"  # paper, appendix A: batch norm is fixed in detection
    )
    freeze_at: Annotated[int, Field(ge=0, le=4)] = (
        2  # conv1 and conv2_x stay as pretrained (py-faster-rcnn, Detectron)
    )
    weights: str | None = None  # a file, or a published name such as torchvision/resnet101.v1

    @model_validator(mode="after")
    def _frozen_needs_weights(self) -> BackboneConfig:
        if self.weights is None and (self.norm == "frozen" or self.freeze_at > 0):
            raise ValueError(
                "a backbone with random weights cannot be frozen: it would stay random. "
                "Give model.backbone.weights, or set model.backbone.norm=batch (or group) and "
                "model.backbone.freeze_at=0"
            )
        return self


class InputConfig(Section):
    """How an image reaches the network. mean and std are on the 0..255 scale, in channel_order."""

    shorter: Positive = 600  # px of the shorter side (paper, appendix A)
    longer: Positive = 1000  # px cap of the longer side (py-faster-rcnn)
    train_shorter: tuple[
        Positive, ...
    ] = ()  # drawn anew for every training image; empty: `shorter`
    mean: Triple = (123.675, 116.28, 103.53)  # the torchvision weights' RGB means
    std: Triple = (58.395, 57.12, 57.375)
    channel_order: Literal["rgb", "bgr"] = "rgb"


class AnchorConfig(Section):
    """Reference boxes: side in px of the square one, and height / width. 3 x 3 on VOC; COCO adds
    side 64 (Ren et al., 4.2).
    """

    sizes: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (128.0, 256.0, 512.0)
    aspect_ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    style: Literal["py-faster-rcnn", "torchvision", "detectron2"] = "py-faster-rcnn"


class RPNConfig(Section):
    """The region proposal network; values of py-faster-rcnn unless said."""

    width: Positive = 512
    objectness: Literal["softmax", "sigmoid"] = "softmax"
    train_anchors: Literal["inside", "all"] = "inside"
    fg_iou_thresh: Fraction = 0.7
    bg_iou_thresh: Fraction = 0.3
    batch_size: Positive = 256
    positive_fraction: Fraction = 0.5
    smooth_l1_beta: PositiveFloat = 1 / 9  # sigma 3
    min_size: Annotated[float, Field(ge=0)] = 16.0  # px of the original image
    nms_thresh: Fraction = 0.7
    train_pre_nms_top_n: Positive = 12000
    train_post_nms_top_n: Positive = 2000
    test_pre_nms_top_n: Positive = 6000
    test_post_nms_top_n: Positive = 300  # paper, appendix A: 300 proposals


class RoIConfig(Section):
    """Pooling, conv5 and the predictor; values of py-faster-rcnn unless said."""

    pool: Literal["roi_pool", "roi_align", "roi_align_aligned"] = "roi_pool"
    pool_size: Positive = (
        14  # before conv5, whose stride halves it (the paper gives no size; every C4 release)
    )
    sampling_ratio: Count = 2  # RoIAlign only; 0 = adaptive
    fg_iou_thresh: Fraction = 0.5
    bg_iou_thresh: Fraction = 0.5
    bg_iou_floor: Fraction = (
        0.0  # 0.1 in Ren et al. on VOC; 0 in py-faster-rcnn's Faster R-CNN configs and on COCO
    )
    batch_size: Positive = 128
    positive_fraction: Fraction = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # 1 / (.1, .1, .2, .2)
    smooth_l1_beta: PositiveFloat = 1.0
    score_thresh: Fraction = 0.05
    nms_thresh: Fraction = 0.3
    detections_per_image: Positive = 100


class ModelConfig(Section):
    """All that is needed, with a class list, to build the detector: stored in every weights
    file.
    """

    backbone: BackboneConfig
    input: InputConfig = InputConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RPNConfig = RPNConfig()
    roi: RoIConfig = RoIConfig()


class DataConfig(Section):
    """Where the annotated images are. Paths of files and splits are relative to `root`."""

    format: Literal["shapes", "coco", "voc"]
    root: str | None = (
        # --data, then this, then the environment variable DETRES_DATA; shapes: the cache folder
        None
    )
    train: tuple[
        str, ...
    ] = ()  # coco: annotation files; voc: YEAR/SPLIT of a VOCdevkit, or SPLIT of one year's folder
    train_images: tuple[str, ...] = ()  # coco: the image folder of each file
    val: tuple[str, ...] = ()
    val_images: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None  # only to train on a subset; otherwise the data say
    boxes: Literal["drop", "error"] = (
        "drop"  # what becomes of boxes without area or outside their image
    )
    shapes_train: Positive = 2500  # shapes only: images to draw
    shapes_val: Positive = 200
    flip: Fraction = 0.5
    color: Annotated[float, Field(ge=0, le=1)] = (
        0.0  # strength of the colour jitter; the paper's detector has none
    )
    workers: Count = 2

    @model_validator(mode="after")
    def _splits_fit_format(self) -> DataConfig:
        if self.format == "shapes":
            if self.train or self.val or self.train_images or self.val_images:
                raise ValueError(
                    "format shapes has splits of its own: leave out train, val, train_images and "
                    "val_images"
                )
            return self
        for split in ("train", "val"):
            files, folders = getattr(self, split), getattr(self, f"{split}_images")
            if not files:
                raise ValueError(
                    f"{split} is missing: format {self.format} needs at least one entry"
                )
            if self.format == "coco" and len(folders) != len(files):
                raise ValueError(
                    f"{split} has {len(files)} annotation files but {split}_images {len(folders)} "
                    "folders"
                )
            if self.format == "voc" and folders:
                raise ValueError(
                    f"{split}_images does not apply to format voc: images are in JPEGImages"
                )
        return self


class TrainConfig(Section):
    """The optimisation, in steps of `batch_size` images; `epochs` instead of `steps` makes the
    milestones epochs too.
    """

    batch_size: Positive = 2
    lr: PositiveFloat = 1e-3  # for `reference_batch` images
    reference_batch: Positive = (
        2  # py-faster-rcnn: one image, gradients of two added up (iter_size 2)
    )
    lr_scaling: Literal["linear", "none"] = "linear"
    steps: Positive | None = None
    epochs: PositiveFloat | None = None
    schedule: Literal["multistep", "plateau", "cosine"] = "multistep"
    milestones: tuple[PositiveFloat, ...] = ()  # where lr is multiplied by gamma
    gamma: Fraction = 0.1
    # plateau: evaluations in a row without a better score, after which lr is multiplied by gamma
    patience: Positive = 5
    warmup_steps: Count = 500  # Detectron; py-faster-rcnn has no warm-up
    warmup_factor: Fraction = 1 / 3
    optimizer: Literal["sgd", "adamw"] = (
        "sgd"  # adamw, not the paper's, for short runs from random weights
    )
    momentum: Fraction = 0.9  # sgd only
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    clip_grad_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16", "auto"] = (
        "fp32"  # of the forward pass; auto: the faster one here, settled at the start
    )
    log_every: Positive = 20
    eval_every: Count = 0  # steps; 0: only at the end
    save_every: Positive = 500

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.steps is None and self.epochs is None:
            raise ValueError("give either train.steps or train.epochs")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                "steps and epochs are both given: set the other to null, --set train.steps=... "
                "train.epochs=null"
            )
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} are not in rising order")
        length = self.steps if self.steps is not None else self.epochs
        if self.milestones and self.milestones[-1] >= length:
            raise ValueError(
                f"milestone {self.milestones[-1]:g} lies at or beyond the end of training, "
                f"{length:g}: "
                "give train.milestones for this length, [] for none"
            )
        if self.schedule != "multistep" and self.milestones:
            raise ValueError(f"schedule {self.schedule} has no milestones")
        if self.schedule == "plateau" and not self.eval_every:
            raise ValueError("schedule plateau waits for evaluations: give train.eval_every")
        if (
            self.schedule == "plateau"
            and self.steps is not None
            and self.patience * self.eval_every >= self.steps
        ):
            raise ValueError(
                f"schedule plateau would never act: train.patience {self.patience} evaluations, "
                f"one every {self.eval_every} steps, "
                f"are not over before the end, step {self.steps}"
            )
        return self

    def in_steps(self, num_images: int) -> tuple[int, tuple[int, ...]]:
        """Return the number of steps and the milestones in steps, for a training set of
        `num_images`.
        """
        if self.steps is not None:
            return self.steps, tuple(round(m) for m in self.milestones)
        per_epoch = num_images / self.batch_size
        return max(1, round(self.epochs * per_epoch)), tuple(
            round(m * per_epoch) for m in self.milestones
        )

    @property
    def effective_lr(self) -> float:
        """The learning rate for `batch_size` images."""
        return (
            self.lr * self.batch_size / self.reference_batch
            if self.lr_scaling == "linear"
            else self.lr
        )


class EvalConfig(Section):
    """How held-out images are scored during training and by tools/eval.py."""

    protocol: Literal["coco", "voc07", "voc12"] = "coco"
    batch_size: Positive = 1

    @property
    def best_metric(self) -> str:
        """The number that decides which weights are kept as best."""
        return "AP" if self.protocol == "coco" else "mAP"


class Config(Section):
    """One run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    seed: Count = 3  # py-faster-rcnn's
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    eval: EvalConfig = EvalConfig()


def load_config(
    path: str | Path, overrides: list[str] | None = None, kind: type[Section] = Config
) -> Section:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML too) and check everything.

    kind: what the file describes, a detection run or, for tools/train_cls.py, a
    ClassificationConfig.

    Raises ConfigError naming the file and the key: not YAML, a duplicate key, an unknown key (with
    the nearest valid one), a wrong type, an impossible pair; FileNotFoundError when there is no
    such file.
    """
    tree = read_tree(path)
    for override in overrides or []:
        _apply(tree, override)
    return check(kind, tree, f"{path}" + (" with --set" if overrides else ""))


def read_tree(path: str | Path) -> dict:
    """Return a YAML file as it stands, a mapping; raises as `load_config` does, but for unknown
    keys and wrong values.
    """
    path = Path(path)
    if not path.is_file():
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
            if path.parent.is_dir()
            else []
        )
        raise FileNotFoundError(
            f"no config file {path}"
            + (f"; did you mean {path.with_name(near[0])}?" if near else "")
        )
    tree = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: expected a mapping of sections (name, data, model, train, eval), got "
            f"{type(tree).__name__}"
        )
    return tree


def with_overrides(config: Section, overrides: list[str], source: str) -> Section:
    """Return `config` with `key.sub=value` overrides applied and everything checked again; raises
    ConfigError naming `source`.
    """
    tree = json.loads(config.model_dump_json())
    for override in overrides:
        _apply(tree, override)
    return check(type(config), tree, f"{source} with --set")


def check(section: type[Section], tree: dict, source: str) -> Section:
    """Return `section` built from a plain mapping; raises ConfigError naming `source` and every key
    at fault.
    """
    try:
        # JSON mode takes lists for tuples and is strict about the rest: no "12" for 12, no true for
        # 1.
        return section.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        by_key = {
            tuple(part for part in e["loc"] if part not in _UNION_TAGS): e for e in error.errors()
        }
        raise ConfigError(
            "\n".join(_explain(section, e, source) for e in by_key.values())
        ) from None
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from None


def to_yaml(config: Section) -> str:
    """Return the fully resolved configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)


def what_differs(config: Section) -> str:
    """Return as YAML the settings that are not the defaults."""
    return yaml.safe_dump(
        json.loads(config.model_dump_json(exclude_defaults=True)),
        sort_keys=False,
        default_flow_style=None,
        width=120,
    )


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 1e-4 as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    loader.flatten_mapping(node)
    seen: dict = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not a name", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key '{key}' is given twice", key_node.start_mark
            )
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # YAML 1.1 wants a dot in a float, so it takes 1e-4 for a string.
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _parse(text: str, source: str) -> object:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from None


def _apply(tree: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, for example --set train.lr=0.01")
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    try:
        node[last] = _parse(value, f"--set {override}")
    except ConfigError:
        if not value.startswith(("*", "{")):
            raise
        node[last] = value  # a pattern such as *.tar or {00..10}.tar, which is no YAML


_UNION_TAGS = ("bool", "literal['auto']")
"""What pydantic puts into the location of an error in a setting of two types, one error a type."""


def _explain(section: type[Section], error: dict, source: str) -> str:
    location = [part for part in error["loc"] if isinstance(part, str) and part not in _UNION_TAGS]
    key = (
        ".".join(str(part) for part in error["loc"] if part not in _UNION_TAGS) or section.__name__
    )
    if error["type"] == "extra_forbidden":
        valid = _keys_beside(section, location)
        near = [
            ".".join([*location[:-1], name])
            for name in difflib.get_close_matches(location[-1], valid, n=1)
        ]
        near = near or [
            path for path in _all_keys(section) if path.rpartition(".")[2] == location[-1]
        ]
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys are: {', '.join(valid)}"
        return f"{source}: unknown key '{key}'; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error", "missing"):
        return f"{source}: {key}: {message}"
    return f"{source}: {key}: {message}, got {error['input']!r}"


def _all_keys(section: type[Section]) -> list[str]:
    """Every key at every depth, dotted, the shallow ones first."""
    inside = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inside += [f"{name}.{key}" for key in _all_keys(field.annotation)]
    return [*section.model_fields, *sorted(inside, key=lambda key: key.count("."))]


def _keys_beside(section: type[Section], location: list[str]) -> list[str]:
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return list(section.model_fields)

"""The one bridge from configuration to objects: data sets, detector, optimizer settings,
evaluation, weights files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from backbones import BACKBONES, RESNETS, InputSpec, ResNet, create_backbone
from backbones import load_weights as load_backbone_weights
from detres.config import Config, DataConfig, InputConfig, ModelConfig, TrainConfig, check
from detres.data.coco import read_coco
from detres.data.loader import DetectionDataset, eval_loader
from detres.data.shapes import ensure_shapes
from detres.data.transforms import EvalTransform, TrainTransform
from detres.data.voc import read_voc
from detres.engine.checkpoint import (
    has_metadata,
    load_model_state,
    load_weights,
    require_metadata,
    save_weights,
)
from detres.engine.schedule import Schedule
from detres.engine.train import adamw, sgd
from detres.evaluation.coco_ap import CocoResult, evaluate_coco
from detres.evaluation.detect import detect
from detres.evaluation.voc_ap import VocResult, evaluate_voc
from detres.models.anchors import AnchorGenerator
from detres.models.box_coder import BoxCoder
from detres.models.faster_rcnn import FasterRCNN
from detres.models.matcher import Matcher
from detres.models.normalizer import PixelNormalizer
from detres.models.roi_head import BoxPredictor, RoIHead
from detres.models.roi_pool import RoIPooler
from detres.models.rpn import RPN, ProposalCounts, RPNHead
from detres.models.sampler import Sampler
from detres.structures import Annotations, ClassMap, Predictions

WEIGHTS_METADATA = ("format", "model", "classes", "data", "eval", "step")


def build_detector(config: ModelConfig, num_classes: int, *, pretrained: bool = True) -> FasterRCNN:
    """Return the detector for K = `num_classes` classes, channels last, on the CPU.

    pretrained: load `config.backbone.weights`; False where a checkpoint is about to fill every
    weight anyway. Raises what `build_backbone` raises.
    """
    backbone = build_backbone(config, pretrained=pretrained)
    head_channels = backbone.channels["conv5"]
    conv5 = backbone.pop_stage("conv5")
    channels, stride = backbone.channels["conv4"], backbone.strides["conv4"]
    anchors = AnchorGenerator(
        sizes=config.anchors.sizes,
        aspect_ratios=config.anchors.aspect_ratios,
        stride=stride,
        style=config.anchors.style,
    )
    rpn = RPN(
        head=RPNHead(
            in_channels=channels,
            width=config.rpn.width,
            num_anchors=anchors.num_anchors,
            objectness=config.rpn.objectness,
        ),
        anchors=anchors,
        box_coder=BoxCoder(),
        matcher=Matcher(
            fg_iou_thresh=config.rpn.fg_iou_thresh,
            bg_iou_thresh=config.rpn.bg_iou_thresh,
            allow_low_quality=True,
        ),
        sampler=Sampler(
            batch_size=config.rpn.batch_size, positive_fraction=config.rpn.positive_fraction
        ),
        train_counts=ProposalCounts(
            config.rpn.train_pre_nms_top_n, config.rpn.train_post_nms_top_n
        ),
        test_counts=ProposalCounts(config.rpn.test_pre_nms_top_n, config.rpn.test_post_nms_top_n),
        nms_thresh=config.rpn.nms_thresh,
        min_size=config.rpn.min_size,
        train_anchors=config.rpn.train_anchors,
        smooth_l1_beta=config.rpn.smooth_l1_beta,
    )
    roi_head = RoIHead(
        pooler=RoIPooler(
            kind=config.roi.pool,
            output_size=config.roi.pool_size,
            sampling_ratio=config.roi.sampling_ratio,
            stride=stride,
        ),
        conv5=conv5,
        predictor=BoxPredictor(in_channels=head_channels, num_classes=num_classes),
        box_coder=BoxCoder(config.roi.box_weights),
        matcher=Matcher(
            fg_iou_thresh=config.roi.fg_iou_thresh,
            bg_iou_thresh=config.roi.bg_iou_thresh,
            bg_iou_floor=config.roi.bg_iou_floor,
        ),
        sampler=Sampler(
            batch_size=config.roi.batch_size, positive_fraction=config.roi.positive_fraction
        ),
        score_thresh=config.roi.score_thresh,
        nms_thresh=config.roi.nms_thresh,
        detections_per_image=config.roi.detections_per_image,
        smooth_l1_beta=config.roi.smooth_l1_beta,
    )
    normalizer = PixelNormalizer(
        mean=config.input.mean, std=config.input.std, channel_order=config.input.channel_order
    )
    detector = FasterRCNN(
        normalizer=normalizer,
        backbone=backbone,
        rpn=rpn,
        roi_head=roi_head,
        shorter=config.input.shorter,
        longer=config.input.longer,
    )
    return detector.to(memory_format=torch.channels_last)


def build_backbone(config: ModelConfig, *, pretrained: bool) -> ResNet:
    """Return the network whose conv1..conv4 the detector shares and whose conv5 makes its head.

    Raises ValueError for a network without such stages, or when the weights are known to expect
    other input than `config.input` gives; WeightsError for unusable weights.
    """
    settings = config.backbone
    if settings.name in BACKBONES and settings.name not in RESNETS:
        raise ValueError(
            f"model.backbone.name: {settings.name} has no conv5 for the detector's head at stride "
            f"16; expected one of {', '.join(RESNETS)}"
        )
    backbone = create_backbone(
        settings.name,
        shortcut=settings.shortcut,
        stride_placement=settings.stride_placement,
        norm=settings.norm,
        num_classes=0,
        freeze_at=settings.freeze_at,
    )
    if pretrained and settings.weights is not None:
        expected = load_backbone_weights(backbone, settings.weights).input_spec
        if expected is not None and not _same_input(config.input, expected):
            raise ValueError(
                f"the backbone's weights {settings.weights} expect another input than model.input "
                "gives. For them: "
                f"--set model.input.channel_order={expected.channel_order} "
                f"'model.input.mean={list(expected.mean)}' "
                f"'model.input.std={list(expected.std)}'"
            )
    return backbone


def _same_input(given: InputConfig, expected: InputSpec) -> bool:
    """Whether channels come in the same order and scale; means may differ by the 2 grey levels by
    which projects round them.
    """
    same_means = all(abs(a - b) <= 2 for a, b in zip(given.mean, expected.mean, strict=True))
    same_scale = all(abs(a / b - 1) <= 0.05 for a, b in zip(given.std, expected.std, strict=True))
    return given.channel_order == expected.channel_order and same_means and same_scale


def with_data_root(data: DataConfig, root: str | Path | None) -> DataConfig:
    """Return `data` with its root settled: `root` (--data), else the config's, else the environment
    variable DETRES_DATA.

    A folder becomes an absolute path, so that weights are scored from any directory; shards may be
    behind a URL. Raises ValueError when none of the three is given, FileNotFoundError when the
    folder is not there. The shapes data need none; their root is the cache folder they are drawn
    into, and a folder that holds other files is refused.
    """
    chosen = root or data.root or os.environ.get("DETRES_DATA")
    if data.format == "shapes":
        cache = root or data.root
        if (
            cache
            and Path(cache).is_dir()
            and any(Path(cache).iterdir())
            and not any(Path(cache).glob("*shapes-v*"))
        ):
            raise ValueError(
                f"{cache} holds other files, and the data here are the embedded shapes, which are "
                "drawn into a cache folder of their own: "
                "leave --data out, or name a configuration of your data with --cfg"
            )
        return data.model_copy(update={"root": str(Path(cache).absolute()) if cache else None})
    if not chosen:
        raise ValueError(
            "where are the data? Give --data FOLDER, or data.root in the config, or the "
            "environment variable DETRES_DATA"
        )
    if data.format == "shards" and "://" in str(chosen):
        return data.model_copy(update={"root": str(chosen)})
    if not Path(chosen).is_dir():
        raise FileNotFoundError(f"data folder {chosen} does not exist or is not a folder")
    return data.model_copy(update={"root": str(Path(chosen).absolute())})


def read_split(data: DataConfig, split: str, *, boxes: str | None = None) -> Annotations:
    """Read the `split` ("train" or "val") of a data configuration whose root is settled.

    boxes: the box policy, by default the configuration's for train; ground truth for scoring is
    kept as it stands ("keep"), so that the numbers are those of the official tools.
    """
    policy = boxes or (data.boxes if split == "train" else "keep")
    if data.format == "shapes":
        root = ensure_shapes(
            Path(data.root) if data.root else None,
            num_train=data.shapes_train,
            num_val=data.shapes_val,
        )
        return read_coco(
            root / "annotations" / f"{split}.json", root / split, classes=data.classes, boxes=policy
        )
    root = Path(data.root)
    if data.format == "voc":
        return read_voc(root, list(getattr(data, split)), classes=data.classes, boxes=policy)
    files, folders = getattr(data, split), getattr(data, f"{split}_images")
    parts = [
        read_coco(root / file, root / folder, classes=data.classes, boxes=policy)
        for file, folder in zip(files, folders, strict=True)
    ]
    return Annotations.concatenate(parts)


def build_train_set(config: Config) -> DetectionDataset:
    """Return the training images with their augmentation; raises when no object is left to learn
    from.
    """
    annotations = read_split(config.data, "train")
    if not (~(annotations.crowd | annotations.difficult)).any():
        left_out = (
            "; ".join(f"{count} {reason}" for reason, count in annotations.dropped.items())
            or "none"
        )
        raise ValueError(
            f"{annotations.source}: {len(annotations)} images but no object to learn from. Left "
            f"out: {left_out}. "
            "Check data.classes, data.boxes and the crowd or difficult flags"
        )
    transform = TrainTransform(
        shorter=config.model.input.train_shorter or (config.model.input.shorter,),
        longer=config.model.input.longer,
        flip=config.data.flip,
        color=config.data.color,
    )
    return DetectionDataset(annotations, transform)


def build_val_set(model: ModelConfig, annotations: Annotations) -> DetectionDataset:
    """Return the held-out images at test size."""
    return DetectionDataset(
        annotations, EvalTransform(shorter=model.input.shorter, longer=model.input.longer)
    )


def build_optimizer(settings: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over what learns in `model`; raises ValueError when nothing does."""
    if settings.optimizer == "adamw":
        return adamw(model, weight_decay=settings.weight_decay)
    return sgd(model, momentum=settings.momentum, weight_decay=settings.weight_decay)


def build_schedule(settings: TrainConfig, num_images: int) -> Schedule:
    """Return the schedule, its length and milestones in steps, for a training set of
    `num_images`.
    """
    steps, milestones = settings.in_steps(num_images)
    return Schedule(
        lr=settings.effective_lr,
        steps=steps,
        shape=settings.schedule,
        milestones=milestones,
        gamma=settings.gamma,
        patience=settings.patience,
        warmup_steps=settings.warmup_steps,
        warmup_factor=settings.warmup_factor,
    )


def score(protocol: str, truth: Annotations, predictions: Predictions) -> CocoResult | VocResult:
    """Score predictions with "coco", "voc07" or "voc12"."""
    if protocol == "coco":
        return evaluate_coco(truth, predictions)
    return evaluate_voc(truth, predictions, metric=protocol)


def build_evaluation(
    config: Config, model: nn.Module, truth: Annotations, device: torch.device
) -> Callable[[], tuple[CocoResult | VocResult, Predictions]]:
    """Return a function that runs `model` over the held-out images and scores what it finds."""
    loader = eval_loader(
        build_val_set(config.model, truth),
        batch_size=config.eval.batch_size,
        num_workers=config.data.workers,
    )

    def evaluate() -> tuple[CocoResult | VocResult, Predictions]:
        predictions = detect(model, loader, truth.class_map, device)
        return score(config.eval.protocol, truth, predictions), predictions

    return evaluate


def save_detector(
    path: Path, detector: nn.Module, config: Config, class_map: ClassMap, step: int
) -> None:
    """Write a weights file that is enough by itself: weights, model and data configuration,
    classes, protocol.
    """
    metadata = {
        "format": "detres-detector-1",
        "model": config.model.model_dump_json(),
        "classes": json.dumps(class_map.to_dict()),
        "data": config.data.model_dump_json(),
        "eval": config.eval.model_dump_json(),
        "step": str(step),
    }
    save_weights(path, detector.state_dict(), metadata=metadata)


def is_detector(path: Path) -> bool:
    """Whether a weights file is one of `save_detector`, by its metadata; a file that cannot be read
    is not.
    """
    return has_metadata(path, WEIGHTS_METADATA)


def load_detector(path: Path) -> tuple[FasterRCNN, Config, ClassMap]:
    """Rebuild a detector from a file of `save_detector`: the model in eval mode, its configuration,
    its classes.

    Raises ValueError naming the file when it is no detres weights file or its weights do not fit
    its configuration.
    """
    tensors, metadata = load_weights(path)
    require_metadata(metadata, WEIGHTS_METADATA, path)
    tree = {key: json.loads(metadata[key]) for key in ("model", "data", "eval")}
    config = check(Config, {"name": Path(path).stem, "train": {"steps": 1}, **tree}, str(path))
    class_map = ClassMap.from_dict(json.loads(metadata["classes"]))
    detector = build_detector(config.model, len(class_map), pretrained=False)
    load_model_state(detector, tensors, path)
    return detector.eval(), config, class_map

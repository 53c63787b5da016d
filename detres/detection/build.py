"""The one bridge from a detection configuration to objects: data sets, loaders, detector."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from backbones import BACKBONES, RESNETS, Backbone, InputSpec, LoadReport, WeightsError
from backbones import load_weights as load_backbone_weights
from detres.detection.annotations import Annotations
from detres.detection.config import (
    BackboneConfig,
    DetectionConfig,
    InputConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
)
from detres.detection.data.box_policy import require_objects
from detres.detection.data.loader import DetectionDataset, collate
from detres.detection.data.proposals import read_proposals
from detres.detection.data.read import read_split
from detres.detection.data.transforms import EvalTransform, TrainTransform
from detres.detection.models.anchors import AnchorGenerator
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.box_head import BoxHead, Conv5BoxHead
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.models.matcher import Matcher
from detres.detection.models.roi_head import BoxPredictor, RoIHead, RoIHeadSettings
from detres.detection.models.roi_pool import RoIPooler
from detres.detection.models.rpn import RPN, ProposalCounts, RPNHead, RPNSettings
from detres.detection.models.sampler import Sampler
from detres.detection.structures import Proposals
from detres.engine.batches import StepSampler, make_loader, once_in_order
from detres.images.normalize import PixelNormalizer
from detres.network import NetworkWeightsError, build_network, settings_named

SHARED_STAGE, HEAD_STAGE = "conv4", "conv5"
"""The C4 layout (paper, appendix A): conv1..conv4 are shared, conv5 goes over every region."""


def build_detector(config: ModelConfig, num_classes: int, *, pretrained: bool = True) -> FasterRCNN:
    """Return the detector for K = `num_classes` classes, channels last, on the CPU.

    pretrained: load `config.backbone.weights`; False where a checkpoint is about to fill every
    weight anyway. Raises what `build_backbone` raises.
    """
    backbone = build_backbone(config, pretrained=pretrained)
    head_channels = backbone.channels[HEAD_STAGE]
    conv5 = backbone.pop_stage(HEAD_STAGE)
    channels, stride = backbone.channels[SHARED_STAGE], backbone.strides[SHARED_STAGE]
    anchors = AnchorGenerator(
        sizes=config.anchors.sizes,
        aspect_ratios=config.anchors.aspect_ratios,
        stride=stride,
        style=config.anchors.style,
    )
    pooler = RoIPooler(
        stage=SHARED_STAGE,
        stride=stride,
        kind=config.roi.pool,
        output_size=config.roi.pool_size,
        sampling_ratio=config.roi.sampling_ratio,
    )
    box_head = Conv5BoxHead(conv5=conv5, out_channels=head_channels)
    detector = FasterRCNN(
        normalizer=PixelNormalizer(input_spec_of(config.input)),
        backbone=backbone,
        stages=(SHARED_STAGE,),
        rpn=_build_rpn(config.rpn, {SHARED_STAGE: anchors}, channels),
        roi_head=_build_roi_head(config.roi, pooler, box_head, num_classes),
    )
    return detector.to(memory_format=torch.channels_last)


def _build_rpn(config: RPNConfig, anchors: dict[str, AnchorGenerator], channels: int) -> RPN:
    (num_anchors,) = {each.num_anchors for each in anchors.values()}  # one head serves all maps
    return RPN(
        head=RPNHead(
            in_channels=channels,
            width=config.width,
            num_anchors=num_anchors,
            objectness=config.objectness,
        ),
        anchors=anchors,
        box_coder=BoxCoder(),
        matcher=Matcher(
            fg_iou_thresh=config.fg_iou_thresh,
            bg_iou_thresh=config.bg_iou_thresh,
            allow_low_quality=True,
        ),
        sampler=Sampler(batch_size=config.batch_size, positive_fraction=config.positive_fraction),
        settings=RPNSettings(
            train_counts=ProposalCounts(config.train_pre_nms_top_n, config.train_post_nms_top_n),
            test_counts=ProposalCounts(config.test_pre_nms_top_n, config.test_post_nms_top_n),
            nms_thresh=config.nms_thresh,
            min_size=config.min_size,
            train_anchors=config.train_anchors,
            smooth_l1_beta=config.smooth_l1_beta,
            loss_normalizer=config.loss_normalizer,
        ),
    )


def _build_roi_head(
    config: RoIConfig, pooler: RoIPooler, box_head: BoxHead, num_classes: int
) -> RoIHead:
    return RoIHead(
        pooler=pooler,
        box_head=box_head,
        predictor=BoxPredictor(
            in_channels=box_head.out_channels,
            num_classes=num_classes,
            class_agnostic=config.class_agnostic,
        ),
        box_coder=BoxCoder(config.box_weights),
        matcher=Matcher(
            fg_iou_thresh=config.fg_iou_thresh,
            bg_iou_thresh=config.bg_iou_thresh,
            bg_iou_floor=config.bg_iou_floor,
        ),
        sampler=Sampler(batch_size=config.batch_size, positive_fraction=config.positive_fraction),
        settings=RoIHeadSettings(
            score_thresh=config.score_thresh,
            nms_thresh=config.nms_thresh,
            detections_per_image=config.detections_per_image,
            smooth_l1_beta=config.smooth_l1_beta,
        ),
    )


def build_backbone(config: ModelConfig, *, pretrained: bool) -> Backbone:
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
    backbone = build_network(settings, num_classes=0, freeze_at=settings.freeze_at)
    if pretrained and settings.weights is not None:
        expected = _load_weights(backbone, settings).input_spec
        if expected is not None and not _same_input(config.input, expected):
            raise ValueError(
                f"the backbone's weights {settings.weights} expect another input than model.input "
                f"gives. For them: model.input.channel_order={expected.channel_order} "
                f"'model.input.mean={list(expected.mean)}' 'model.input.std={list(expected.std)}'"
            )
    return backbone


def _load_weights(backbone: Backbone, settings: BackboneConfig) -> LoadReport:
    """As backbones.load_weights; the error names settings that fit where a detector can have
    them.
    """
    try:
        with settings_named(settings):
            return load_backbone_weights(backbone, settings.weights)
    except NetworkWeightsError as error:
        if error.settings.get("name", settings.name) in RESNETS:
            raise
        raise WeightsError(str(error)) from None


def input_spec_of(config: InputConfig) -> InputSpec:
    """Return what pixels are made of for the network."""
    return InputSpec(channel_order=config.channel_order, mean=config.mean, std=config.std)


def _same_input(given: InputConfig, expected: InputSpec) -> bool:
    """Whether channels come in the same order and scale; means may differ by the 2 grey levels by
    which projects round them.
    """
    same_means = all(abs(a - b) <= 2 for a, b in zip(given.mean, expected.mean, strict=True))
    same_scale = all(abs(a / b - 1) <= 0.05 for a, b in zip(given.std, expected.std, strict=True))
    return given.channel_order == expected.channel_order and same_means and same_scale


def build_train_set(config: DetectionConfig) -> DetectionDataset:
    """Return the training images with their augmentation, and the proposals of
    `data.train_proposals` where given; raises what the readers raise, and AnnotationError when no
    object is left to learn from.
    """
    annotations = read_split(config.data, "train")
    require_objects(annotations, "to learn from")
    given = config.model.input
    transform = TrainTransform(
        short_sides=given.train_short_sides or (given.short_side,),
        max_side=given.max_side,
        flip=config.data.flip,
        color=config.data.color,
    )
    proposals = saved_proposals(config.data.train_proposals, annotations)
    return DetectionDataset(annotations, transform, proposals)


def saved_proposals(path: str | None, annotations: Annotations) -> Proposals | None:
    """Return the proposals of a file for the images of `annotations`, in their order, None without
    a file; raises ProposalsError.
    """
    return None if path is None else read_proposals(path, annotations)[0]


def build_val_set(
    model: ModelConfig, annotations: Annotations, proposals: Proposals | None = None
) -> DetectionDataset:
    """Return the held-out images at test size, with their proposals where given; raises ValueError
    when there are none.
    """
    transform = EvalTransform(short_side=model.input.short_side, max_side=model.input.max_side)
    return DetectionDataset(annotations, transform, proposals)


def train_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Return a loader of (ImageBatch, list[Target]) for the steps start_step..steps - 1, in
    StepSampler's order.

    The batches depend on neither num_workers nor start_step, so a resumed run sees what a straight
    one would.
    """
    sampler = StepSampler(
        dataset.aspect_ratios(),
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        start_step=start_step,
    )
    return make_loader(dataset, collate, sampler, num_workers)


def eval_loader(dataset: DetectionDataset, *, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Return a loader of (ImageBatch, list[Target]) over all images once, in their order; the last
    batch may be short.
    """
    return make_loader(dataset, collate, once_in_order(len(dataset), batch_size), num_workers)

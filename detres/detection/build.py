"""The one bridge from a detection configuration to objects: data sets, loaders, detector."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader

from backbones import VGG, Backbone, InputSpec, LoadReport, WeightsError
from backbones import load_weights as load_backbone_weights
from detres.detection.annotations import Annotations
from detres.detection.config import (
    DETECTOR_BACKBONES,
    AnchorConfig,
    BackboneConfig,
    DataConfig,
    DetectionConfig,
    EvalConfig,
    ModelConfig,
    PixelConfig,
    RefineConfig,
    RoIConfig,
    RPNConfig,
)
from detres.detection.data.box_policy import require_objects
from detres.detection.data.loader import DetectionDataset, PyramidDataset, collate
from detres.detection.data.proposals import read_proposals
from detres.detection.data.read import read_split
from detres.detection.data.transforms import EvalTransform, TrainTransform
from detres.detection.inference.ensemble import Ensemble, Member
from detres.detection.inference.multi_scale import PyramidSettings
from detres.detection.inference.refine import RefineSettings
from detres.detection.models.anchors import AnchorGenerator
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.box_head import (
    BoxHead,
    Conv5BoxHead,
    ConvFcBoxHead,
    FcBoxHead,
    pyramid_layers,
)
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.models.fpn import FPN
from detres.detection.models.matcher import Matcher
from detres.detection.models.roi_head import BoxPredictor, RoIHead, RoIHeadSettings
from detres.detection.models.roi_pool import RoIPooler
from detres.detection.models.rpn import RPN, ProposalCounts, RPNHead, RPNSettings
from detres.detection.models.sampler import Sampler
from detres.detection.structures import Proposals, Scale
from detres.engine.batches import WHOLE, Share, StepSampler, make_loader, once_in_order
from detres.images.cache import ImageCache
from detres.images.normalize import PixelNormalizer
from detres.network import NetworkWeightsError, build_network, settings_named


def build_detector(config: ModelConfig, num_classes: int, *, pretrained: bool = True) -> FasterRCNN:
    """Return the detector for K = `num_classes` classes, channels last, on the CPU.

    pretrained: load `config.backbone.weights`; False where a checkpoint is about to fill every
    weight anyway. Raises what `build_backbone` raises.
    """
    backbone = build_backbone(config, pretrained=pretrained)
    if config.layout == "fpn":
        stages = PYRAMID_STAGES
        fpn = FPN(
            in_channels={stage: backbone.channels[stage] for stage in stages},
            strides=backbone.strides,
            width=config.fpn.width,
            batch_norm=config.fpn.norm == "batch",
        )
        channels, strides, box_head = fpn.width, fpn.levels, _pyramid_head(config)
    else:
        box_head, fpn = _take_box_head(backbone, config.roi), None
        stages = (list(backbone.channels)[-1],)
        channels, strides = backbone.channels[stages[0]], {stages[0]: backbone.strides[stages[0]]}
    anchors = _anchors(config.anchors, strides)
    pooled = list(strides)[: len(stages)]  # p6 is for proposals alone
    pooler = RoIPooler(
        strides={level: strides[level] for level in pooled},
        kind=config.roi.pool,
        output_size=config.roi.pool_size,
        sampling_ratio=config.roi.sampling_ratio,
        canonical_side=config.fpn.canonical_side,
    )
    detector = FasterRCNN(
        normalizer=PixelNormalizer(input_spec_of(config.input)),
        backbone=backbone,
        stages=stages,
        rpn=build_rpn(config.rpn, anchors, _rpn_head(config.rpn, anchors, channels)),
        roi_head=_build_roi_head(config.roi, pooler, box_head, num_classes),
        fpn=fpn,
        multiple_of=config.input.multiple_of,
    )
    return detector.to(memory_format=torch.channels_last)


PYRAMID_STAGES = ("conv2", "conv3", "conv4", "conv5")
"""Of a ResNet, what a feature pyramid is made of (Lin et al. 2017, section 3)."""


def _anchors(config: AnchorConfig, strides: dict[str, int]) -> dict[str, AnchorGenerator]:
    """The anchors of every map: all sizes on one, of several one size each."""
    of_each = [config.sizes] if len(strides) == 1 else [(size,) for size in config.sizes]
    return {
        name: AnchorGenerator(
            sizes=sizes,
            aspect_ratios=config.aspect_ratios,
            stride=stride,
            style=config.style,
        )
        for (name, stride), sizes in zip(strides.items(), of_each, strict=True)
    }


def _pyramid_head(config: ModelConfig) -> BoxHead:
    roi = config.roi
    layers = pyramid_layers(
        in_features=config.fpn.width * roi.pool_size**2, width=roi.fc_width, num_layers=roi.num_fc
    )
    fc = FcBoxHead(layers=layers, out_channels=roi.fc_width)
    if not roi.num_convs:
        return fc
    return ConvFcBoxHead(in_channels=config.fpn.width, num_convs=roi.num_convs, fc=fc)


def _take_box_head(backbone: Backbone, config: RoIConfig) -> BoxHead:
    """Take out of the network what goes over every region, and leave what is shared (paper,
    appendix A): conv5 of a ResNet, which leaves conv1..conv4; fc6 and fc7 of a VGG, which leave
    conv1..conv5.
    """
    if isinstance(backbone, VGG):
        layers = backbone.pop_head()
        for module in layers:
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
        return FcBoxHead(layers=layers, out_channels=backbone.num_features)
    return Conv5BoxHead(conv5=backbone.pop_stage("conv5"), out_channels=backbone.num_features)


def _rpn_head(config: RPNConfig, anchors: dict[str, AnchorGenerator], channels: int) -> RPNHead:
    return RPNHead(
        in_channels=channels,
        width=config.width,
        num_anchors=next(iter(anchors.values())).num_anchors,
        objectness=config.objectness,
        num_convs=config.num_convs,
    )


def build_rpn(config: RPNConfig, anchors: dict[str, AnchorGenerator], head: nn.Module) -> RPN:
    """Return the RPN of `config` with its anchors by stage; one head serves all maps."""
    return RPN(
        head=head,
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
            in_channels=box_head.out_channels * (2 if config.context else 1),
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
        context=config.context,
    )


def build_ensemble(
    members: Sequence[tuple[FasterRCNN, ModelConfig]], config: EvalConfig
) -> Ensemble:
    """Return how one or more detectors detect, as `eval` says; raises what Ensemble raises."""
    return Ensemble(
        [
            Member(
                model,
                scale=(own.input.short_side, own.input.max_side),
                pyramid=PyramidSettings(
                    scales=config.multi_scale.scales(own.input),
                    region_side=config.multi_scale.region_side,
                    merge=config.multi_scale.merge,
                ),
            )
            for model, own in members
        ],
        _refine_settings(config.refine),
    )


def _refine_settings(config: RefineConfig) -> RefineSettings:
    refines = config.iterations > 0
    votes = config.voting == "always" or (refines and config.voting == "after_refinement")
    return RefineSettings(
        iterations=config.iterations,
        nms_thresh=config.nms_thresh if refines else None,
        voting_iou=config.voting_iou if votes else None,
    )


def build_backbone(config: ModelConfig, *, pretrained: bool) -> Backbone:
    """Return the network that is both what the detector shares and its box head.

    Raises ValueError when the weights are known to expect other input than `config.input` gives;
    WeightsError for unusable weights.
    """
    settings = config.backbone
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
        if error.settings.get("name", settings.name) in DETECTOR_BACKBONES:
            raise
        raise WeightsError(str(error)) from None


def input_spec_of(config: PixelConfig) -> InputSpec:
    """Return what pixels are made of for the network."""
    return InputSpec(channel_order=config.channel_order, mean=config.mean, std=config.std)


def _same_input(given: PixelConfig, expected: InputSpec) -> bool:
    """Whether channels come in the same order and scale; means may differ by the 2 grey levels by
    which projects round them.
    """
    same_means = all(abs(a - b) <= 2 for a, b in zip(given.mean, expected.mean, strict=True))
    same_scale = all(abs(a / b - 1) <= 0.05 for a, b in zip(given.std, expected.std, strict=True))
    return given.channel_order == expected.channel_order and same_means and same_scale


def build_train_set(
    config: DetectionConfig, annotations: Annotations | None = None
) -> DetectionDataset:
    """Return the training images with their augmentation, and the proposals of
    `data.train_proposals` where given; raises what the readers raise, and AnnotationError when no
    object is left to learn from.

    annotations: those of `config`, where they were read already.
    """
    if annotations is None:
        annotations = read_split(config.data, "train")
    require_objects(annotations, "to learn from")
    given = config.model.input
    transform = TrainTransform(
        short_sides=given.train_short_sides or (given.short_side,),
        max_side=given.max_side,
        flip=config.data.flip,
        color=config.data.color,
        resizing=given.resize,
    )
    proposals = saved_proposals(config.data.train_proposals, annotations)
    return DetectionDataset(
        annotations,
        transform,
        proposals,
        needed=transform.largest if config.data.reduced_decode else None,
        cache=image_cache(config.data, len(annotations)),
    )


def image_cache(data: DataConfig, number: int) -> ImageCache | None:
    """Return what keeps the decoded ones of `number` training images, None where that is not asked
    for; raises ValueError where the workers could not share it.
    """
    if not data.cache_gib:
        return None
    if data.workers and multiprocessing.get_start_method() != "fork":
        raise ValueError(
            "data.cache_gib: the workers would not share it on this system, where they are not "
            "forked: set data.workers=0 or data.cache_gib=0"
        )
    return ImageCache(number, max(1, round(data.cache_gib * 2**30)))


def saved_proposals(path: str | None, annotations: Annotations) -> Proposals | None:
    """Return the proposals of a file for the images of `annotations`, in their order, None without
    a file; raises ProposalsError.
    """
    return None if path is None else read_proposals(path, annotations)[0]


def build_val_set(
    model: ModelConfig,
    annotations: Annotations,
    other_scales: Sequence[Scale] = (),
    proposals: Proposals | None = None,
) -> DetectionDataset:
    """Return the held-out images at test size, with their proposals where given; raises ValueError
    when there are none.

    other_scales: further ones at which a detector wants to see them (Ensemble.other_scales).
    """
    own, resizing = (model.input.short_side, model.input.max_side), model.input.resize
    if other_scales:
        return PyramidDataset(annotations, (own, *other_scales), proposals, resizing)
    transform = EvalTransform(short_side=own[0], max_side=own[1], resizing=resizing)
    return DetectionDataset(annotations, transform, proposals)


def train_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    share: Share = WHOLE,
) -> DataLoader:
    """Return a loader of (ImageBatch, list[Target]) for the steps start_step..steps - 1, in
    StepSampler's order, of `batch_size` images each, or the `share` of them in its parts.

    The batches depend on neither num_workers nor start_step, so a resumed run sees what a straight
    one would.
    """
    sampler = StepSampler(
        dataset.aspect_ratios(),
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        start_step=start_step,
        share=share,
    )
    return make_loader(dataset, collate, sampler, num_workers)


def eval_loader(
    dataset: DetectionDataset, *, batch_size: int, num_workers: int = 0, share: Share = WHOLE
) -> DataLoader:
    """Return a loader of (ImageBatch, list[Target]) over all images once, in their order, or the
    `share` of their batches; the last batch may be short.
    """
    together = dataset.collate if isinstance(dataset, PyramidDataset) else collate
    batches = once_in_order(len(dataset), batch_size, share)
    return make_loader(dataset, together, batches, num_workers)

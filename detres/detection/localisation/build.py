"""The one bridge from a localisation configuration to objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from backbones import VGG, Backbone
from detres.class_map import ClassMap
from detres.detection.annotations import Annotations, offsets_of
from detres.detection.build import build_backbone, build_rpn, image_cache, input_spec_of
from detres.detection.config import DataConfig
from detres.detection.data.box_policy import require_objects
from detres.detection.data.crops import ProposalsByImage, RandomCrop, WarpedProposal
from detres.detection.data.loader import DetectionDataset
from detres.detection.data.read import read_split, read_to_detect
from detres.detection.localisation.config import LocalisationConfig, LocalisationModelConfig
from detres.detection.models.anchors import AnchorGenerator
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.class_rpn import ClassRPN, ClassRPNHead
from detres.detection.models.rcnn import RCNN, RCNNSettings
from detres.images.normalize import PixelNormalizer


def build_class_rpn(
    config: LocalisationModelConfig, num_classes: int, *, pretrained: bool = True
) -> ClassRPN:
    """Return the per-class RPN for K = `num_classes` classes, channels last, on the CPU.

    pretrained: load `config.backbone.weights`; False where a checkpoint is about to fill every
    weight anyway. Raises what `build_backbone` raises.
    """
    backbone = build_backbone(config, pretrained=pretrained)
    stage = config.rpn.stage
    _drop_stages_behind(backbone, stage)
    anchors = AnchorGenerator(
        sizes=config.anchors.sizes,
        aspect_ratios=config.anchors.aspect_ratios,
        stride=backbone.strides[stage],
        style=config.anchors.style,
    )
    head = ClassRPNHead(
        in_channels=backbone.channels[stage],
        width=config.rpn.width,
        num_anchors=anchors.num_anchors,
        num_classes=num_classes,
    )
    model = ClassRPN(
        normalizer=PixelNormalizer(input_spec_of(config.input)),
        backbone=backbone,
        rpn=build_rpn(config.rpn, {stage: anchors}, head),
    )
    return model.to(memory_format=torch.channels_last)


def build_rcnn(
    config: LocalisationModelConfig,
    num_classes: int,
    proposer: ClassRPN,
    *,
    pretrained: bool = True,
) -> RCNN:
    """Return R-CNN on the proposals of `proposer`, which is of the same classes; otherwise as
    build_class_rpn.
    """
    model = RCNN(
        normalizer=PixelNormalizer(input_spec_of(config.input)),
        net=build_backbone(config, pretrained=pretrained),
        num_classes=num_classes,
        crop_side=config.input.crop_side,
        box_coder=BoxCoder(config.rcnn.box_weights),
        settings=RCNNSettings(config.rcnn.fg_iou_thresh, config.rcnn.smooth_l1_beta),
        proposer=proposer,
    )
    return model.to(memory_format=torch.channels_last)


def build_localiser(
    config: LocalisationModelConfig, proposer: LocalisationModelConfig | None, num_classes: int
) -> ClassRPN | RCNN:
    """Return what a file is about to fill: with the settings of a per-class RPN, `proposer`, R-CNN
    on its proposals, else the per-class RPN of `config`.
    """
    if proposer is None:
        return build_class_rpn(config, num_classes, pretrained=False)
    inner = build_class_rpn(proposer, num_classes, pretrained=False)
    return build_rcnn(config, num_classes, inner, pretrained=False)


def _drop_stages_behind(backbone: Backbone, stage: str) -> None:
    """Take out what the RPN does not read."""
    if isinstance(backbone, VGG):  # whose last stage it reads: LocalisationModelConfig
        backbone.pop_head()
        return
    for name in reversed(list(backbone.channels)):
        if name == stage:
            return
        backbone.pop_stage(name)


def read_localisation(data: DataConfig, split: str) -> Annotations:
    """Read the `split` ("train" or "val") of a data configuration as images of one class each:
    that of the largest object, whose others are left out, as images without objects are.

    Of ImageNet's localisation task all objects of an image have its class. Crowd and difficult
    objects do not count. Raises what read_split raises, AnnotationError when no image is left.
    """
    return _localised(read_split(data, split))


def read_to_localise(data: DataConfig, split: str, class_map: ClassMap) -> Annotations:
    """Read the `split` ("val" or "test") of a data configuration whose root is settled, for a
    localiser of the classes `class_map`: as read_localisation, and of "test", where the objects are
    not known, all images (Annotations.without_truth). Raises what read_to_detect raises beside.
    """
    annotations = read_to_detect(data, split, class_map)
    return annotations if annotations.without_truth is not None else _localised(annotations)


def _localised(annotations: Annotations) -> Annotations:
    require_objects(annotations, "to localise")
    return of_main_class(annotations)


def of_main_class(annotations: Annotations) -> Annotations:
    """Return the images with an object, each with the objects of its largest one's class, crowd and
    difficult ones left out; N may become 0. What was left out is noted.
    """
    owners = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    sides = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    usable = ~(annotations.crowd | annotations.difficult) & (sides > 0).all(axis=1)
    rows = np.flatnonzero(usable)
    order = np.lexsort((rows, -sides[rows].prod(axis=1), owners[rows]))
    images, first = np.unique(owners[rows][order], return_index=True)
    main = np.zeros(len(annotations), np.int64)
    main[images] = annotations.labels[rows[order[first]]]
    keep = usable & (annotations.labels == main[owners])
    new_row = np.full(len(annotations), -1)
    new_row[images] = np.arange(len(images))
    left_out, others = len(annotations) - len(images), int(usable.sum() - keep.sum())
    notes = list(annotations.notes)
    if left_out or others:
        notes.append(
            f"{annotations.source}: of each image the objects of its largest one's class; left out "
            f"are {left_out} images without objects and {others} objects of other classes"
        )
    of_objects = ("boxes", "labels", "areas", "crowd", "difficult", "ids")
    of_images = ("image_ids", "image_files", "image_sizes")
    return replace(
        annotations,
        **{name: getattr(annotations, name)[keep] for name in of_objects},
        **{name: getattr(annotations, name)[images] for name in of_images},
        sides=None if annotations.sides is None else annotations.sides[keep],
        offsets=offsets_of(new_row[owners[keep]], len(images)),
        notes=tuple(notes),
    )


def build_train_set(
    config: LocalisationConfig,
    annotations: Annotations,
    proposals: ProposalsByImage | None = None,
) -> DetectionDataset:
    """Return what is learned from: random crops, or with proposals warped regions."""
    given = config.model.input
    if proposals is None:
        transform = RandomCrop(
            short_sides=given.train_short_sides, crop_side=given.crop_side, flip=config.data.flip
        )
    else:
        transform = WarpedProposal(
            proposals=proposals,
            side=given.crop_side,
            flip=config.data.flip,
            positive_fraction=config.model.rcnn.positive_fraction,
            fg_iou_thresh=config.model.rcnn.fg_iou_thresh,
        )
    return DetectionDataset(
        annotations, transform, cache=image_cache(config.data, len(annotations))
    )

"""How a trained detector, or several, detect: proposals, scoring, refinement, detections.

What the paper's appendix B adds at test time meets here: regions pooled from several scales, boxes
refined and voted on, members whose opinions are averaged. Nothing of it switched on, one detector
does what its own `forward` does, bit for bit. Shapes: N images, M members, P proposals of an image,
K classes without background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detres.boxes import clip_boxes, scale_boxes
from detres.detection.inference.multi_scale import PyramidLevel, PyramidSettings, pyramid_features
from detres.detection.inference.refine import (
    RefineSettings,
    boxes_to_refine,
    refined_detections,
)
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.models.roi_head import RoIHead
from detres.detection.structures import Detections, ImageBatch, Scale


@dataclass(frozen=True)
class Member:
    """A detector and how it looks at an image: `scale`, where it proposes, and `pyramid`, where and
    how it scores.
    """

    model: FasterRCNN
    scale: Scale
    pyramid: PyramidSettings

    @property
    def scales(self) -> tuple[Scale, ...]:
        """All at which it sees an image, its own first."""
        return tuple(dict.fromkeys((self.scale, *self.pyramid.scales)))


class MemberView:
    """What one member sees of a batch, its maps at every scale; computed once, asked twice."""

    def __init__(self, member: Member, batches: dict[Scale, ImageBatch]) -> None:
        self.model, self.pyramid = member.model, member.pyramid
        self.images = batches[member.scale]
        levels = {
            scale: PyramidLevel(member.model.features(batch), batch.sizes)
            for scale, batch in batches.items()
        }
        self.features = levels[member.scale].features
        self.levels = [levels[scale] for scale in member.pyramid.scales]

    def proposals(self, frame: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return N tensors (P, 4) xyxy px of images of the N sizes `frame` (h, w)."""
        proposals, _ = self.model.rpn(self.features, self.images, None)
        return [
            clip_boxes(scale_boxes(boxes, from_size=own, to_size=size), size)
            for boxes, own, size in zip(proposals, self.images.sizes, frame, strict=True)
        ]

    def score(self, rois: list[Tensor], frame: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return boxes (R, K, 4) and scores (R, K) of RoIs, N tensors (P, 4), all in `frame`."""
        head = self.model.roi_head
        logits, deltas = head.score(
            rois,
            frame,
            lambda regions: pyramid_features(head, self.levels, regions, frame, self.pyramid),
        )
        return head.decode(logits, deltas, rois)


class Ensemble(nn.Module):
    """Detects with one or more members: the union of their proposals, each scored by all of them,
    class probabilities and boxes averaged (paper, appendix B).

    Called with an ImageBatch at `scale`, the first member's, with those at `other_scales` beside
    it; returns one Detections an image in the pixels of that batch, in which all boxes are between
    two steps. What becomes a detection (score cut, NMS, how many) is as the first member has it.
    With M members of P proposals the heads work M x M x P times; a round of refinement repeats
    that.

    Raises ValueError without members, for members of different numbers of classes, and of different
    strides: the pixels a cell of the map that regions are pooled from.
    """

    def __init__(self, members: Sequence[Member], refine: RefineSettings) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one detector")
        for number, member in enumerate(members[1:], start=2):
            first, head = members[0].model.roi_head, member.model.roi_head
            for what, own, its in (
                ("classes", first.predictor.num_classes, head.predictor.num_classes),
                ("px a cell of the maps", _strides(first), _strides(head)),
            ):
                if own != its:
                    raise ValueError(
                        f"detectors cannot be combined: the first has {own} {what}, number "
                        f"{number} has {its}"
                    )
        self.members, self.refine = tuple(members), refine
        self.models = nn.ModuleList(member.model for member in members)
        self.training = members[0].model.training

    @property
    def scale(self) -> Scale:
        """Of the batches that it is called with."""
        return self.members[0].scale

    @property
    def other_scales(self) -> tuple[Scale, ...]:
        """Those that the batches need beside it."""
        wanted = dict.fromkeys(scale for each in self.members for scale in each.scales)
        return tuple(scale for scale in wanted if scale != self.scale)

    def describe(self) -> str:
        """Return in words what is done beyond one plain detector; nothing: an empty text."""
        first, refine = self.members[0], self.refine
        parts = [f"{len(self.members)} detectors"] if len(self.members) > 1 else []
        if any(each.pyramid.scales != (each.scale,) for each in self.members):
            sides = ", ".join(str(short_side) for short_side, _ in first.pyramid.scales)
            parts.append(f"short sides {sides} px, maxout of {first.pyramid.merge}")
        if refine.iterations:
            nms = f"NMS {refine.nms_thresh:g}" if refine.nms_thresh is not None else "own NMS"
            parts.append(f"{refine.iterations} x box refinement, {nms}")
        if refine.voting_iou is not None:
            parts.append(f"box voting from IoU {refine.voting_iou:g}")
        return "; ".join(parts)

    def forward(self, images: ImageBatch) -> list[Detections]:
        """Return one Detections an image, in the pixels of the batch; where it brings proposals
        (Fast R-CNN), they take the place of the members' own. Raises ValueError when the batch
        lacks a scale.
        """
        views = self.views(images)
        if images.proposals is not None:
            rois = list(images.proposals)
        else:
            proposals = [view.proposals(images.sizes) for view in views]
            rois = [torch.cat(of_image) for of_image in zip(*proposals, strict=True)]
        rounds = [self.score(views, rois, images.sizes)]
        for _ in range(self.refine.iterations):
            rois = [boxes_to_refine(boxes, scores) for boxes, scores in rounds[-1]]
            rounds.append(self.score(views, rois, images.sizes))
        head = self.members[0].model.roi_head
        return [
            refined_detections(
                head,
                torch.cat([boxes for boxes, _ in of_image]),
                torch.cat([scores for _, scores in of_image]),
                self.refine,
            )
            for of_image in zip(*rounds, strict=True)
        ]

    def views(self, images: ImageBatch) -> list[MemberView]:
        """Return what each member sees of a batch."""
        return [MemberView(member, self._batches_for(member, images)) for member in self.members]

    def score(
        self, views: Sequence[MemberView], rois: list[Tensor], frame: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return of each image the clipped boxes (P, K, 4) and the scores (P, K) of its RoIs, the
        mean of what the members say.

        rois: N tensors (P, 4) xyxy px of images of the N sizes `frame` (h, w); P may be 0.
        """
        boxes, scores = zip(*(view.score(rois, frame) for view in views), strict=True)
        counts = [len(each) for each in rois]
        of_images = zip(_mean(boxes).split(counts), _mean(scores).split(counts), strict=True)
        return [
            (clip_boxes(box, size), score)
            for (box, score), size in zip(of_images, frame, strict=True)
        ]

    def _batches_for(self, member: Member, images: ImageBatch) -> dict[Scale, ImageBatch]:
        there = {self.scale: images, **images.others}
        missing = [scale for scale in member.scales if scale not in there]
        if missing:
            raise ValueError(
                f"the batch lacks its images at short side {missing[0][0]} px, long side at most "
                f"{missing[0][1]} px: make it with the detector's other_scales"
            )
        return {scale: there[scale] for scale in member.scales}


def _strides(head: RoIHead) -> str:
    """The px a cell of the maps that its regions are pooled from, in words."""
    return ", ".join(map(str, head.pooler.strides.values()))


def _mean(values: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape; of one tensor that tensor, bit for bit."""
    return sum(values[1:], start=values[0]) / len(values)

"""RoI head: a feature vector of every region, then class scores and class-specific boxes (paper,
appendix A).

Shapes: N images, R RoIs of all images, K classes without background, D detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from detres.boxes import clip_boxes, large_enough
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.box_head import BoxHead
from detres.detection.models.context import beside_whole_images, with_whole_images
from detres.detection.models.matcher import Matcher
from detres.detection.models.roi_pool import RoIPooler
from detres.detection.models.sampler import Sampler
from detres.detection.structures import (
    Detections,
    FeatureMap,
    ImageBatch,
    Target,
    index_of,
    label_of,
)
from detres.losses import Losses

MIN_DETECTION_SIDE = 1e-2
"""Px. Boxes that clipping left without extent are no detections; torchvision's value."""


class BoxPredictor(nn.Module):
    """The two sibling layers that replace the classifier: K + 1 class logits (background first) and
    4 deltas a class, or 4 for all of them (class_agnostic).

    N(0, 0.01) and N(0, 0.001), biases 0 (py-faster-rcnn's prototxt), so that the first loss is near
    log(K + 1).
    """

    def __init__(self, *, in_channels: int, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_boxes = 1 if class_agnostic else num_classes
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, self.num_boxes * 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, K + 1) and deltas (R, K, 4), float32, from features (R, C)."""
        deltas = self.bbox_pred(x).float().view(-1, self.num_boxes, 4)
        return self.cls_score(x).float(), deltas.expand(-1, self.num_classes, 4)


@dataclass(frozen=True)
class RoIHeadSettings:
    """score_thresh, nms_thresh (IoU), detections_per_image: what becomes a detection.
    smooth_l1_beta: where the box loss turns from quadratic to linear; 1 is py-faster-rcnn's, 0 is
    L1.
    """

    score_thresh: float
    nms_thresh: float
    detections_per_image: int
    smooth_l1_beta: float


class RoIHead(nn.Module):
    """Classifies and refines RoIs: pool, box head, predict.

    box_head: (R, C, S, S) -> (R, D), any module. context: the feature of the whole image goes
    beside that of each of its regions (models.context), so predictor takes 2D. In training the
    ground-truth boxes join the proposals (py-faster-rcnn). Scoring (`forward`) and postprocessing
    are two steps, so that refinement, several scales and ensembles can stand between them.
    """

    def __init__(
        self,
        *,
        pooler: RoIPooler,
        box_head: nn.Module,
        predictor: BoxPredictor,
        box_coder: BoxCoder,
        matcher: Matcher,
        sampler: Sampler,
        settings: RoIHeadSettings,
        context: bool = False,
    ) -> None:
        super().__init__()
        self.pooler = pooler
        self.box_head = box_head
        self.predictor = predictor
        self.box_coder = box_coder
        self.matcher = matcher
        self.sampler = sampler
        self.settings = settings
        self.context = context

    def forward(
        self,
        features: dict[str, FeatureMap],
        rois: list[Tensor],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score RoIs: return logits (R, K + 1) and deltas (R, K, 4).

        features: by stage. rois: N tensors (R_n, 4) xyxy px; R may be 0. sizes: N (h, w) px of the
        images without their padding, which a head with context needs; it raises ValueError without.
        """
        return self.score(rois, sizes, lambda regions: self.region_features(features, regions))

    def region_features(self, features: dict[str, FeatureMap], rois: list[Tensor]) -> Tensor:
        """Return (R, D) of RoIs, N tensors (R_n, 4) xyxy px, by the layers after pooling; R > 0."""
        if isinstance(self.box_head, BoxHead):
            return self.box_head.of_regions(self.pooler, features, rois)
        return self.box_head(self.pooler(features, rois))

    def score(
        self,
        rois: list[Tensor],
        sizes: Sequence[tuple[int, int]] | None,
        region_features: Callable[[list[Tensor]], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, of RoIs whose features (R, D) `region_features` makes."""
        if sum(map(len, rois)) == 0:
            # by the predictor, so that a batch without any RoI has a gradient, which is 0
            return self.predictor(rois[0].new_zeros((0, self.predictor.cls_score.in_features)))
        if not self.context:
            return self.predictor(region_features(rois))
        if sizes is None:
            raise ValueError("a RoI head with context needs the sizes of the images")
        regions = region_features(with_whole_images(rois, sizes))
        return self.predictor(beside_whole_images(regions, [len(boxes) for boxes in rois]))

    def losses(
        self,
        features: dict[str, FeatureMap],
        proposals: list[Tensor],
        images: ImageBatch,
        targets: list[Target],
    ) -> Losses:
        """Return loss_roi_cls, the cross entropy of the sampled RoIs, and loss_roi_box, the
        smooth-L1 loss of the foreground ones.

        features: by stage. proposals: N tensors (P, 4) xyxy px. The box loss is divided by the
        number of sampled RoIs, as in Fast R-CNN. No RoI at all (no proposals and no objects in the
        whole batch): both 0.
        """
        rois, labels, gt_deltas = self.sample(proposals, images, targets)
        logits, deltas = self(features, rois, images.sizes)
        positive = torch.nonzero(labels > 0).flatten()
        loss_cls = F.cross_entropy(logits, labels, reduction="sum")
        # (R, K, 4) -> (foreground, 4): the deltas of each RoI's own class
        pred_deltas = deltas[positive, index_of(labels[positive])]
        loss_box = F.smooth_l1_loss(
            pred_deltas, gt_deltas[positive], beta=self.settings.smooth_l1_beta, reduction="sum"
        )
        return Losses(
            {"loss_roi_cls": loss_cls, "loss_roi_box": loss_box},
            {"loss_roi_cls": len(labels), "loss_roi_box": len(labels)},
        )

    def sample(
        self, proposals: list[Tensor], images: ImageBatch, targets: list[Target]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Choose the RoIs to learn from: return N tensors (R_n, 4), labels (R,) with 0 for
        background, and target deltas (R, 4), 0 for background.

        proposals: N tensors (P, 4) xyxy px, which the boxes of `targets` join. All may be empty.
        """
        rois, labels, gt_deltas = [], [], []
        for n, (boxes, target) in enumerate(zip(proposals, targets, strict=True)):
            gt_boxes, gt_labels = target.trainable()
            boxes = torch.cat((boxes, gt_boxes))
            matched_idxs = self.matcher(gt_boxes, boxes)
            positive, negative = self.sampler(matched_idxs, images.generator(n, stream=1))
            matched = matched_idxs[positive]
            rois.append(boxes[torch.cat((positive, negative))])
            labels.append(F.pad(gt_labels[matched], (0, len(negative))))
            deltas = self.box_coder.encode(boxes[positive], gt_boxes[matched])
            gt_deltas.append(F.pad(deltas, (0, 0, 0, len(negative))))
        return rois, torch.cat(labels), torch.cat(gt_deltas)

    def postprocess(
        self,
        logits: Tensor,
        deltas: Tensor,
        proposals: list[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Return N Detections, best first, of scored RoIs: decode, clip, threshold, NMS, best D.

        logits (R, K + 1), deltas (R, K, 4): of N tensors of proposals (P, 4) xyxy px together.
        sizes: N (h, w) px to which boxes are clipped. No proposals: no detections.
        """
        boxes, scores = self.decode(logits, deltas, proposals)
        counts = [len(p) for p in proposals]
        per_image = zip(boxes.split(counts), scores.split(counts), sizes, strict=True)
        return [self.detections_of_image(clip_boxes(b, size), s) for b, s, size in per_image]

    def decode(
        self, logits: Tensor, deltas: Tensor, proposals: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return boxes (R, K, 4) xyxy px, not clipped, and scores (R, K) in [0, 1], without
        background, of what `forward` gave.
        """
        scores = logits.softmax(dim=1)[:, label_of(0) :]  # (R, K + 1) -> (R, K): no background
        return self.box_coder.decode(torch.cat(proposals), deltas), scores

    def detections_of_image(self, boxes: Tensor, scores: Tensor) -> Detections:
        """Return the detections of one image from boxes (R, K, 4) and scores (R, K): score cut, NMS
        a class, best D.
        """
        return self.best_of(self.candidates_of_image(boxes, scores), self.settings.nms_thresh)

    def candidates_of_image(self, boxes: Tensor, scores: Tensor) -> Detections:
        """Return what NMS chooses from, in no order: of boxes (R, K, 4) with scores (R, K) those
        above the score cut that have an extent.
        """
        roi, column = torch.nonzero(scores > self.settings.score_thresh, as_tuple=True)
        # (R, K, 4), (R, K) -> (D, 4), (D,), (D,): each class of a RoI is a candidate of its own
        boxes, scores, labels = boxes[roi, column], scores[roi, column], label_of(column)
        keep = large_enough(boxes, MIN_DETECTION_SIDE)
        return Detections(boxes[keep], scores[keep], labels[keep])

    def best_of(self, candidates: Detections, nms_thresh: float) -> Detections:
        """Return the best D of `candidates` after NMS a class at the IoU `nms_thresh`."""
        boxes, scores, labels = candidates.boxes, candidates.scores, candidates.labels
        keep = ops.batched_nms(boxes, scores, labels, nms_thresh)
        keep = keep[: self.settings.detections_per_image]
        return Detections(boxes[keep], scores[keep], labels[keep])

"""RoI head: conv5 of the backbone on every region, then class scores and class-specific boxes
(paper, appendix A).

Shapes: N images, R RoIs of all images, K classes without background, D detections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from detres.boxes import clip_boxes, large_enough
from detres.models.box_coder import BoxCoder
from detres.models.matcher import Matcher
from detres.models.roi_pool import RoIPooler
from detres.models.sampler import Sampler
from detres.structures import Detections, ImageBatch, Target

MIN_DETECTION_SIDE = 1e-2
"""Px. Boxes that clipping left without extent are no detections; torchvision's value."""


class BoxPredictor(nn.Module):
    """The two sibling layers that replace the classifier: K + 1 class logits (background first) and
    4 deltas a class.

    N(0, 0.01) and N(0, 0.001), biases 0 (py-faster-rcnn's prototxt), so that the first loss is near
    log(K + 1).
    """

    def __init__(self, *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, K + 1) and deltas (R, K, 4), float32, from features (R, C)."""
        return self.cls_score(x).float(), self.bbox_pred(x).float().view(-1, self.num_classes, 4)


class RoIHead(nn.Module):
    """Classifies and refines RoIs: pool, conv5, average, predict.

    conv5: the backbone's last stage. In training the ground-truth boxes join the proposals
    (py-faster-rcnn). score_thresh, nms_thresh, detections_per_image: what becomes a detection.
    smooth_l1_beta: 1 is py-faster-rcnn's.
    """

    def __init__(
        self,
        *,
        pooler: RoIPooler,
        conv5: nn.Module,
        predictor: BoxPredictor,
        box_coder: BoxCoder,
        matcher: Matcher,
        sampler: Sampler,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
        smooth_l1_beta: float,
    ) -> None:
        super().__init__()
        self.pooler = pooler
        self.conv5 = conv5
        self.predictor = predictor
        self.box_coder = box_coder
        self.matcher = matcher
        self.sampler = sampler
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image
        self.smooth_l1_beta = smooth_l1_beta

    def forward(self, feature: Tensor, rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (R, K + 1) and deltas (R, K, 4) for N tensors of RoIs (R_n, 4) on a feature
        map (N, C, H, W).
        """
        if sum(map(len, rois)) == 0:
            return feature.new_zeros((0, self.predictor.num_classes + 1)), feature.new_zeros(
                (0, self.predictor.num_classes, 4)
            )
        pooled = self.pooler(feature, rois)
        return self.predictor(self.conv5(pooled).mean(dim=(2, 3)))

    def losses(
        self, feature: Tensor, proposals: list[Tensor], targets: list[Target]
    ) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy over the sampled RoIs and the smooth-L1 loss of the
        foreground ones.

        The box loss is divided by the number of sampled RoIs, as in Fast R-CNN. No RoI at all (no
        proposals and no objects in the whole batch): both 0.
        """
        rois, labels, gt_deltas = self.sample(proposals, targets)
        logits, deltas = self(feature, rois)
        num_sampled = max(1, len(labels))
        positive = torch.nonzero(labels > 0).flatten()
        loss_cls = F.cross_entropy(logits, labels, reduction="sum") / num_sampled
        pred_deltas = deltas[positive, labels[positive] - 1]
        loss_box = F.smooth_l1_loss(
            pred_deltas, gt_deltas[positive], beta=self.smooth_l1_beta, reduction="sum"
        )
        return loss_cls, loss_box / num_sampled

    def sample(
        self, proposals: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Choose the RoIs to learn from: N tensors (R_n, 4), labels (R,) with 0 for background,
        target deltas (R, 4).
        """
        rois, labels, gt_deltas = [], [], []
        for boxes, target in zip(proposals, targets, strict=True):
            gt_boxes, gt_labels = target.trainable()
            boxes = torch.cat((boxes, gt_boxes))
            matched_idxs = self.matcher(gt_boxes, boxes)
            positive, negative = self.sampler(matched_idxs)
            matched = matched_idxs[positive]
            rois.append(boxes[torch.cat((positive, negative))])
            labels.append(F.pad(gt_labels[matched], (0, len(negative))))
            deltas = self.box_coder.encode(boxes[positive], gt_boxes[matched])
            gt_deltas.append(F.pad(deltas, (0, 0, 0, len(negative))))
        return rois, torch.cat(labels), torch.cat(gt_deltas)

    def detect(
        self, feature: Tensor, proposals: list[Tensor], images: ImageBatch
    ) -> list[Detections]:
        """Return N Detections in the pixels of the batch (resized images), best first."""
        logits, deltas = self(feature, proposals)
        scores = logits.softmax(dim=1)[:, 1:]
        boxes = self.box_coder.decode(torch.cat(proposals), deltas)  # (R, K, 4)
        counts = [len(p) for p in proposals]
        return [
            self.detections_of_image(clip_boxes(boxes_per_image, size), scores_per_image)
            for boxes_per_image, scores_per_image, size in zip(
                boxes.split(counts), scores.split(counts), images.sizes, strict=True
            )
        ]

    def detections_of_image(self, boxes: Tensor, scores: Tensor) -> Detections:
        """Return the detections of one image from boxes (R, K, 4) and scores (R, K): score cut, NMS
        a class, best D.
        """
        roi, column = torch.nonzero(scores > self.score_thresh, as_tuple=True)
        boxes, scores, labels = boxes[roi, column], scores[roi, column], column + 1
        keep = large_enough(boxes, MIN_DETECTION_SIDE)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = ops.batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_image]
        return Detections(boxes[keep], scores[keep], labels[keep])

"""R-CNN on the proposals of a per-class RPN (Girshick et al. 2014; He et al. 2016, appendix C):
each region is warped to one size and classified by a network of its own.

Shapes: R regions of one size S x S px, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import Backbone
from detres.boxes import box_iou
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.class_rpn import ClassRPN
from detres.detection.structures import ImageBatch, Target, index_of
from detres.images.normalize import PixelNormalizer
from detres.losses import Losses


@dataclass(frozen=True)
class RCNNSettings:
    """fg_iou_thresh: IoU of a region with an object from which it shows it. smooth_l1_beta: where
    the box loss turns from quadratic to linear.
    """

    fg_iou_thresh: float
    smooth_l1_beta: float


class RCNN(nn.Module):
    """Says of regions whether they show an object of a given class, and where in them it is.

    net: a network without classifier. Two sibling layers take its place: a binary logistic
    regression and 4 deltas a class, N(0, 0.01) and N(0, 0.001) as BoxPredictor. crop_side: px, S,
    to which regions are warped. proposer: where the
    regions are from; it is kept beside, so that one weights file holds all, and does not learn.
    """

    def __init__(
        self,
        *,
        normalizer: PixelNormalizer,
        net: Backbone,
        num_classes: int,
        crop_side: int,
        box_coder: BoxCoder,
        settings: RCNNSettings,
        proposer: ClassRPN,
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.net = net
        self.num_classes = num_classes
        self.crop_side = crop_side
        self.box_coder = box_coder
        self.settings = settings
        self.proposer = proposer.requires_grad_(False)
        self.cls_score = nn.Linear(net.num_features, num_classes)
        self.bbox_pred = nn.Linear(net.num_features, num_classes * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.train(self.training)

    def train(self, mode: bool = True) -> RCNN:
        """As nn.Module's, but for the proposer, which stays as it was trained."""
        super().train(mode)
        self.proposer.eval()
        return self

    def forward(
        self,
        images: ImageBatch,
        targets: list[Target] | None = None,
        labels: Tensor | None = None,
    ) -> Losses | tuple[Tensor, Tensor]:
        """Return Losses when targets are given, else the logits (R,) that regions show an object of
        the class asked for, and the deltas (R, 4) from the region to it.

        images: R regions, warped; each is one image of the batch. targets: of one class each, boxes
        in the pixels of the warped region, beyond which they may reach. labels: (R,) int64 1..K.
        Raises ValueError when there are neither targets nor labels, or not R of them.
        """
        given = targets if targets is not None else labels
        if given is None or len(given) != len(images):
            found = "none" if given is None else len(given)
            raise ValueError(f"{len(images)} regions but targets or labels for {found}")
        if targets is not None:
            labels = torch.stack([target.labels[0] for target in targets])
        x = self.net(self.normalizer(images.pixels))  # (R, C)
        rows, indices = torch.arange(len(images), device=x.device), index_of(labels)
        logits = self.cls_score(x).float()[rows, indices]  # (R, K) -> (R,)
        deltas = self.bbox_pred(x).float().view(-1, self.num_classes, 4)[rows, indices]
        return (logits, deltas) if targets is None else self.losses(logits, deltas, images, targets)

    def losses(
        self, logits: Tensor, deltas: Tensor, images: ImageBatch, targets: list[Target]
    ) -> Losses:
        """Return loss_rcnn_cls, the mean binary cross entropy over the regions, and loss_rcnn_box,
        the smooth-L1 loss of those that show their object, divided by the number of all.

        logits (R,), deltas (R, 4): of the class of each region's target.
        """
        whole = [logits.new_tensor([[0.0, 0.0, width, height]]) for height, width in images.sizes]
        best = [
            box_iou(region, target.boxes)[0].max(dim=0)
            for region, target in zip(whole, targets, strict=True)
        ]
        shown = torch.stack([iou.values for iou in best]) >= self.settings.fg_iou_thresh  # (R,)
        nearest = torch.stack(
            [target.boxes[iou.indices] for iou, target in zip(best, targets, strict=True)]
        )
        wanted = self.box_coder.encode(torch.cat(whole)[shown], nearest[shown])
        loss_cls = F.binary_cross_entropy_with_logits(logits, shown.to(logits), reduction="sum")
        loss_box = F.smooth_l1_loss(
            deltas[shown], wanted, beta=self.settings.smooth_l1_beta, reduction="sum"
        )
        return Losses(
            {"loss_rcnn_cls": loss_cls, "loss_rcnn_box": loss_box},
            {"loss_rcnn_cls": len(logits), "loss_rcnn_box": len(logits)},
        )

"""RPN: the region proposal network (Ren et al. 2015, section 3.1).

Shapes: N images, C channels, (H, W) feature map, A anchors a cell, L = H * W * A anchors an image,
M ground-truth boxes. objectness: logits that an anchor holds an object. deltas: box regression
relative to the anchor. proposals: decoded, clipped, suppressed boxes that go on to the RoI head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.convolve import call
from backbones.padding import Padding, zero_padding_
from detres.boxes import clip_boxes, large_enough, nms
from detres.detection.models.anchors import AnchorGenerator
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.matcher import BETWEEN, Matcher
from detres.detection.models.padding import padding_of
from detres.detection.models.sampler import Sampler
from detres.detection.structures import FeatureMap, ImageBatch, Target
from detres.losses import Losses


@dataclass(frozen=True)
class ProposalCounts:
    """How many boxes survive: the best `pre_nms` by objectness enter NMS, the best `post_nms` leave
    it. pre_nms None: all enter.
    """

    pre_nms: int | None
    post_nms: int


class RPNHead(nn.Module):
    """A 3x3 convolution with ReLU and two sibling 1x1 convolutions, all N(0, 0.01)
    (py-faster-rcnn's prototxt).

    num_convs: how many 3x3 convolutions, each with its ReLU, come first (torchvision's second
    version of its pyramid detector: 2).

    objectness "softmax" has two outputs an anchor (A background channels, then A foreground), as
    the paper; "sigmoid" one, as Detectron. The two-way softmax equals the sigmoid of the
    difference, so both give one logit.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: int,
        num_anchors: int,
        objectness: Literal["softmax", "sigmoid"],
        num_convs: int = 1,
    ) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        self.two_way = objectness == "softmax"
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.more_convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in range(num_convs - 1)
        )
        self.objectness = nn.Conv2d(width, num_anchors * (2 if self.two_way else 1), 1)
        self.deltas = nn.Conv2d(width, num_anchors * 4, 1)
        for layer in (self.conv, *self.more_convs, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, feature: Tensor, padding: Padding | None = None) -> tuple[Tensor, Tensor]:
        """Return objectness logits (N, L) and deltas (N, L, 4), float32, for a feature map (N, C,
        H, W); padding: of the map, None where every image fills all of it.
        """
        hidden = call(self.conv, feature)
        for conv in self.more_convs:
            hidden = call(conv, F.relu(zero_padding_(hidden, padding), inplace=True))
        hidden = F.relu(hidden, inplace=True)
        logits = self.objectness(hidden).float()
        if self.two_way:
            logits = logits[:, self.num_anchors :] - logits[:, : self.num_anchors]
        logits = logits.permute(0, 2, 3, 1).flatten(1)  # (N, A, H, W) -> (N, L)
        deltas = self.deltas(hidden).float().permute(0, 2, 3, 1)  # (N, H, W, 4A)
        return logits, deltas.reshape(len(feature), -1, 4)


@dataclass(frozen=True)
class RPNSettings:
    """train_counts, test_counts: how many proposals there are. nms_thresh: IoU above which the
    worse of two goes. min_size: proposals with a side below it are dropped, in px of the original
    image (py-faster-rcnn: 16). train_anchors: "inside" leaves anchors that cross the image border
    out of training (the paper), "all" keeps them (torchvision, detectron2). smooth_l1_beta: where
    the box loss turns from quadratic to linear; 1/9 is py-faster-rcnn's sigma 3, 0 is L1.
    loss_normalizer: what the losses are divided by, the number of anchors "sampled"
    (py-faster-rcnn) or the sampler's "batch_size" for every image (detectron2).
    """

    train_counts: ProposalCounts
    test_counts: ProposalCounts
    nms_thresh: float
    min_size: float
    train_anchors: Literal["inside", "all"]
    smooth_l1_beta: float
    loss_normalizer: Literal["sampled", "batch_size"]


@dataclass(frozen=True)
class MapOutput:
    """What the head says of one feature map: logits (N, L) that its anchors hold an object, deltas
    (N, L, 4).

    anchors: of image n, those on its own cells, (L_n, 4) xyxy px. rows: which of the L these are,
    (L_n,) int64 in their order; None where it has them all.
    """

    anchors: list[Tensor]
    logits: Tensor
    deltas: Tensor
    rows: list[Tensor | None]

    def of_image(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return anchors (L_n, 4), logits (L_n,) and deltas (L_n, 4) of image `n`."""
        rows = self.rows[n]
        if rows is None:
            return self.anchors[n], self.logits[n], self.deltas[n]
        return self.anchors[n], self.logits[n, rows], self.deltas[n, rows]


class RPN(nn.Module):
    """Proposes regions and, when targets are given, learns to.

    anchors: stage -> the anchors on that map; one head serves all maps.
    """

    def __init__(
        self,
        *,
        head: RPNHead,
        anchors: dict[str, AnchorGenerator],
        box_coder: BoxCoder,
        matcher: Matcher,
        sampler: Sampler,
        settings: RPNSettings,
    ) -> None:
        super().__init__()
        self.head = head
        self.anchors = nn.ModuleDict(anchors)
        self.box_coder = box_coder
        self.matcher = matcher
        self.sampler = sampler
        self.settings = settings

    def forward(
        self, features: dict[str, FeatureMap], images: ImageBatch, targets: list[Target] | None
    ) -> tuple[list[Tensor], Losses]:
        """Return N tensors of proposals (P, 4) xyxy px, best first, and the losses; none without
        targets.

        features: by stage. Anchors in the padding of an image neither propose nor are learnt from.
        Proposals carry no gradient: the approximate joint training of py-faster-rcnn. P may be 0.
        """
        maps = self.on_maps(features)
        counts = self.settings.test_counts if targets is None else self.settings.train_counts
        proposals = [boxes for boxes, _ in self.propose(maps, images, counts)]
        nothing = Losses({}, {})
        return proposals, nothing if targets is None else self.losses(maps, images, targets)

    def on_maps(self, features: dict[str, FeatureMap]) -> list[MapOutput]:
        """Return what the head says of each map; features: by stage."""
        return [
            self.on_map(
                features[stage],
                anchors,
                self.head(features[stage].values, padding_of(features[stage])),
            )
            for stage, anchors in self.anchors.items()
        ]

    def propose(
        self, maps: list[MapOutput], images: ImageBatch, counts: ProposalCounts
    ) -> list[tuple[Tensor, Tensor]]:
        """Return for each of N images its proposals (P, 4) xyxy px, best first, and their logits
        (P,), `counts` of them; P may be 0.
        """
        return [self.proposals_of_image(maps, images, n, counts) for n in range(len(images))]

    def on_map(
        self, feature: FeatureMap, anchors: AnchorGenerator, outputs: tuple[Tensor, Tensor]
    ) -> MapOutput:
        """Return the outputs of a head, logits (N, L) and deltas (N, L, 4), with their anchors."""
        height, width = feature.values.shape[2:]
        logits, deltas = outputs
        rows = [
            None if size == (height, width) else anchors.rows_within(size, width)
            for size in feature.sizes
        ]
        spans = feature.spans or (None,) * len(feature.sizes)
        own = [anchors(*size, span) for size, span in zip(feature.sizes, spans, strict=True)]
        return MapOutput(own, logits, deltas, rows)

    def proposals_of_image(
        self, maps: list[MapOutput], images: ImageBatch, n: int, counts: ProposalCounts
    ) -> tuple[Tensor, Tensor]:
        """Return the proposals (P, 4) xyxy px of image `n` and their logits (P,), best first: of
        every map the best after NMS, of all maps together the best `counts.post_nms`.
        """
        size, original = images.sizes[n], images.original_sizes[n]
        min_side = self.settings.min_size * size[0] / original[0]
        boxes, scores = [], []
        for each in maps:
            anchors, logits, deltas = each.of_image(n)  # (L_n, 4), (L_n,), (L_n, 4)
            logits, deltas = logits.detach(), deltas.detach()
            entering = len(logits) if counts.pre_nms is None else counts.pre_nms
            top = logits.topk(min(entering, len(logits))).indices
            decoded = clip_boxes(self.box_coder.decode(anchors[top], deltas[top]), size)
            large = large_enough(decoded, min_side)
            decoded, logits = decoded[large], logits[top][large]
            keep = nms(decoded, logits, self.settings.nms_thresh, counts.post_nms)
            boxes.append(decoded[keep])
            scores.append(logits[keep])
        logits = torch.cat(scores)
        best = logits.argsort(descending=True, stable=True)[: counts.post_nms]
        return torch.cat(boxes)[best], logits[best]

    def losses(self, maps: list[MapOutput], images: ImageBatch, targets: list[Target]) -> Losses:
        """Return loss_rpn_cls, the binary cross entropy of the sampled anchors, and loss_rpn_box,
        their smooth-L1 loss.

        Both are divided by the same number, see `RPNSettings.loss_normalizer`; the sampled anchors
        are foreground and background together.
        """
        sampled_logits, sampled_labels, pred_deltas, gt_deltas = [], [], [], []
        for n, target in enumerate(targets):
            gt_boxes, _ = target.trainable()
            of_maps = zip(*(each.of_image(n) for each in maps), strict=True)
            # (L_n, 4), (L_n,), (L_n, 4), L_n of all maps from here on
            anchors, logits, deltas = (torch.cat(parts) for parts in of_maps)
            matched_idxs = self.match(anchors, gt_boxes, images.sizes[n])
            positive, negative = self.sampler(matched_idxs, images.generator(n, stream=0))
            rows = torch.cat((positive, negative))
            sampled_logits.append(logits[rows])
            sampled_labels.append((matched_idxs[rows] >= 0).to(logits))
            pred_deltas.append(deltas[positive])
            matched_boxes = gt_boxes[matched_idxs[positive]]
            gt_deltas.append(self.box_coder.encode(anchors[positive], matched_boxes))
        labels = torch.cat(sampled_labels)
        count = len(labels)
        if self.settings.loss_normalizer == "batch_size":
            count = len(targets) * self.sampler.batch_size
        loss_cls = F.binary_cross_entropy_with_logits(
            torch.cat(sampled_logits), labels, reduction="sum"
        )
        loss_box = F.smooth_l1_loss(
            torch.cat(pred_deltas),
            torch.cat(gt_deltas),
            beta=self.settings.smooth_l1_beta,
            reduction="sum",
        )
        return Losses(
            {"loss_rpn_cls": loss_cls, "loss_rpn_box": loss_box},
            {"loss_rpn_cls": count, "loss_rpn_box": count},
        )

    def match(self, anchors: Tensor, gt_boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return matched_idxs (L,) of anchors (L, 4) with gt_boxes (M, 4), both xyxy px, in an
        image of `size` (h, w) px; anchors that are not trained on are BETWEEN.
        """
        if self.settings.train_anchors == "all":
            return self.matcher(gt_boxes, anchors)
        height, width = size
        inside = (
            (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
        )
        matched_idxs = torch.full(
            (len(anchors),), BETWEEN, dtype=torch.int64, device=anchors.device
        )
        matched_idxs[inside] = self.matcher(gt_boxes, anchors[inside])
        return matched_idxs

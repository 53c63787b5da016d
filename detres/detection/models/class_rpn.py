"""The per-class RPN of ImageNet localisation (He et al. 2016, appendix C): a region proposal
network that looks for the object of a class it is given.

Shapes: N images, C channels, (H, W) feature map, A anchors a cell, L = H * W * A anchors an image,
K classes, G classes asked for in an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.convolve import call
from detres.detection.models.faster_rcnn import FeatureExtractor, shared_maps
from detres.detection.models.rpn import RPN, MapOutput
from detres.detection.structures import Detections, FeatureMap, ImageBatch, Target, index_of
from detres.images.normalize import PixelNormalizer
from detres.losses import Losses


class ClassRPNHead(nn.Module):
    """A 3x3 convolution with ReLU and two sibling 1x1 convolutions, of one output (a binary
    logistic regression) and 4 deltas a class and anchor, all N(0, 0.01) as RPNHead.

    Only the outputs of the classes asked for are computed: of 1,000 classes and 9 anchors all would
    be 45,000 numbers a cell.
    """

    def __init__(self, *, in_channels: int, width: int, num_anchors: int, num_classes: int) -> None:
        super().__init__()
        self.num_anchors, self.num_classes = num_anchors, num_classes
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        # channel a * K + k is of anchor a and class k; of the deltas, four each
        self.scores = nn.Conv2d(width, num_anchors * num_classes, 1)
        self.deltas = nn.Conv2d(width, num_anchors * num_classes * 4, 1)
        for layer in (self.conv, self.scores, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def hidden(self, feature: Tensor) -> Tensor:
        """Return (N, width, H, W), what the outputs of all classes are made of, from (N, C, H,
        W).
        """
        return F.relu(call(self.conv, feature), inplace=True)

    def of_classes(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, L) and deltas (N, L, 4), float32, for a class of each image.

        hidden: (N, width, H, W). labels: (N,) int64 1..K.
        """
        num, indices = len(hidden), index_of(labels)
        logits = self._of_classes(self.scores, hidden, indices)  # (N, H, W, A * 1)
        deltas = self._of_classes(self.deltas, hidden, indices)  # (N, H, W, A * 4)
        return logits.reshape(num, -1), deltas.reshape(num, -1, 4)

    def _of_classes(self, layer: nn.Conv2d, hidden: Tensor, indices: Tensor) -> Tensor:
        """What `layer` would give in the channels of each image's class, (N, H, W, A * P)."""
        by_class = (self.num_anchors, self.num_classes, -1)  # (A, K, P * width) and (A, K, P)
        weight = layer.weight.view(by_class)[:, indices].transpose(0, 1)  # (N, A, P * width)
        weight = weight.reshape(len(hidden), -1, hidden.shape[1])  # (N, A * P, width)
        bias = layer.bias.view(by_class)[:, indices].transpose(0, 1).reshape(len(hidden), 1, 1, -1)
        return torch.einsum("nchw,npc->nhwp", hidden, weight).float() + bias


class ClassRPN(nn.Module):
    """Localises: normalise -> backbone -> RPN whose last layers are those of the class asked for.

    rpn: with a ClassRPNHead, and anchors on one stage of the backbone. Its losses are the RPN's,
    over anchors sampled in every image and the outputs of the image's own class.
    """

    def __init__(
        self, *, normalizer: PixelNormalizer, backbone: FeatureExtractor, rpn: RPN
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.rpn = rpn
        (self.stage,) = rpn.anchors

    def forward(
        self,
        images: ImageBatch,
        targets: list[Target] | None = None,
        labels: Tensor | None = None,
    ) -> Losses | list[list[Detections]]:
        """Return Losses when targets are given, else for each image and each class of `labels` the
        best boxes in the pixels of the batch, after NMS, as many as the RPN's test_counts say.

        targets: N, the objects of one class each; an image without any teaches nothing. labels:
        (N, G) int64 1..K, the classes to look for. Scores are probabilities of the class's own
        logistic regression. Decided by the arguments alone. Raises ValueError when there are
        neither targets nor labels, or not N of them.
        """
        given = targets if targets is not None else labels
        if given is None or len(given) != len(images):
            found = "none" if given is None else len(given)
            raise ValueError(f"{len(images)} images but targets or labels for {found}")
        if targets is not None:
            return self.losses(images, targets)
        feature, hidden = self.features(images)
        counts = self.rpn.settings.test_counts
        found: list[list[Detections]] = [[] for _ in range(len(images))]
        for of_guess in labels.T:
            maps = [self._on_map(feature, hidden, of_guess)]
            for n, label in enumerate(of_guess):
                boxes, logits = self.rpn.proposals_of_image(maps, images, n, counts)
                found[n].append(Detections(boxes, logits.sigmoid(), label.expand(len(boxes))))
        return found

    def losses(self, images: ImageBatch, targets: list[Target]) -> Losses:
        """Return loss_rpn_cls and loss_rpn_box, see RPN.losses; both 0 when no image has an object.

        Raises ValueError for an image with objects of several classes.
        """
        for target in targets:
            if len(target.labels.unique()) > 1:
                raise ValueError(f"image {target.image_id} has objects of several classes")
        rows = [n for n, target in enumerate(targets) if len(target)]
        if not rows:
            nothing = self.rpn.head.scores.bias.sum() * 0
            names = ("loss_rpn_cls", "loss_rpn_box")
            return Losses(dict.fromkeys(names, nothing), dict.fromkeys(names, 0))
        images, targets = images.select(rows), [targets[n] for n in rows]
        feature, hidden = self.features(images)
        labels = torch.stack([target.labels[0] for target in targets])
        maps = [self._on_map(feature, hidden, labels)]
        return self.rpn.losses(maps, images, targets)

    def features(self, images: ImageBatch) -> tuple[FeatureMap, Tensor]:
        """Return the backbone's map and the head's hidden layer on it, (N, width, H, W)."""
        maps = shared_maps(images, self.normalizer, self.backbone, (self.stage,))
        return maps[self.stage], self.rpn.head.hidden(maps[self.stage].values)

    def _on_map(self, feature: FeatureMap, hidden: Tensor, labels: Tensor) -> MapOutput:
        outputs = self.rpn.head.of_classes(hidden, labels)
        return self.rpn.on_map(feature, self.rpn.anchors[self.stage], outputs)

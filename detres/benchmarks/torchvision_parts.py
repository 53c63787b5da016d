"""The same detector put together from torchvision's parts: the independent witness, and the rival
in comparisons.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_pool

from detres.detection.config import VGGS, ModelConfig
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import Detections, ImageBatch, Target
from detres.losses import Losses


def require_expressible(config: ModelConfig) -> None:
    """Raise ValueError, naming every setting, for a model that torchvision's parts cannot
    express.
    """
    rpn, roi, backbone = config.rpn, config.roi, config.backbone
    required = {
        "model.anchors.style=torchvision": config.anchors.style == "torchvision",
        "model.rpn.objectness=sigmoid": rpn.objectness == "sigmoid",
        "model.rpn.train_anchors=all": rpn.train_anchors == "all",
        "model.rpn.smooth_l1_beta=1/9": abs(rpn.smooth_l1_beta - 1 / 9) < 1e-6,
        "model.roi.pool=roi_align or roi_pool": roi.pool in ("roi_align", "roi_pool"),
        "model.rpn.loss_normalizer=sampled": rpn.loss_normalizer == "sampled",
        "model.roi.class_agnostic=false": not roi.class_agnostic,
        "model.roi.context=false": not roi.context,
        "model.roi.smooth_l1_beta=1/9": abs(roi.smooth_l1_beta - 1 / 9) < 1e-6,
        "model.backbone.norm=batch or frozen": backbone.norm in (None, "batch", "frozen"),
        # torchvision's VGGs have none that is fixed, and its frozen stages go on counting
        "model.backbone.norm=batch (of a VGG)": backbone.name not in VGGS
        or backbone.norm in (None, "batch"),
        "model.backbone.freeze_at=0 (with norm=batch)": backbone.norm != "batch"
        or backbone.freeze_at == 0,
        "model.backbone.width=1": backbone.width in (None, 1),
        "model.backbone.pool1=torch": backbone.pool1 != "caffe",
        "model.backbone.fc_width=4096": backbone.fc_width in (None, 4096),
        "model.input.channel_order=rgb": config.input.channel_order == "rgb",
    }
    missing = [name for name, given in required.items() if not given]
    if missing:
        raise ValueError(f"torchvision's parts need {', '.join(missing)}")


class TorchvisionParts(nn.Module):
    """torchvision.models.detection.FasterRCNN with our contract: forward(images, targets) -> Losses
    or list[Detections].

    Its backbone (conv1..conv4 of a ResNet, conv1..conv5 of a VGG), box head (conv5; fc6 and fc7),
    anchors, RPN, RoI pooling, matching, sampling and postprocessing are all torchvision's; only
    resizing is left to the caller, so that both models see the same pixels. Torchvision pads to a
    multiple of 32 and computes in the padding: its numbers are comparable for images of one size
    that is such a multiple. Losses need train(), detections eval(): torchvision decides by mode.
    Raises ValueError for a configuration that torchvision cannot express.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        rpn, roi, backbone = config.rpn, config.roi, config.backbone
        require_expressible(config)
        if backbone.name in VGGS:
            net = getattr(torchvision.models, backbone.name)()
            trunk, head = _VGGTrunk(net, backbone.freeze_at), _Fc(net, roi.dropout)
        else:
            norm = nn.BatchNorm2d if backbone.norm == "batch" else FrozenBatchNorm2d
            net = getattr(torchvision.models, backbone.name)(norm_layer=norm)
            if backbone.stride_placement == "original":
                _stride_in_the_1x1_(net)
            trunk, head = _Trunk(net, backbone.freeze_at), _Conv5(net)
        anchors = AnchorGenerator((config.anchors.sizes,), (config.anchors.aspect_ratios,))
        self.model = TorchvisionFasterRCNN(
            trunk,
            rpn_anchor_generator=anchors,
            rpn_head=RPNHead(trunk.out_channels, anchors.num_anchors_per_location()[0]),
            rpn_pre_nms_top_n_train=rpn.train_pre_nms_top_n,
            rpn_pre_nms_top_n_test=rpn.test_pre_nms_top_n,
            rpn_post_nms_top_n_train=rpn.train_post_nms_top_n,
            rpn_post_nms_top_n_test=rpn.test_post_nms_top_n,
            rpn_nms_thresh=rpn.nms_thresh,
            rpn_fg_iou_thresh=rpn.fg_iou_thresh,
            rpn_bg_iou_thresh=rpn.bg_iou_thresh,
            rpn_batch_size_per_image=rpn.batch_size,
            rpn_positive_fraction=rpn.positive_fraction,
            box_roi_pool=MultiScaleRoIAlign(["0"], roi.pool_size, roi.sampling_ratio),
            box_head=head,
            box_predictor=FastRCNNPredictor(head.out_channels, num_classes + 1),
            box_score_thresh=roi.score_thresh,
            box_nms_thresh=roi.nms_thresh,
            box_detections_per_img=roi.detections_per_image,
            box_fg_iou_thresh=roi.fg_iou_thresh,
            box_bg_iou_thresh=roi.bg_iou_thresh,
            box_batch_size_per_image=roi.batch_size,
            box_positive_fraction=roi.positive_fraction,
            bbox_reg_weights=roi.box_weights,
        )
        mean, std = (
            [value / 255 for value in values] for values in (config.input.mean, config.input.std)
        )
        given = config.input
        self.model.transform = _NoResize(given.short_side, given.max_side, mean, std)
        self.model.rpn.min_size = rpn.min_size
        if roi.pool == "roi_pool":  # which the constructor does not take
            self.model.roi_heads.box_roi_pool = _RoIPool(roi.pool_size)

    def forward(
        self, images: ImageBatch, targets: list[Target] | None = None
    ) -> Losses | list[Detections]:
        """Return Losses when targets are given, else one Detections an image."""
        pixels = [
            image[:, :height, :width] / 255
            for image, (height, width) in zip(images.pixels, images.sizes, strict=True)
        ]
        if targets is None:
            return [
                Detections(found["boxes"], found["scores"], found["labels"])
                for found in self.model(pixels)
            ]
        pairs = [target.trainable() for target in targets]
        found = self.model(pixels, [{"boxes": boxes, "labels": labels} for boxes, labels in pairs])
        means = {
            "loss_rpn_cls": found["loss_objectness"],
            "loss_rpn_box": found["loss_rpn_box_reg"],
            "loss_roi_cls": found["loss_classifier"],
            "loss_roi_box": found["loss_box_reg"],
        }
        return Losses(means, dict.fromkeys(means, 1))

    def copy_weights(self, detector: FasterRCNN) -> None:
        """Take every weight of `detector`, which must have an RPN as wide as conv4 (torchvision's
        is).
        """
        self.model.load_state_dict(_renamed(detector))

    def copy_network(self, detector: FasterRCNN) -> None:
        """Take the weights of `detector` that pretraining gives: those of its backbone and box
        head.
        """
        tensors = _renamed(detector)
        pretrained = {
            name: tensor
            for name, tensor in tensors.items()
            if name.startswith(("backbone.", "roi_heads.box_head."))
        }
        self.model.load_state_dict({**self.model.state_dict(), **pretrained})


def _renamed(detector: FasterRCNN) -> dict[str, Tensor]:
    """The weights of `detector` under torchvision's names."""
    tensors = {}
    for name, tensor in detector.state_dict().items():
        new = name
        for ours, theirs in _NAMES:
            if name.startswith(ours):
                new = theirs + name.removeprefix(ours)
                break
        if name.startswith("roi_head.predictor.bbox_pred"):
            # (4K, ...) -> (4 + 4K, ...): torchvision has a background row
            tensor = torch.cat((tensor.new_zeros((4, *tensor.shape[1:])), tensor))
        tensors[new] = tensor
    return tensors


_NAMES = (
    ("backbone.features.", "backbone.features."),
    ("backbone.", "backbone.net."),
    ("rpn.head.conv.", "rpn.head.conv.0.0."),
    ("rpn.head.objectness.", "rpn.head.cls_logits."),
    ("rpn.head.deltas.", "rpn.head.bbox_pred."),
    ("roi_head.box_head.conv5.", "roi_heads.box_head.layer4."),
    ("roi_head.box_head.layers.", "roi_heads.box_head.layers."),
    ("roi_head.predictor.", "roi_heads.box_predictor."),
)


def _stride_in_the_1x1_(net: nn.Module) -> None:
    """Move the strides of bottlenecks to where the paper has them."""
    for stage in (net.layer2, net.layer3, net.layer4):
        first = stage[0]
        if hasattr(first, "conv3"):
            first.conv1.stride, first.conv2.stride = first.conv2.stride, (1, 1)


class _Trunk(nn.Module):
    """conv1..conv4 of a torchvision ResNet."""

    def __init__(self, resnet: nn.Module, freeze_at: int) -> None:
        super().__init__()
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
        self.net = nn.ModuleDict({name: getattr(resnet, name) for name in names})
        self.out_channels = 1024 if hasattr(resnet.layer3[0], "conv3") else 256
        frozen = [] if freeze_at == 0 else ["conv1", "bn1", *names[4 : 3 + freeze_at]]
        for name in frozen:
            self.net[name].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.net.values():
            x = module(x)
        return x


class _Conv5(nn.Module):
    """conv5 and the average over its grid."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.layer4, self.out_channels = resnet.layer4, resnet.fc.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(x).mean(dim=(2, 3))


class _VGGTrunk(nn.Module):
    """The convolutions of a torchvision VGG and the poolings between its stages."""

    def __init__(self, vgg: nn.Module, freeze_at: int) -> None:
        super().__init__()
        self.features = vgg.features[:-1]
        self.out_channels = 512
        pooled = 0
        for layer in self.features:
            layer.requires_grad_(pooled >= freeze_at)
            pooled += isinstance(layer, nn.MaxPool2d)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class _Fc(nn.Module):
    """fc6 and fc7, each with ReLU and dropout."""

    def __init__(self, vgg: nn.Module, dropout: float) -> None:
        super().__init__()
        self.layers, self.out_channels = vgg.classifier[:6], 4096
        for layer in self.layers:
            if isinstance(layer, nn.Dropout):
                layer.p = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.flatten(x, 1))


class _RoIPool(nn.Module):
    """torchvision's maximum over bins where its detectors put RoIAlign."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], _: object) -> Tensor:
        # which takes a map and boxes of float32 alone, also under autocast
        boxes = [each.float() for each in boxes]
        return roi_pool(x["0"].float().contiguous(), boxes, self.size, 1 / 16)


class _NoResize(GeneralizedRCNNTransform):
    """torchvision's normalising and batching without its resizing."""

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        return image, target

"""A detector rewritten for inference: the same detections in less time.

Norms are folded, each convolution does the ReLU or the addition that follows it, weights are laid
out once as the processor wants them, and the numbers may be bf16. What is left of the network's
code, the padding of a batch, proposals, pooling, suppression, is that of the detector itself.
"""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from backbones.fused import FusedConv2d, FusedLinear, fuse_blocks_, fuse_network_
from backbones.hooks import has_hooks, hook_ids
from backbones.norm import FoldError, is_own_layer
from backbones.padding import Padding, zero_padding_
from detres.detection.models.box_head import BoxHead, Conv5BoxHead, ConvFcBoxHead, FcBoxHead
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.models.fpn import FPN
from detres.detection.models.roi_head import BoxPredictor
from detres.detection.models.rpn import RPNHead
from detres.engine.probes import native_precision

Precision = Literal["fp32", "bf16", "auto"]
"""auto: bf16 where the processor or GPU has instructions for it."""


def require_precision(precision: str) -> None:
    """Raise ValueError for what is no Precision."""
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ValueError(f"precision is {precision!r}, expected one of {known}")


def fast_copy(model: nn.Module, precision: Precision = "fp32") -> nn.Module:
    """Return a copy of `model`, called as it is in eval mode, with each detector in it rewritten
    for inference on its device; its weights are those of now, and it learns no more.

    precision: of the networks; "fp32" leaves a float64 one as it is. Boxes and scores are at least
    float32. Equal to the model in eval mode up to rounding. A model with a detector that cannot be
    rewritten (group norm, layers of one's own or with hooks), or that cannot be copied, comes
    itself, in bf16 under autocast; so does a model without detectors of this package, always as it
    is.
    """
    if not any(isinstance(module, FasterRCNN) for module in model.modules()):
        return model
    learned = next(model.parameters())
    if precision == "auto":
        precision, _ = native_precision(learned.device)
    dtype = _wide(learned.dtype) if precision == "fp32" else torch.bfloat16
    try:
        return _rewritten(model, dtype)
    except FoldError:
        # itself, not a copy: what its hooks write to is not to be copied with them
        return model if precision == "fp32" else _Autocast(model)


def weights_stamp(model: nn.Module) -> tuple[object, ...]:
    """Return what differs once weights or hooks of `model`, or the settings of a detector in it,
    have changed; what is written past torch's count of changes (`weight.data`) it does not tell.
    """
    tensors = (*model.parameters(), *model.buffers())
    detectors = [module for module in model.modules() if isinstance(module, FasterRCNN)]
    return (
        *((each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors),
        *((each.rpn.settings, each.roi_head.settings) for each in detectors),
        *(hook_ids(module) for module in model.modules()),
    )


def _rewritten(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    try:
        twin = copy.deepcopy(model).eval()
    except (TypeError, RuntimeError) as error:  # locks, files; tensors that a hook has computed
        raise FoldError(f"the model cannot be copied: {error}") from error
    for module in list(twin.modules()):
        if isinstance(module, FasterRCNN):
            _rewrite_(module, dtype)
    return twin


def _rewrite_(detector: FasterRCNN, dtype: torch.dtype) -> None:
    if any(has_hooks(module) for module in detector.modules()):
        raise FoldError("a layer has hooks, so that it has to be called")
    fuse_network_(detector.backbone, dtype)
    if detector.fpn is not None:
        _fuse_pyramid_(detector.fpn, dtype)
    detector.rpn.head = _FusedRPNHead(detector.rpn.head, dtype)
    head = detector.roi_head
    head.box_head = _fused_box_head(head.box_head, head.pooler.output_size, dtype)
    # scores and boxes are made in float32, of few numbers
    predictor = head.predictor
    _require(predictor, BoxPredictor)
    for name in ("cls_score", "bbox_pred"):
        layer = getattr(predictor, name)
        _require(layer, nn.Linear)
        fused = FusedLinear(layer.weight, layer.bias, _wide(dtype), relu=False)
        setattr(predictor, name, fused)


def _require(module: nn.Module, kind: type[nn.Module]) -> None:
    """Raise FoldError for a module that may compute something else than a `kind` does."""
    if type(module) is not kind:
        raise FoldError(f"{type(module).__name__} is no {kind.__name__} of this package or torch's")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _fuse_pyramid_(fpn: FPN, dtype: torch.dtype) -> None:
    for layer in (*fpn.lateral.values(), *fpn.output.values()):
        layer.conv, layer.norm = FusedConv2d(layer.conv, layer.norm, dtype, relu=False), None


def _fused_box_head(head: nn.Module, grid: int, dtype: torch.dtype) -> BoxHead:
    """head: of pooled grids of `grid` x `grid` cells."""
    if type(head) is Conv5BoxHead:
        if not isinstance(head.conv5, nn.Sequential):
            raise FoldError("conv5 is no stage of a ResNet")
        fuse_blocks_(head.conv5, dtype)
        return head
    if type(head) is FcBoxHead:
        return _FusedFcBoxHead(head, grid, dtype)
    if type(head) is ConvFcBoxHead:
        return _FusedConvFcBoxHead(head, grid, dtype)
    raise FoldError(f"{type(head).__name__} is no box head of this package")


class _FusedRPNHead(nn.Module):
    """An RPN head whose two sibling layers are one convolution."""

    def __init__(self, head: RPNHead, dtype: torch.dtype) -> None:
        super().__init__()
        _require(head, RPNHead)
        siblings = (head.objectness, head.deltas)
        if not all(map(is_own_layer, siblings)):
            raise FoldError("a sibling layer of the RPN was replaced")
        self.num_anchors, self.two_way = head.num_anchors, head.two_way
        convs = (head.conv, *head.more_convs)
        self.convs = nn.ModuleList(FusedConv2d(conv, None, dtype, relu=True) for conv in convs)
        both = nn.Conv2d(head.conv.out_channels, sum(each.out_channels for each in siblings), 1)
        both = both.to(head.conv.weight)
        with torch.no_grad():
            both.weight.copy_(torch.cat([each.weight for each in siblings]))
            both.bias.copy_(torch.cat([each.bias for each in siblings]))
        self.siblings = FusedConv2d(both, None, dtype, relu=False)
        self.num_logits = head.objectness.out_channels

    def forward(self, feature: Tensor, padding: Padding | None = None) -> tuple[Tensor, Tensor]:
        """Return what RPNHead does."""
        hidden = feature
        for number, conv in enumerate(self.convs):
            hidden = conv(zero_padding_(hidden, padding) if number else hidden)
        found = self.siblings(hidden)
        found = found.to(_wide(found.dtype)).permute(0, 2, 3, 1)  # (N, H, W, A or 2A + 4A)
        logits, deltas = found.tensor_split((self.num_logits,), dim=-1)
        if self.two_way:
            logits = logits[..., self.num_anchors :] - logits[..., : self.num_anchors]
        return logits.flatten(1), deltas.reshape(len(feature), -1, 4)


class _FusedFcBoxHead(BoxHead):
    """Fully connected layers that read the grid cell by cell, as it lies in memory."""

    def __init__(self, head: FcBoxHead, grid: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_channels = head.out_channels
        linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
        others = [layer for layer in head.layers if not isinstance(layer, nn.Linear)]
        if not all(isinstance(layer, (nn.ReLU, nn.Dropout)) for layer in others):
            raise FoldError("a box head has layers of another kind")
        if sum(isinstance(layer, nn.ReLU) for layer in others) != len(linear):
            raise FoldError("a fully connected layer without its ReLU")
        for layer in linear:
            _require(layer, nn.Linear)
        self.layers = nn.Sequential()
        for number, layer in enumerate(linear):
            weight = layer.weight
            if number == 0:  # (D, C * S * S) -> (D, S * S * C)
                by_channel = weight.view(len(weight), -1, grid, grid)
                weight = by_channel.permute(0, 2, 3, 1).flatten(1)
            self.layers.append(FusedLinear(weight, layer.bias, dtype, relu=True))

    def forward(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S)."""
        return self.layers(pooled.permute(0, 2, 3, 1).flatten(1))


class _FusedConvFcBoxHead(BoxHead):
    """3x3 convolutions, then fully connected layers."""

    def __init__(self, head: ConvFcBoxHead, grid: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_channels = head.out_channels
        pairs = zip(head.convs, head.norms, strict=True)
        self.convs = nn.Sequential(*(FusedConv2d(*pair, dtype, relu=True) for pair in pairs))
        self.fc = _FusedFcBoxHead(head.fc, grid, dtype)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S)."""
        return self.fc(self.convs(pooled))


class _Autocast(nn.Module):
    """A model whose forward is in bf16 where torch's autocast has it so."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        """Return what the model does."""
        with torch.autocast(images.pixels.device.type, torch.bfloat16):
            return self.model(images)

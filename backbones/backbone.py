"""What every network of the package can do: classify, give feature maps by stage name, freeze,
checkpoint activations.

Shapes: N images, C channels, (H, W) pixels. A stage is named after the paper: conv1, conv2, ...
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.catalogue import InputSpec
from backbones.norm import conv_norm
from backbones.padding import Padding, zero_padding_


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    source: the published name or the path. naming: whose names the tensors had. matched: our names
    of the tensors that went in. skipped: name -> why it did not (of the classifier, or norm
    counters). input_spec: what the weights expect as input, None where nothing tells; the network
    then keeps the one it had. left_over: names in the file of tensors that are of no part of the
    network. notes: what the user should know, a line each.
    """

    source: str
    naming: str
    matched: tuple[str, ...]
    skipped: dict[str, str]
    input_spec: InputSpec | None
    left_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {len(self.matched)} tensors under {self.naming}'s names, "
            f"{len(self.skipped)} skipped"
        ]
        for reason in dict.fromkeys(self.skipped.values()):
            names = [name for name, why in self.skipped.items() if why == reason]
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            lines.append(f"  {', '.join(names[:2])}{more}: {reason}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


class Backbone(nn.Module):
    """The base of the networks. A subclass fills `channels` and `strides`, and says how a stage
    runs and what it is made of.

    channels, strides: stage -> channels of its output and pixels an output cell steps by, known
    without a forward. last_stage: the one the classifier reads. num_features: values that go into
    the classifier. input_spec: what the weights expect as input; loading weights sets it. traits:
    what a state dict does not show and weights must agree on, such as where a bottleneck's stride
    sits. frozen_stages: see `freeze`. load_report: what the last load_weights did, None before any.
    """

    last_stage: str
    num_features: int

    head_prefix = "fc."
    """Of the parameters behind the last stage: weights files may lack them or have them in another
    size.
    """

    def __init__(self, *, in_channels: int, input_spec: InputSpec, traits: dict[str, str]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.input_spec = input_spec
        self.traits = traits
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        self.load_report: LoadReport | None = None
        self.frozen_stages = 0
        self.checkpointed_stages: tuple[str, ...] = ()

    # what a subclass says

    def run_stage(
        self, stage: str, x: Tensor, before: Padding | None = None, after: Padding | None = None
    ) -> Tensor:
        """Return the map (N, C', H', W') of `stage` for `x`, (N, C, H, W), the output of the one
        before it (conv1: images). Raises NotImplementedError unless a subclass says how.

        before, after: padding of `x` and of the result, None where no image is padded; what the
        result holds there has a meaning for the next stage alone.
        """
        raise NotImplementedError

    def stage_modules(self, stage: str) -> list[nn.Module]:
        """Return the modules with parameters that make up `stage`; raises NotImplementedError
        unless a subclass says them.
        """
        raise NotImplementedError

    def output_module(self, stage: str) -> str:
        """Return the path of the submodule that gives the map of `stage`; raises
        NotImplementedError unless a subclass says it.
        """
        raise NotImplementedError

    def map_size(self, stage: str, size: tuple[int, int]) -> tuple[int, int]:
        """Return the cells (h', w') of the map of `stage` for an image of `size` (h, w) px, at
        least one a side.
        """
        stride = self.strides[stage]
        return -(-size[0] // stride), -(-size[1] // stride)

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes) for `x`, the last stage's map (N, C, H, W); pre_logits, or
        no classifier: what goes into it, (N, C). Raises NotImplementedError unless a subclass says
        how.
        """
        raise NotImplementedError

    # what they share

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W), or features (N,
        num_features) without classifier.

        Raises ValueError for another number of channels, images smaller than the last stage's
        stride, or when the last stage was popped.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map (N, C, H', W') for images (N, in_channels, H, W); raises as
        `forward` does.
        """
        return self.feature_maps(x, stages=(self.last_stage,))[self.last_stage]

    def feature_maps(
        self,
        x: Tensor,
        stages: Sequence[str] = ("conv4",),
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> dict[str, Tensor]:
        """Return stage -> feature map (N, C, H', W'), in network order, computing nothing beyond
        the last stage asked for.

        x: (N, in_channels, H, W), N = 0 allowed. A stage's map is the one after its last ReLU,
        before any pooling. Frozen leading stages run without a gradient and keep no activations.

        sizes: N (h, w) px that each image fills of a padded batch `x`, which is 0 beyond them;
        None: all of it. An image's cells, the first `map_size` rows and columns of its map, are
        then those that it has alone in a batch of its own size, up to float rounding, and the
        others are 0: they are set to 0 before every convolution that looks beyond a cell, and no
        statistics of the batch count them. A batch without padding costs nothing more.

        Raises ValueError for an unknown or popped stage, another number of channels, images smaller
        than the stride of the last stage asked for, or sizes that do not belong to `x`.
        """
        if isinstance(stages, str):
            raise ValueError(f"stages is a sequence of names, such as ('{stages}',)")
        unknown = [stage for stage in stages if stage not in self.channels]
        if unknown or not stages:
            raise ValueError(
                f"no stage {', '.join(unknown) or '(none asked for)'}, this network has "
                f"{', '.join(self.channels)}"
            )
        names = list(self.channels)
        last = max(map(names.index, stages))
        require_images(x, self.in_channels, names[last], self.strides[names[last]])
        paddings = self._paddings(names[: last + 1], x, sizes)
        found = {}
        for number, stage in enumerate(names[: last + 1]):
            before, after = paddings[number], paddings[number + 1]
            with torch.no_grad() if number < self.frozen_stages else nullcontext():
                x = self.run_stage(stage, x, before, after)
            if stage in stages:
                found[stage] = x if after is None else x * after.keep
        return found

    def _paddings(
        self, stages: Sequence[str], x: Tensor, sizes: Sequence[tuple[int, int]] | None
    ) -> list[Padding | None]:
        """Return the padding of the images `x`, (N, C, H, W), and of the map of every stage."""
        if sizes is None:
            return [None] * (len(stages) + 1)
        whole = (x.shape[2], x.shape[3])
        beyond = [size for size in sizes if size[0] > whole[0] or size[1] > whole[1]]
        if len(sizes) != len(x) or beyond:
            raise ValueError(f"sizes {list(sizes)} do not fit images {tuple(x.shape)}")
        if all(tuple(size) == whole for size in sizes):
            return [None] * (len(stages) + 1)
        paddings = [Padding.of(sizes, whole, x.device)]
        for stage in stages:
            cells = [self.map_size(stage, size) for size in sizes]
            paddings.append(Padding.of(cells, self.map_size(stage, whole), x.device))
        return paddings

    @property
    def feature_info(self) -> list[dict[str, str | int]]:
        """One record a stage: its name, and in timm's words the submodule whose output it is, its
        channels and its stride.
        """
        return [
            {
                "stage": stage,
                "module": self.output_module(stage),
                "num_chs": channels,
                "reduction": self.strides[stage],
            }
            for stage, channels in self.channels.items()
        ]

    def freeze(self, up_to: int) -> Backbone:
        """Stop the first `up_to` stages (1 = conv1, 2 = conv1 and conv2, ...) from learning, for
        good, and return the network.

        They get no gradient, and stay in eval mode whatever train() is asked, of them, of the
        network or of a module that takes them over. A smaller number than before changes nothing.
        Raises ValueError for a number that is negative or above that of the stages, TypeError for
        anything but a whole number.
        """
        if not isinstance(up_to, int):
            raise TypeError(f"expected a whole number of stages to freeze, got {up_to!r}")
        if not 0 <= up_to <= len(self.channels):
            raise ValueError(
                f"cannot freeze {up_to} stages: this network has {len(self.channels)}, "
                f"{', '.join(self.channels)}"
            )
        self.frozen_stages = max(self.frozen_stages, up_to)
        for stage in list(self.channels)[: self.frozen_stages]:
            for module in self.stage_modules(stage):
                module.requires_grad_(False)
                module.eval()
                module.train = MethodType(_stay_in_eval, module)
        return self

    def checkpoint_activations(self, stages: Sequence[str]) -> Backbone:
        """Keep fewer activations of `stages` in training, computing them again in the backward, and
        return the network.

        A stage of n blocks keeps about 2 sqrt(n) blocks' worth instead of n, for one more forward.
        Outputs, gradients and batch norm statistics are those of plain training. Hooks of the stage
        as a whole do not run then, those of its blocks do; torch.compile breaks its graph here.
        Raises ValueError for an unknown stage.
        """
        unknown = [stage for stage in stages if stage not in self.channels]
        if unknown:
            raise ValueError(
                f"no stage {', '.join(unknown)}, this network has {', '.join(self.channels)}"
            )
        self.checkpointed_stages = tuple(stages)
        return self

    def run_blocks(
        self, stage: str, blocks: Sequence[Callable[[Tensor], Tensor]], x: Tensor
    ) -> Tensor:
        """Return `x`, (N, C, H, W), after all blocks of `stage`, checkpointed where
        `checkpoint_activations` asked for it and a backward may follow.
        """
        if stage not in self.checkpointed_stages or not torch.is_grad_enabled():
            # a module's own call runs its hooks
            return blocks(x) if isinstance(blocks, nn.Module) else _run(blocks, x)
        return run_checkpointed(blocks, x, self.stage_modules(stage))


class ResidualBackbone(Backbone):
    """What ResNets and the CIFAR nets share: conv1, bn1, relu, then conv2 in layer1, conv3 in
    layer2, ..., an average and `fc`.

    fc: one linear layer, None without classifier.
    """

    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.ReLU
    avgpool: nn.AdaptiveAvgPool2d
    fc: nn.Linear | None

    def run_stage(
        self, stage: str, x: Tensor, before: Padding | None = None, after: Padding | None = None
    ) -> Tensor:
        """Return the map (N, C', H', W') of `stage` for `x`, (N, C, H, W)."""
        if stage == "conv1":
            return self.relu(zero_padding_(conv_norm(self.conv1, self.bn1, x, after), after))
        blocks = getattr(self, self.output_module(stage))
        if after is not None:
            blocks = [
                functools.partial(block, before=after if index else before, after=after)
                for index, block in enumerate(blocks)
            ]
        return self.run_blocks(stage, blocks, x)

    def stage_modules(self, stage: str) -> list[nn.Module]:
        """Return the modules with parameters that make up `stage`."""
        if stage == "conv1":
            return [self.conv1, self.bn1]
        return [getattr(self, self.output_module(stage))]

    def output_module(self, stage: str) -> str:
        """Return the name of the submodule that gives the map of `stage`."""
        return "relu" if stage == "conv1" else f"layer{int(stage.removeprefix('conv')) - 1}"

    def get_classifier(self) -> nn.Linear | None:
        """Return the last layer, None without."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new, random one for `num_classes`; 0 leaves it out.

        Raises ValueError when the last stage was popped.
        """
        if self.last_stage not in self.channels:
            raise ValueError(
                f"{self.last_stage}, which a classifier reads, was taken out of this network"
            )
        self.fc = (
            new_linear(self.num_features, num_classes, like=self.conv1.weight)
            if num_classes
            else None
        )

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes) for the last map (N, C, H, W), or its average (N, C)."""
        x = self.avgpool(x).flatten(1)
        return x if self.fc is None or pre_logits else self.fc(x)


def new_linear(in_features: int, num_classes: int, *, like: Tensor) -> nn.Linear:
    """Return a linear layer on the device and of the type of `like`, a tensor of any shape (...,);
    raises ValueError for a negative number of classes.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes is {num_classes}, expected 0 (no classifier) or more")
    return nn.Linear(in_features, num_classes, device=like.device, dtype=like.dtype)


@torch.fx.wrap
def require_images(x: Tensor, channels: int, stage: str, stride: int) -> None:
    """Raise ValueError unless x is (N, channels, H, W) with sides of at least `stride`. A leaf for
    symbolic tracing.
    """
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"expected images (N, {channels}, H, W), got {tuple(x.shape)}")
    if x.shape[2] < stride or x.shape[3] < stride:
        raise ValueError(
            f"images {tuple(x.shape)} are too small: {stage} has a stride of {stride}, give at "
            f"least {stride}x{stride} px"
        )


def run_checkpointed(
    blocks: Sequence[Callable[[Tensor], Tensor]], x: Tensor, modules: list[nn.Module]
) -> Tensor:
    """Return `x`, (N, C, H, W), after all `blocks`, which draw no random numbers, the activations
    within about sqrt(n) of n blocks computed again in the backward; modules: what they are made of.
    """
    size = math.isqrt(len(blocks) - 1) + 1
    contexts = functools.partial(_contexts, modules)
    for start in range(0, len(blocks), size):
        segment = functools.partial(_run, blocks[start : start + size])
        x = checkpoint(
            segment, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
    return x


def _run(blocks: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001
    """What train() does to a frozen module."""
    return module


def _contexts(modules: list[nn.Module]) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What surrounds a checkpointed forward, and what its repetitions in the backward."""
    return nullcontext(), _StatisticsHeld(modules)


class _StatisticsHeld:
    """Lets batch norms use a batch without counting it a second time: a momentum of 0 leaves the
    averages as they are.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.norms = [
            norm
            for module in modules
            for norm in module.modules()
            if isinstance(norm, nn.modules.batchnorm._BatchNorm)
        ]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm, (_, counted) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = 0.0, counted.clone()

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, counted) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted

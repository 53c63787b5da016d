"""What every network of the package can do: classify, give feature maps by stage name, freeze, checkpoint activations.

Shapes: N images, C channels, (H, W) pixels. A stage is named after the paper: conv1, conv2, ...
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.catalogue import InputSpec


class Backbone(nn.Module):
    """The base of the networks. A subclass fills `channels` and `strides`, and says how a stage runs and what it is made of.

    channels, strides: stage -> channels of its output and pixels an output cell steps by, known without a forward.
    last_stage: the one the classifier reads. num_features: values that go into the classifier. input_spec: what the weights
    expect as input; loading weights sets it. frozen_stages: see `freeze`.
    """

    last_stage: str
    num_features: int

    head_prefix = "fc."
    """Of the parameters behind the last stage: weights files may lack them or have them in another size."""

    def __init__(self, *, in_channels: int, input_spec: InputSpec) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.input_spec = input_spec
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        self.frozen_stages = 0
        self.checkpointed_stages: tuple[str, ...] = ()

    # what a subclass says

    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        """Return the output of `stage` for the output of the one before it (conv1: for images)."""
        raise NotImplementedError

    def stage_modules(self, stage: str) -> list[nn.Module]:
        """Return the modules with parameters that make up `stage`."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes) for the last stage's map; pre_logits, or no classifier: what goes into it, (N, C)."""
        raise NotImplementedError

    @property
    def traits(self) -> dict[str, str]:
        """What a state dict does not show and weights must agree on, such as where a bottleneck's stride sits."""
        return {}

    # what they share

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W), or features (N, num_features) without classifier.

        Raises ValueError for another number of channels, images smaller than the last stage's stride, or when the last
        stage was popped.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map (N, C, H', W') for images (N, in_channels, H, W); raises as `forward` does."""
        return self.feature_maps(x, stages=(self.last_stage,))[self.last_stage]

    def feature_maps(self, x: Tensor, stages: Sequence[str] = ("conv4",)) -> dict[str, Tensor]:
        """Return stage -> feature map (N, C, H', W'), in network order, computing nothing beyond the last stage asked for.

        x: (N, in_channels, H, W), N = 0 allowed. A stage's map is the one after its last ReLU, before any pooling. Frozen
        leading stages run without a gradient and keep no activations. Raises ValueError for an unknown or popped stage,
        another number of channels, or images smaller than the stride of the last stage asked for.
        """
        unknown = [stage for stage in stages if stage not in self.channels]
        if unknown or not stages:
            raise ValueError(f"no stage {', '.join(unknown) or '(none asked for)'}, this network has {', '.join(self.channels)}")
        names = list(self.channels)
        last = max(map(names.index, stages))
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected images (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        stride = self.strides[names[last]]
        if x.shape[2] < stride or x.shape[3] < stride:
            raise ValueError(
                f"images {tuple(x.shape)} are too small: {names[last]} has a stride of {stride}, give at least {stride}x{stride} px"
            )
        found = {}
        for number, stage in enumerate(names[: last + 1]):
            with torch.no_grad() if number < self.frozen_stages else nullcontext():
                x = self.run_stage(stage, x)
            if stage in stages:
                found[stage] = x
        return found

    @property
    def feature_info(self) -> list[dict[str, str | int]]:
        """One record a stage: its name (module), channels (num_chs) and stride (reduction), in timm's words."""
        return [{"module": stage, "num_chs": self.channels[stage], "reduction": self.strides[stage]} for stage in self.channels]

    def freeze(self, up_to: int) -> Backbone:
        """Stop the first `up_to` stages (1 = conv1, 2 = conv1 and conv2, ...) from learning, for good, and return the network.

        They get no gradient, and their norms stay in eval mode whatever train() is asked. A smaller number than before
        changes nothing. Raises ValueError for a number that is negative or above that of the stages.
        """
        if not 0 <= up_to <= len(self.channels):
            raise ValueError(f"cannot freeze {up_to} stages: this network has {len(self.channels)}, {', '.join(self.channels)}")
        self.frozen_stages = max(self.frozen_stages, up_to)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set train or eval mode, and return the network; frozen stages stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        return [module for stage in list(self.channels)[: self.frozen_stages] for module in self.stage_modules(stage)]

    def checkpoint_activations(self, stages: Sequence[str]) -> Backbone:
        """Keep fewer activations of `stages` in training, computing them again in the backward, and return the network.

        A stage of n blocks keeps about 2 sqrt(n) blocks' worth instead of n, for one more forward. Outputs, gradients and
        batch norm statistics are those of plain training. Raises ValueError for an unknown stage.
        """
        unknown = [stage for stage in stages if stage not in self.channels]
        if unknown:
            raise ValueError(f"no stage {', '.join(unknown)}, this network has {', '.join(self.channels)}")
        self.checkpointed_stages = tuple(stages)
        return self

    def run_blocks(self, stage: str, blocks: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        """Return x after all blocks of `stage`, checkpointed where `checkpoint_activations` asked for it and a backward may follow."""
        if stage not in self.checkpointed_stages or not torch.is_grad_enabled():
            return blocks(x) if isinstance(blocks, nn.Module) else _run(blocks, x)  # a module's own call runs its hooks
        size = math.isqrt(len(blocks) - 1) + 1
        contexts = functools.partial(_contexts, self.stage_modules(stage))
        for start in range(0, len(blocks), size):
            # A stage draws no random numbers, so there is no generator to put back.
            segment = functools.partial(_run, blocks[start : start + size])
            x = checkpoint(segment, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return x


class AveragedBackbone(Backbone):
    """A backbone whose head is the average over the last map and one linear layer `fc` (None: no classifier)."""

    fc: nn.Linear | None

    def get_classifier(self) -> nn.Linear | None:
        """Return the last layer, None without."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new, random one for `num_classes`; 0 leaves it out."""
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else None

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        x = x.mean(dim=(2, 3))
        return x if self.fc is None or pre_logits else self.fc(x)


def _run(blocks: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _contexts(modules: list[nn.Module]) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What surrounds a checkpointed forward, and what its repetition in the backward."""
    return nullcontext(), _statistics_held(modules)


@contextmanager
def _statistics_held(modules: list[nn.Module]) -> Iterator[None]:
    """Let batch norms use the batch without counting it a second time: a momentum of 0 leaves the averages as they are."""
    norms = [norm for module in modules for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches

"""The shortcuts A, B and C of He et al. 2016, section 4.1, and none for the plain nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from backbones.norm import NormKind, conv_norm, make_norm
from backbones.padding import Padding

ShortcutKind = Literal["A", "B", "C", "none"]
PaddingSide = Literal["end", "both"]


class ProjectionShortcut(nn.Sequential):
    """A 1x1 convolution and its norm; state dict names 0.* and 1.*, as torchvision's
    `downsample`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormKind) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), make_norm(norm, channels)
        )

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        """Return (N, channels, H', W') for (N, in_channels, H, W); padding: of the result."""
        return conv_norm(self[0], self[1], x, padding)


class PaddingShortcut(nn.Module):
    """Every stride-th pixel, and zeros for the channels that are new; no parameters.

    side: "end" puts the zeros behind the real channels (fb.resnet.torch), "both" half of them
    before (the widely used CIFAR port). The paper does not say; weights trained with one are wrong
    with the other.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, side: PaddingSide) -> None:
        super().__init__()
        new = channels - in_channels
        self.stride, self.side = stride, side
        self.before = new // 2 if side == "both" else 0
        self.after = new - self.before

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:  # noqa: ARG002
        """Return (N, channels, H', W') for (N, in_channels, H, W), whatever the padding."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Return what print shows of the layer."""
        return f"stride={self.stride}, before={self.before}, after={self.after}"


@dataclass(frozen=True)
class ShortcutRule:
    """Which shortcut a block gets.

    kind: "A": identity, padded with zero channels where it widens; "B": identity, projected where
    the dimensions change; "C": projected everywhere; "none": plain net. padding: side of A's zeros.
    Raises ValueError for another kind or side.
    """

    kind: ShortcutKind
    padding: PaddingSide = "end"

    def __post_init__(self) -> None:
        if self.kind not in ("A", "B", "C", "none"):
            raise ValueError(f"unknown shortcut '{self.kind}', expected A, B, C or none")
        if self.padding not in ("end", "both"):
            raise ValueError(f"unknown shortcut_padding '{self.padding}', expected end or both")

    @property
    def traits(self) -> dict[str, str]:
        """What the tensors of a network do not show: whether one without projections has shortcuts,
        and A's padding.
        """
        if self.kind == "A":
            return {"shortcut": "A", "shortcut_padding": self.padding}
        return {"shortcut": "none"} if self.kind == "none" else {}

    def make(
        self, in_channels: int, channels: int, stride: int, norm: NormKind
    ) -> nn.Module | None:
        """Return what the shortcut does to its input, None where it leaves it as it is (or there is
        no shortcut); raises ValueError for A on a block that narrows.
        """
        same = stride == 1 and in_channels == channels
        if self.kind == "none" or (same and self.kind != "C"):
            return None
        if self.kind == "A":
            if channels < in_channels:
                raise ValueError(
                    f"shortcut A adds channels and cannot make {channels} of {in_channels}: take B "
                    "or C"
                )
            return PaddingShortcut(in_channels, channels, stride, self.padding)
        return ProjectionShortcut(in_channels, channels, stride, norm)

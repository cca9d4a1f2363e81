"""The small parts that several networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def zeroed(layer: nn.Module) -> nn.Module:
    """The same layer with its parameters set to zero, so that a residual branch ending in it starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def norm(channels: int, groups: int = 32, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018): at most ``groups`` groups, of at least eight channels each if possible.

    Unlike batch normalisation it treats each picture by itself.
    """
    most = max(1, min(groups, channels // 8))
    return nn.GroupNorm(next(count for count in range(most, 0, -1) if channels % count == 0), channels, eps)


class ResBlock(nn.Module):
    """Two 3x3 convolutions added to their input (He et al. 2016, *Deep residual learning*, eq. 1).

    Normalisation and activation come before each convolution, as in the same authors' *Identity mappings* (2016).  The
    second convolution starts at zero: at first the block passes its input on unchanged, and deep stacks train from the
    first step.

    Args:
        channels: of the input.
        after: channels of the output, if they differ; a 1x1 convolution then brings the input there.
        groups, eps: of the norms.
    """

    def __init__(self, channels: int, after: int | None = None, groups: int = 32, eps: float = 1e-5):
        super().__init__()
        after = channels if after is None else after
        self.norm1, self.conv1 = norm(channels, groups, eps), nn.Conv2d(channels, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after, groups, eps), zeroed(nn.Conv2d(after, after, 3, padding=1))
        self.shortcut = nn.Identity() if channels == after else nn.Conv2d(channels, after, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, after, H, W)
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(nn.functional.silu(self.norm2(h)))


def coordinates(x: Tensor) -> Tensor:
    """Two channels that tell a convolution where it is: column and row, between -1 and 1 (CoordConv, Liu et al. 2018).

    Args:
        x: any tensor (B, C, H, W).

    Returns:
        (B, 2, H, W), of x's type and device.  Unlike in the paper -1 and 1 are the outer edges of the picture, not the
        centres of its outer pixels, so that the same place has the same number at every resolution.
    """
    b, _, h, w = x.shape
    rows = (torch.arange(h, device=x.device, dtype=x.dtype) * 2 + 1) / h - 1
    columns = (torch.arange(w, device=x.device, dtype=x.dtype) * 2 + 1) / w - 1
    grid = torch.stack([columns.expand(h, w), rows[:, None].expand(h, w)])
    return grid.expand(b, 2, h, w)

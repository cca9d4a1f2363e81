"""Denoisers without the U-Net's shape, for comparison: one resolution, one convolution after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from course.models.layers import norm, zeroed
from course.models.unet import TimedResBlock, sinusoids


class TimedConv(nn.Module):
    """What a residual block holds, without the way around it: the input itself is lost."""

    def __init__(self, channels: int, time_channels: int):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(time_channels, channels)
        self.norm2, self.conv2 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # (B, C, H, W), (B, time) -> (B, C, H, W)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time(functional.silu(time))[:, :, None, None]
        return self.conv2(functional.silu(self.norm2(h)))


class Stack(nn.Module):
    """A denoiser: (x (B, C, H, W), t (B,), None) -> (B, C, H, W).

    Args:
        channels: of the pictures.
        width: channels inside.
        blocks: how many, of two 3x3 convolutions each; a position sees no further than ``2 blocks + 2`` positions (but
            for the statistics of its group norms).
        residual: whether each block is added to its input.
        patch: side of the squares of pixels that become the channels of one position, as in the U-Net.
    """

    def __init__(self, channels: int, width: int = 64, blocks: int = 6, residual: bool = True, patch: int = 1):
        super().__init__()
        self.width, self.patch = width, patch
        time = 4 * width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.conv_in = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            TimedResBlock(width, width, time) if residual else TimedConv(width, time) for _ in range(blocks)
        )
        self.norm_out, self.conv_out = norm(width), zeroed(nn.Conv2d(width, channels * patch**2, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        time = self.time(sinusoids(t, self.width).to(x.dtype))  # (B, 4 width)
        h = self.conv_in(functional.pixel_unshuffle(x, self.patch))
        for block in self.blocks:
            h = block(h, time)
        return functional.pixel_shuffle(self.conv_out(functional.silu(self.norm_out(h))), self.patch)


class Timeless(nn.Module):
    """A denoiser that is never told the time: whatever t is, the network is told 0."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.network(x, torch.zeros_like(t), cond)

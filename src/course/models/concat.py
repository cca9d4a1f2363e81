"""Conditions that are pictures: they enter beside the noisy one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course import UserError


class Concatenated(nn.Module):
    """A denoiser whose condition is a picture of x's size: its channels are laid beside those of x, at the input alone.

    Each position is so told what is wanted right there (Rombach et al. 2022, section 4.3.2).

    Args:
        network: a denoiser (x (B, C + C'', H, W), t (B,), None) -> (B, C, H, W), such as a U-Net with ``out_channels``.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(x (B, C, H, W), t (B,), cond (B, C'', H, W)) -> (B, C, H, W).

        Raises:
            UserError: a condition that is no tensor, or of another batch, height or width.
        """
        shape, (b, _, h, w) = tuple(cond.shape) if isinstance(cond, Tensor) else (), x.shape
        if len(shape) != 4 or (shape[0], *shape[2:]) != (b, h, w):
            wanted = f"({b}, C, {h}, {w}), as large as x"
            raise UserError(f"the condition must be {wanted}, not {shape or type(cond).__name__}")
        return self.network(torch.cat([x, cond], 1), t, None)

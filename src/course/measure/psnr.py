"""Peak signal-to-noise ratio: how close a reconstruction is to its original, in decibels."""

from __future__ import annotations

import torch
from torch import Tensor

from course import UserError


def psnr(original: Tensor, reconstruction: Tensor) -> float:
    """Mean over the batch of each picture's PSNR, 10 log10(peak^2 / MSE) with peak = 2, the width of [-1, 1].

    original: (B, ...) in [-1, 1], images or videos. reconstruction: the same shape; values outside [-1, 1]
    are taken as they are, so clamp first if clamped pictures are what the reader sees.
    Returns decibels: 20 dB is a root mean squared error of a tenth of the range, 40 dB of a hundredth; equal
    pictures give infinity.
    Raises UserError for shapes that differ, an empty batch, values that are not finite or an original outside
    [-1, 1].
    """
    if original.shape != reconstruction.shape:
        raise UserError(
            f"psnr compares equal shapes, got {tuple(original.shape)} and {tuple(reconstruction.shape)}"
        )
    if original.ndim < 2 or original.numel() == 0:
        raise UserError(
            f"psnr needs a batch (B, ...) of at least one picture, got shape {tuple(original.shape)}"
        )
    x, y = original.detach().double().flatten(1), reconstruction.detach().double().flatten(1)  # (B, values)
    if not (x.isfinite().all() and y.isfinite().all()):
        raise UserError("psnr needs finite values, got NaN or infinity")
    if x.abs().max() > 1 + 1e-4:
        raise UserError(f"psnr needs originals in [-1, 1], got {x.min():.3g} to {x.max():.3g}")
    mse = (x - y).square().mean(1)
    return (10 * torch.log10(4 / mse)).mean().item()

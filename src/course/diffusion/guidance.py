"""Denoisers made of denoisers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from course import UserError
from course.diffusion.samplers import Denoiser


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance: a denoiser that overstates what the condition changes (Ho & Salimans 2022, eq. 6).

    eps = eps(null) + scale * (eps(cond) - eps(null)).  A scale of 1 is the conditional denoiser itself, 0 the
    unconditional one; the paper's weight w is scale - 1.

    Attributes:
        denoiser: trained with conditions and, now and then, with ``null`` in their place.
        null: (B, ...) or (1, ...), the condition that stands for "none".
        scale: 0 or more.

    Raises:
        UserError: another scale; called without a condition, or with one that ``null`` cannot stand in for.
    """

    denoiser: Denoiser
    null: Tensor
    scale: float

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise UserError(f"the guidance scale must be 0 or more, not {self.scale}")

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        if not isinstance(cond, Tensor):
            raise UserError(f"guidance needs a condition, a tensor (B, ...), not {type(cond).__name__}")
        if self.null.ndim != cond.ndim or any(n not in (1, c) for n, c in zip(self.null.shape, cond.shape)):
            raise UserError(f"null {tuple(self.null.shape)} cannot stand in for a condition {tuple(cond.shape)}")
        null = self.null.to(cond.device).expand_as(cond)
        # both branches in one batch: one call of the network instead of two
        eps = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, cond]))
        without, with_condition = eps.chunk(2)
        return without + self.scale * (with_condition - without)

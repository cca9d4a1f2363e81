"""Denoisers made of denoisers."""

from __future__ import annotations

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
    """

    denoiser: Denoiser
    null: Tensor
    scale: float

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise UserError(f"the guidance scale must be 0 or more, not {self.scale}")

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        null = self.null.expand_as(cond)
        # both branches in one batch: one call of the network instead of two
        eps = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, cond]))
        without, with_condition = eps.chunk(2)
        return without + self.scale * (with_condition - without)

"""The way from one noise to another that stays where noise is: an arc, not a line."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def slerp(one: Tensor, other: Tensor, c: float | Tensor) -> Tensor:
    """A point of the arc from one tensor to another (Shoemake 1985, section 3.3).

    Args:
        one, other: of one shape, not opposite to each other.
        c: from 0, the first, to 1, the second.
    """
    omega = torch.arccos(cosine_similarity(one.flatten(), other.flatten(), dim=0).clamp(-1, 1))
    if omega < 1e-4:  # nearly one direction: the arc is a line, and its formula divides by zero
        return torch.lerp(one, other, c)
    return (torch.sin((1 - c) * omega) * one + torch.sin(c * omega) * other) / torch.sin(omega)

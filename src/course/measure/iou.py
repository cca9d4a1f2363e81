"""Intersection over union: how well two segmentation maps agree."""

from __future__ import annotations

import torch
from torch import Tensor

from course import UserError


def iou(seen: Tensor, wanted: Tensor) -> float:
    """Mean over pictures of the mean over the labels that a wanted map has, the ground (0) left out.

    For one label: pixels that carry it in both maps over pixels that carry it in either.

    Args:
        seen, wanted: (B, H, W) int64; pictures that want nothing but ground do not count.

    Raises:
        UserError: shapes that differ, maps that are not whole numbers, or nothing but ground everywhere.
    """
    if seen.shape != wanted.shape:
        raise UserError(f"iou compares maps of one shape, got {tuple(seen.shape)} and {tuple(wanted.shape)}")
    if seen.is_floating_point() or wanted.is_floating_point():  # resized ones, whose numbers would lie between labels
        raise UserError(f"iou compares maps of whole numbers, got {seen.dtype} and {wanted.dtype}")
    labels = torch.arange(1, int(wanted.max()) + 1).view(-1, 1, 1, 1)  # (L, 1, 1, 1)
    one, two = seen == labels, wanted == labels  # (L, B, H, W)
    both, either = (one & two).flatten(2).sum(2).double(), (one | two).flatten(2).sum(2)  # (L, B)
    there = two.flatten(2).any(2)
    if not there.any():
        raise UserError("iou needs a map with something on its ground")
    each = torch.where(there, both / either.clamp(min=1), 0).sum(0) / there.sum(0).clamp(min=1)
    return each[there.any(0)].mean().item()

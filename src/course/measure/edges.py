"""What a squared error does not see: how sharp edges are, whether they lie where they should, whether a seam shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from course import UserError

STRONG = 0.9  # quantile of an original's slopes above which a place counts as an edge


def slopes(images: Tensor) -> Tensor:
    """How steeply values change: (B, C, H, W) -> (B, H - 1, W - 1), the length of the gradient over all channels."""
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    return (down**2 + right**2).sum(1).sqrt()


def sharpness(original: Tensor, reconstruction: Tensor) -> float:
    """How much of its edges' slope a reconstruction keeps: 1 is as sharp as the original, less is blurred.

    In each original the steepest tenth of all places are its edges; the mean slope there of the reconstruction is
    divided by that of the original.  Sharp edges at a wrong place do not count.

    Args:
        original, reconstruction: (B, C, H, W) of the same shape.

    Raises:
        UserError: shapes that differ, or originals without any edge.
    """
    if original.shape != reconstruction.shape:
        raise UserError(
            f"sharpness compares equal shapes, got {tuple(original.shape)} and {tuple(reconstruction.shape)}"
        )
    true, made = slopes(original.double()).flatten(1), slopes(reconstruction.double()).flatten(1)
    # where most of a picture is flat the quantile is zero, and flat places are no edges
    edges = (true >= true.quantile(STRONG, dim=1, keepdim=True)) & (true > 0)
    if not edges.any():
        raise UserError("sharpness needs originals with edges; these are flat")
    return (made[edges].sum() / true[edges].sum()).item()


def edge_agreement(made: Tensor, wanted: Tensor, reach: int = 1) -> float:
    """How well edges lie on others: the harmonic mean (F1) of two shares, 1 at best.

    The shares are those of the made edges that have a wanted one within reach, and of the wanted ones that have a made
    one; they are counted over all pictures together.

    Args:
        made, wanted: (N, 1, H, W), 1 on an edge and 0 elsewhere, as :func:`course.data.canny.canny` gives them.
        reach: pixels, in both directions and diagonally.

    Raises:
        UserError: shapes that differ, or no edge at all among those wanted.
    """
    if made.shape != wanted.shape:
        raise UserError(f"edges of equal shapes are compared, not {tuple(made.shape)} and {tuple(wanted.shape)}")
    if not wanted.any():
        raise UserError("there are no edges to agree with")
    if not made.any():
        return 0.0
    near = [max_pool2d(edges, 2 * reach + 1, stride=1, padding=reach) for edges in (wanted, made)]
    precision, recall = ((edges * found).sum() / edges.sum() for edges, found in zip((made, wanted), near))
    return (2 * precision * recall / (precision + recall).clamp(min=1e-9)).item()


def seam(images: Tensor, columns: Sequence[int]) -> float:
    """How much more neighbouring columns differ across some borders than elsewhere: about 1 where no seam shows.

    Args:
        images: (B, C, H, W).
        columns: each border lies between column c - 1 and column c, 1 <= c < W.

    Returns:
        Mean absolute difference across the borders over that across all other pairs of neighbouring columns.
    """
    width = images.shape[-1]
    if not columns or not all(0 < column < width for column in columns):
        raise UserError(f"borders lie at columns 1 .. {width - 1}, not {list(columns)}")
    steps = (images[..., 1:] - images[..., :-1]).abs().double().mean((0, 1, 2))  # (W - 1,)
    border = torch.zeros(width - 1, dtype=torch.bool)
    border[[column - 1 for column in columns]] = True
    if border.all() or not steps[~border].any():
        raise UserError("a seam is compared with the rest of the picture, which is flat here")
    return (steps[border].mean() / steps[~border].mean()).item()

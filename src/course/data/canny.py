"""Edges of pictures: the outlines that a ControlNet is told to follow."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from course import UserError

WEAK, STRONG = 100, 200  # slopes, for levels 0 to 255: an edge begins at a strong one and goes on along weak ones


def canny(images: Tensor) -> Tensor:
    """Edges by Canny's method (Canny 1986), as OpenCV finds them.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        (N, 1, H, W) float32, 1 on an edge and 0 elsewhere.

    Raises:
        UserError: pictures of another shape, or no OpenCV.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"canny needs pictures (N, 3, H, W), not {tuple(images.shape)}")
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"{error}: edges need OpenCV, pip install opencv-python-headless") from None
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
    edges = [cv2.Canny(np.ascontiguousarray(level), WEAK, STRONG) for level in levels]
    return torch.from_numpy(np.stack(edges)[:, None] > 0).float()

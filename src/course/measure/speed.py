"""How long a model takes to make a picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from course import UserError


def milliseconds_per_image(sample: Callable[[int], Tensor], count: int, *, repeats: int = 5) -> float:
    """Wall time of ``sample(count)`` over count, in milliseconds: the median of several calls after one to
    warm up.

    sample: draws that many pictures. The median ignores the call in which the machine was busy elsewhere; the
    warm-up keeps memory allocation and kernel choice out of the number. Raises UserError for a count or repeats
    below 1.
    """
    if count < 1 or repeats < 1:
        raise UserError(f"count and repeats must be at least 1, not {count} and {repeats}")

    def once() -> float:
        start = time.perf_counter()
        if sample(count).is_cuda:
            torch.cuda.synchronize()  # a GPU's work goes on after the call has returned
        return time.perf_counter() - start

    once()
    return 1000 * median(once() for _ in range(repeats)) / count

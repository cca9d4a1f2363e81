"""Drawing a category: the last step of every model that predicts one code after another."""

from __future__ import annotations

import torch
from torch import Tensor

from course import UserError

COLDEST = 1e-30  # a logit over less could be infinite in float32


def choose(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One draw from each row's distribution, after sharpening and cutting it.

    Args:
        logits: (..., K).
        temperature: divides the logits; below 1 likely categories become likelier still.  Below 1e-30 it counts as
            1e-30, where the likeliest category is always taken.
        top_k: keep this many of the likeliest categories, of equals those with lower numbers; None keeps all.
        top_p: keep the fewest likeliest categories whose probabilities sum to at least this (nucleus sampling,
            Holtzman et al. 2020); the likeliest one always stays.
        generator: of the random numbers, on the logits' device.

    Returns:
        (...) int64.

    Raises:
        UserError: temperature not above 0, top_k below 1, top_p outside (0, 1].
    """
    check_choice(temperature, top_k, top_p)
    logits = logits.float() / max(temperature, COLDEST)
    if top_k is not None:
        rest = logits.argsort(dim=-1, descending=True, stable=True)[..., top_k:]
        logits = logits.scatter(-1, rest, -torch.inf)
    if top_p < 1:
        ordered, place = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of all likelier ones
        late = (before >= top_p) & (before > 0)  # the second test is for a top_p that rounds to zero
        logits = logits.scatter(-1, place, ordered.masked_fill(late, -torch.inf))
    flat = logits.softmax(-1).reshape(-1, logits.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])


def check_choice(temperature: float, top_k: int | None, top_p: float) -> None:
    """Raise UserError where `choose` would, before any work."""
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, not {temperature}; near 0 the likeliest code is always taken")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, not {top_k}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must lie in (0, 1], not {top_p}")

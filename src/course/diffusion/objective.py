"""What a network predicts and what it is trained towards: the noise, the picture or the velocity between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course import UserError
from course.diffusion.samplers import Denoiser
from course.diffusion.schedule import Schedule

KINDS = ("eps", "x0", "v")


def target(schedule: Schedule, kind: str, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a predictor of this kind should answer at time t.

    Args:
        kind: "eps", the noise (Ho et al. 2020, eq. 14); "x0", the clean picture; "v", the velocity
            sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022, section 4 and appendix D).
        x0, eps: (B, ...) clean data and the noise added to it.
        t: (B,).
    """
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        signal, noise = schedule.coefs(t, x0)
        return signal * eps - noise * x0
    raise UserError(f"unknown kind of prediction {kind!r}; choose one of {', '.join(KINDS)}")


def as_eps(schedule: Schedule, kind: str, predictor: Denoiser) -> Denoiser:
    """A denoiser, which answers with the noise, made of a predictor of any kind."""
    if kind not in KINDS:
        raise UserError(f"unknown kind of prediction {kind!r}; choose one of {', '.join(KINDS)}")
    if kind == "eps":
        return predictor

    def denoiser(x: Tensor, t: Tensor, cond: object) -> Tensor:
        answer = predictor(x, t, cond)
        signal, noise = schedule.coefs(t, x)
        if kind == "x0":
            return (x - signal * answer) / noise
        return signal * answer + noise * x  # of x = signal x0 + noise eps and v = signal eps - noise x0

    return denoiser


def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar), (B,) float64 (Kingma et al. 2021, eq. 2)."""
    alpha_bar = schedule.at(t)
    return alpha_bar / (1 - alpha_bar)


def simple_loss(
    schedule: Schedule,
    kind: str,
    predictor: Denoiser,
    x0: Tensor,
    cond: object = None,
    *,
    weight: Callable[[Tensor], Tensor] | None = None,
    noise_offset: float = 0.0,
) -> Tensor:
    """Mean squared error at random times: the loss that diffusion models are trained with (Ho et al. 2020, eq. 14).

    Args:
        x0: (B, ...), clean data.
        weight: times (B,) -> (B,), multiplies each item's error; none for the simple loss.
        noise_offset: size of a random shift of the noise that is the same for all pixels of a channel; above 0 it
            teaches the network to change the mean brightness.

    Returns:
        a scalar.
    """
    t = torch.randint(len(schedule), (len(x0),), device=x0.device)
    eps = torch.randn_like(x0)
    if noise_offset:
        eps = eps + noise_offset * torch.randn(*x0.shape[:2], *[1] * (x0.ndim - 2), dtype=x0.dtype, device=x0.device)
    x = schedule.add_noise(x0, t, eps)
    error = (predictor(x, t, cond) - target(schedule, kind, x0, eps, t)).pow(2).flatten(1).mean(1)  # (B,)
    return (error if weight is None else weight(t).to(error.dtype) * error).mean()

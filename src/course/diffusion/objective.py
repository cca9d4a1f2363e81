"""What a network predicts and what it is trained towards: the noise, the picture or the velocity between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course import UserError
from course.diffusion.samplers import Denoiser
from course.diffusion.schedule import Schedule, demand_floats

KINDS = ("eps", "x0", "v")


def target(schedule: Schedule, kind: str, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a predictor of this kind should answer at time t.

    Args:
        kind: "eps", the noise (Ho et al. 2020, eq. 14); "x0", the clean picture; "v", the velocity
            sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022, section 4 and appendix D).
        x0, eps: (B, ...) clean data and the noise added to it.
        t: (B,).

    Raises:
        UserError: another kind, or shapes that differ.
    """
    if x0.shape != eps.shape:
        raise UserError(f"data and noise must have the same shape, not {tuple(x0.shape)} and {tuple(eps.shape)}")
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        signal, noise = schedule.coefs(t, x0)
        return signal * eps - noise * x0
    raise UserError(f"unknown kind of prediction {kind!r}; choose one of {', '.join(KINDS)}")


def as_eps(schedule: Schedule, kind: str, predictor: Denoiser) -> Denoiser:
    """A denoiser, which answers with the noise, made of a predictor of any kind.

    Raises:
        UserError: another kind; when called, an answer that has not the state's shape.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of prediction {kind!r}; choose one of {', '.join(KINDS)}")
    if kind == "eps":
        return predictor

    def denoiser(x: Tensor, t: Tensor, cond: object) -> Tensor:
        answer = predictor(x, t, cond)
        _demand_shape(answer, x)
        signal, noise = schedule.coefs(t, x)
        if kind == "x0":
            return (x - signal * answer) / noise
        return signal * answer + noise * x  # of x = signal x0 + noise eps and v = signal eps - noise x0

    return denoiser


def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar), (B,) float64 (Kingma et al. 2021, eq. 2)."""
    alpha_bar = schedule.at(t)
    return alpha_bar / (1 - alpha_bar)


def min_snr(schedule: Schedule, kind: str, gamma: float = 5.0) -> Callable[[Tensor], Tensor]:
    """Weights for :func:`simple_loss` that bound how much each time counts (Hang et al. 2023, section 3.4).

    Seen as errors of the clean picture, the simple loss weighs time t by snr for noise, 1 for pictures and 1 + snr for
    velocities.  These weights turn that into min(snr, gamma), so that times with hardly any noise do not rule.

    Returns:
        times (B,) -> weights (B,) float64.

    Raises:
        UserError: another kind, or a gamma that is not above 0.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of prediction {kind!r}; choose one of {', '.join(KINDS)}")
    if not 0 < gamma < math.inf:
        raise UserError(f"gamma must be above 0, not {gamma}")

    def weight(t: Tensor) -> Tensor:
        ratio = snr(schedule, t)
        share = {"eps": ratio, "x0": torch.ones_like(ratio), "v": 1 + ratio}[kind]
        return ratio.clamp(max=gamma) / share

    return weight


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

    Raises:
        UserError: pictures that are not floating-point, an answer or weights of another shape, an offset below 0.
    """
    demand_floats(x0, "pictures")
    if not 0 <= noise_offset < math.inf:
        raise UserError(f"the noise offset must be 0 or more, not {noise_offset}")
    t = torch.randint(len(schedule), (len(x0),), device=x0.device)
    eps = torch.randn_like(x0)
    if noise_offset:
        eps = eps + noise_offset * torch.randn(*x0.shape[:2], *[1] * (x0.ndim - 2), dtype=x0.dtype, device=x0.device)
    x = schedule.add_noise(x0, t, eps)
    answer = predictor(x, t, cond)
    _demand_shape(answer, x)  # a missing axis would be spread over the batch, and the loss still fall
    error = (answer - target(schedule, kind, x0, eps, t)).pow(2).reshape(len(x0), -1).mean(1)  # (B,)
    if weight is None:
        return error.mean()
    weights = weight(t).to(error.dtype).to(error.device)
    if weights.shape != error.shape:
        raise UserError(f"a weight must be one number for each time, {len(error)} of them, not {tuple(weights.shape)}")
    return (weights * error).mean()


def _demand_shape(answer: Tensor, x: Tensor) -> None:
    if answer.shape != x.shape:
        raise UserError(f"the predictor must answer in the state's shape {tuple(x.shape)}, not {tuple(answer.shape)}")

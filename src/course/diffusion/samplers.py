"""From noise to data and back, one jump at a time (Song, Meng & Ermon 2021; DDPM is the special case eta = 1)."""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence

import torch
from torch import Tensor

from course import UserError
from course.diffusion.schedule import Schedule, demand_floats

Denoiser = Callable[[Tensor, Tensor, object], Tensor]  # (x (B, ...), t (B,), condition or None) -> eps (B, ...)


def times(T: int, steps: int) -> list[int]:
    """A falling sequence of ``steps`` times, evenly spread, from T - 1 to 0, and -1 at the end.

    Raises:
        UserError: fewer than 1 step or more than T.
    """
    if type(steps) is not int or not 1 <= steps <= T:
        raise UserError(f"steps must be a whole number from 1 to {T}, not {steps!r}")
    spread = torch.linspace(T - 1, 0, steps, dtype=torch.float64) if steps > 1 else torch.tensor([T - 1.0])
    return [*spread.round().long().tolist(), -1]


def predict_x0(schedule: Schedule, x: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """The clean picture that x_t and its noise imply (Song et al. 2021, eq. 9).

    Args:
        x, eps: (B, ...) of the same shape.
        t: one time, or times (B,).

    Raises:
        UserError: shapes that differ, a time outside the schedule or one at which no signal is left.
    """
    demand_floats(eps, "noise")
    if x.shape != eps.shape:
        raise UserError(f"state and noise must have the same shape, not {tuple(x.shape)} and {tuple(eps.shape)}")
    signal, noise = schedule.coefs(t, x)
    if (signal == 0).any():
        raise UserError("no signal is left at this time (alpha_bar = 0), so the noise does not tell the picture")
    return (x - noise * eps) / signal


def step(
    schedule: Schedule,
    x: Tensor,
    eps: Tensor,
    t: int,
    s: int,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    clip: bool = False,
    large: bool = False,
) -> Tensor:
    """One jump from time t to time s (Song et al. 2021, eq. 12 and 16).

    Args:
        x: (B, ...), the state at t.
        eps: (B, ...), the noise that the network sees in it.
        t, s: times, s < t; s = -1 is clean data.
        eta: 0 gives DDIM, without chance; 1 gives DDPM's posterior.  The variance carries eta squared.
        noise: (B, ...), standard normal; needed where eta > 0 and s >= 0.  In the last step none is added.
        clip: keep the predicted clean picture in [-1, 1], and take the noise that belongs to it.
        large: draw the noise with the larger variance 1 - alpha_bar_t / alpha_bar_s, which is beta_t for neighbours
            (Ho et al. 2020, section 3.2) and sigma-hat squared for longer jumps (Song et al. 2021, appendix D.3).  The
            mean stays that of eta, 1 in both papers: with the larger variance in it, its square root could go negative.
            With eta's it cannot: eta^2 (1 - alpha_bar_t / alpha_bar_s) <= 1 - alpha_bar_t, since alpha_bar_s <= 1.

    Returns:
        (B, ...), the state at s.

    Raises:
        UserError: eta outside [0, 1], times that do not fall or lie outside the schedule, shapes that differ, types
            that are not floating-point, missing noise.
    """
    _demand_eta(eta)
    if not -1 <= s < t:
        raise UserError(f"a step goes from a time t to an earlier one, not from {t} to {s}")
    now, then = schedule.at(t).item(), schedule.at(s).item()
    x0 = predict_x0(schedule, x, eps, t)
    if clip:
        x0 = x0.clamp(-1, 1)
        signal, level = schedule.coefs(t, x)
        eps = (x - signal * x0) / level
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)  # eq. 16 squared
    mean = then**0.5 * x0 + max(1 - then - variance, 0.0) ** 0.5 * eps  # rounding can leave -1e-17
    if large and s >= 0:
        variance = 1 - now / then
    if variance == 0:
        return mean
    if noise is None:
        raise UserError("a step with chance (eta > 0, or the large variance) needs noise")
    if noise.shape != x.shape:
        raise UserError(f"fresh noise must have the state's shape {tuple(x.shape)}, not {tuple(noise.shape)}")
    return mean + variance**0.5 * noise


@torch.no_grad()
def sample(
    schedule: Schedule,
    denoiser: Denoiser,
    x: Tensor,
    steps: int,
    *,
    cond: object = None,
    eta: float = 0.0,
    clip: bool = False,
    large: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    path: Sequence[int] | None = None,
) -> Generator[Tensor, None, None]:
    """From noise to data, yielding the state after each step.

    Args:
        denoiser: called with (x, t (B,), cond), gives eps.
        x: (B, ...), the state at the first time; standard normal noise to start from the end.
        steps: how many; see :func:`times`.
        cond: handed to the denoiser; a tensor must have one entry for each picture.
        eta, clip, large: see :func:`step`.
        generator: of the noise that the steps add; or one for each picture, so that a picture depends on its own
            seed and not on the others in its batch.
        path: falling times instead of the ``steps`` evenly spread ones, ending with -1.

    Raises:
        UserError: as :func:`step`; a path that does not fall or end with -1; another number of generators or
            conditions than of pictures; and, on the way, an answer of another shape or one that is not finite.
    """
    _demand_batch(x, cond)
    _demand_eta(eta)
    path = times(len(schedule), steps) if path is None else _checked(schedule, path)
    if isinstance(generator, Sequence) and len(generator) != len(x):
        raise UserError(f"{len(x)} pictures need one generator or {len(x)}, not {len(generator)}")
    for t, s in zip(path, path[1:]):
        eps = _answer(denoiser, x, t, cond)
        noise = None
        if (eta > 0 or large) and s >= 0:
            noise = normal(x, generator)
        x = step(schedule, x, eps, t, s, eta=eta, noise=noise, clip=clip, large=large)
        yield x


def last(states: Iterable[Tensor]) -> Tensor:
    """Walk to the end and keep the last state alone: the finished pictures."""
    return deque(states, maxlen=1).pop()


def normal(like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
    """Standard normal noise.

    Args:
        like: (B, ...); the noise has its shape, type and device.
        generator: one, or one for each picture, or none for torch's own.  It draws on its own device, so a generator on
            the CPU gives the same noise wherever the pictures are.
    """
    if isinstance(generator, Sequence):
        return torch.stack([normal(picture, one) for picture, one in zip(like, generator, strict=True)])
    place = like.device if generator is None else generator.device
    return torch.randn(like.shape, dtype=like.dtype, device=place, generator=generator).to(like.device)


@torch.no_grad()
def invert(
    schedule: Schedule, denoiser: Denoiser, x: Tensor, steps: int, *, cond: object = None
) -> Generator[Tensor, None, None]:
    """From data to the noise that DDIM turns into it, yielding each state: the same jumps, walked the other way.

    The noise at the later time is not known yet, so the answer at the earlier one stands in for it, which is exact
    only for small jumps (Song et al. 2021, section 4.3).  The first jump starts at clean data, where the network was
    never trained: it is asked at t = 0 instead.

    Arguments and errors as :func:`sample`.
    """
    _demand_batch(x, cond)
    path = times(len(schedule), steps)[::-1]
    for s, t in zip(path, path[1:]):
        eps = _answer(denoiser, x, max(s, 0), cond)
        x0 = predict_x0(schedule, x, eps, s)
        signal, noise = schedule.coefs(t, x)
        x = signal * x0 + noise * eps
        yield x


def _checked(schedule: Schedule, path: Sequence[int]) -> list[int]:
    """A path of one's own as a list."""
    try:
        path = [operator.index(t) for t in path]
    except TypeError:
        raise UserError(f"a path holds whole numbers, not {path!r:.60}") from None
    if len(path) < 2 or path[-1] != -1 or any(s >= t for t, s in zip(path, path[1:])):
        raise UserError(f"a path must fall from time to time and end with -1, not {str(path):.60}")
    schedule.at(path[0])  # inside the schedule?
    return path


def _demand_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise UserError(f"eta must lie in [0, 1], not {eta}")


def _demand_batch(x: Tensor, cond: object) -> None:
    demand_floats(x, "pictures")
    if isinstance(cond, Tensor) and cond.shape[:1] != x.shape[:1]:
        raise UserError(f"{len(x)} pictures need {len(x)} conditions, not a tensor {tuple(cond.shape)}")


def _answer(denoiser: Denoiser, x: Tensor, t: int, cond: object) -> Tensor:
    eps = denoiser(x, torch.full((len(x),), t, device=x.device), cond)
    if eps.shape != x.shape:
        raise UserError(f"the denoiser must answer in the state's shape {tuple(x.shape)}, not {tuple(eps.shape)}")
    if not eps.isfinite().all():
        raise UserError(f"the denoiser's answer at t = {t} is not finite (NaN or infinity)")
    return eps


@torch.no_grad()
def sample_second_order(
    schedule: Schedule, denoiser: Denoiser, x: Tensor, steps: int, *, cond: object = None
) -> Generator[Tensor, None, None]:
    """DPM-Solver++(2M): as many calls of the network as DDIM, an error of second order (Lu et al. 2022, algorithm 2).

    DDIM uses the clean picture predicted at the beginning of a jump for all of it.  This solver takes the value that
    the straight line through the last two predictions reaches in the middle of the jump, where the coordinate is
    lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)).  The first jump, which has only one prediction, and the last,
    which ends at lambda = infinity, are DDIM's.

    Arguments, yields and errors as :func:`sample` without eta.
    """
    _demand_batch(x, cond)
    path = times(len(schedule), steps)
    before = None  # the previous step's lambda and its predicted clean picture
    for t, s in zip(path, path[1:]):
        x0 = predict_x0(schedule, x, _answer(denoiser, x, t, cond), t)
        here = _log_snr(schedule, t) / 2
        guess = x0
        if before is not None and s >= 0:
            ratio = (_log_snr(schedule, s) / 2 - here) / (here - before[0])  # this step over the last
            guess = x0 + 0.5 * ratio * (x0 - before[1])
        before = here, x0
        signal_t, noise_t = schedule.coefs(t, x)
        signal_s, noise_s = schedule.coefs(s, x)
        x = noise_s / noise_t * x + (signal_s - signal_t * noise_s / noise_t) * guess
        yield x


def _log_snr(schedule: Schedule, t: int) -> float:
    alpha_bar = schedule.at(t).item()
    return math.log(alpha_bar / (1 - alpha_bar))

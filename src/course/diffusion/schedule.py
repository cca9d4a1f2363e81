"""How much signal and how much noise a picture holds at each time of the forward process."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from course import UserError


@dataclass(frozen=True)
class Schedule:
    """The forward process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)  (Ho et al. 2020, eq. 4).

    Attributes:
        alpha_bar: (T,) float64, the signal's share of the variance: between 0 and 1 and falling.

    Raises:
        UserError: an alpha_bar that is not such a sequence.
    """

    alpha_bar: Tensor

    def __post_init__(self) -> None:
        a = self.alpha_bar
        if a.ndim != 1 or len(a) < 1 or a.dtype != torch.float64:
            raise UserError(f"alpha_bar must be (T,) in float64, not {tuple(a.shape)} in {a.dtype}")
        if not (a.isfinite().all() and (a >= 0).all() and (a < 1).all() and (a.diff() < 0).all()):
            raise UserError("alpha_bar must lie in [0, 1) and fall from each time to the next")

    def __len__(self) -> int:
        """T, the number of noised states."""
        return len(self.alpha_bar)

    def at(self, t: int | Tensor) -> Tensor:
        """alpha_bar at one time or at times (B,); 1 at t = -1, so that the last step needs no special case.

        Returns:
            () or (B,), float64 on the CPU.

        Raises:
            UserError: a time outside -1 .. T - 1, or one that is not a whole number.
        """
        t = torch.as_tensor(t).cpu()  # the table stays there: not every device computes in float64
        if t.dtype.is_floating_point or t.dtype.is_complex or t.dtype == torch.bool:
            raise UserError(f"times are whole numbers, not {t.dtype}")
        if t.ndim > 1:
            raise UserError(f"times must be one number or (B,), not {tuple(t.shape)}")
        if t.numel() and not -1 <= int(t.min()) <= int(t.max()) < len(self):
            raise UserError(f"times must lie in -1 .. {len(self) - 1}, not {int(t.min())} .. {int(t.max())}")
        padded = torch.cat([self.alpha_bar, self.alpha_bar.new_ones(1)])  # index -1 is the last entry
        return padded[t.long()]  # bytes would be taken for a mask

    def coefs(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped so that they multiply a batch.

        Args:
            t: one time, or times (B,).
            like: (B, ...) of any rank and of a floating-point type; the results have its type and device.

        Returns:
            (signal, noise), each () or (B, 1, ..., 1); their squares add up to 1.

        Raises:
            UserError: as :meth:`at`; another type, which would round the coefficients to 0; another number of times
                than of pictures.
        """
        demand_floats(like, "pictures")
        alpha_bar = self.at(t)
        if alpha_bar.ndim:
            if like.ndim > 1 and len(alpha_bar) != len(like):
                raise UserError(f"{len(like)} pictures need one time or {len(like)} times, not {len(alpha_bar)}")
            alpha_bar = alpha_bar.reshape(-1, *[1] * (like.ndim - 1))
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        return signal.to(like.dtype).to(like.device), noise.to(like.dtype).to(like.device)

    def add_noise(self, x0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """x_t for given noise, in one jump from clean data (Ho et al. 2020, eq. 4).

        Args:
            x0, eps: (B, ...) of the same shape.
            t: one time, or times (B,).
        """
        if x0.shape != eps.shape:
            raise UserError(f"data and noise must have the same shape, not {tuple(x0.shape)} and {tuple(eps.shape)}")
        signal, noise = self.coefs(t, x0)
        return signal * x0 + noise * eps


def demand_floats(x: Tensor, what: str) -> None:
    """Refuse whole numbers, which would be rounded, and complex ones."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise UserError(f"{what} must be floating-point, not {x.dtype if isinstance(x, Tensor) else type(x).__name__}")


def from_betas(betas: Tensor) -> Schedule:
    """The schedule whose steps have variances beta: alpha_bar_t is the product of 1 - beta up to t."""
    return Schedule((1 - betas.double()).cumprod(0))


def linear(T: int = 1000, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """Betas rise in a straight line (Ho et al. 2020, section 4)."""
    return from_betas(torch.linspace(first, last, _count(T), dtype=torch.float64))


def scaled_linear(T: int = 1000, first: float = 0.00085, last: float = 0.012) -> Schedule:
    """Square roots of the betas rise in a straight line (Rombach et al. 2022, as released)."""
    return from_betas(torch.linspace(first**0.5, last**0.5, _count(T), dtype=torch.float64) ** 2)


def cosine(T: int = 1000, s: float = 0.008, largest: float = 0.999) -> Schedule:
    """alpha_bar falls like a squared cosine (Nichol & Dhariwal 2021, eq. 17); betas are cut off at ``largest``."""
    u = torch.arange(_count(T) + 1, dtype=torch.float64) / T
    curve = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return from_betas((1 - curve[1:] / curve[:-1]).clamp(max=largest))


def _count(T: int) -> int:
    if type(T) is not int or T < 1:
        raise UserError(f"a schedule has a whole number of times, 1 or more, not {T!r}")
    return T

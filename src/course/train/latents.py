"""Diffusion on latents: a trained autoencoder, and its latents brought to unit variance (Rombach et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course import UserError
from course.models.autoencoder import Autoencoder, Point
from course.train import weights

AT_ONCE = 2**20  # pixels of the pictures that are encoded or decoded together


@dataclass(frozen=True)
class LatentSpace:
    """Pictures to latents and back, both on the CPU.

    Attributes:
        model: in evaluation mode, without gradients, on whatever device.
        f: how many times smaller a latent is on each side.
        std: standard deviation of the encoder's means; latents are divided by it, so that the noise of a schedule,
            whose variance is 1, meets a signal of variance 1 (section 4.3.2 and appendix G there).
        channels: of a latent.
    """

    model: nn.Module
    f: int
    std: float
    channels: int

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] -> latents (N, C, H / f, W / f) of about unit variance.

        Raises:
            UserError: a height or width that does not divide by f.
        """
        if any(side % self.f for side in x.shape[2:]):
            raise UserError(f"height and width must be multiples of f = {self.f}, not {tuple(x.shape[2:])}")
        device = self._device
        return torch.cat([self.model.encode(part.to(device)).z.cpu() for part in x.split(self._few(x))]) / self.std

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, C, h, w) -> pictures (N, 3, h f, w f) in [-1, 1]."""
        device, parts = self._device, (z * self.std).split(self._few(z, self.f))
        return torch.cat([self.model.decode(part.to(device)).cpu() for part in parts]).clamp(-1, 1)

    @property
    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def _few(self, maps: Tensor, f: int = 1) -> int:
        """How many of them go together: pictures, or latents that are f times smaller."""
        height, width = maps.shape[2:]
        return max(1, AT_ONCE // max(1, height * width * f**2))


def latent_space(name: str) -> LatentSpace:
    """A latent space by the name of shipped weights, or by the path of a result of `course train kl`.

    "pixels" is no model: latents are the pictures themselves.

    Raises:
        UserError: there is none, or it was not made by the recipe kl.
    """
    if name == "pixels":
        return LatentSpace(Autoencoder(nn.Identity(), Point(), nn.Identity()), 1, 1.0, 3)
    path, meta = weights.locate(name)
    if meta.get("recipe") != "kl":
        raise UserError(f"{name} has no latents: it was made by the recipe {meta.get('recipe')!r}, not kl")
    settings = meta["settings"]
    f = 2 ** (len(settings["widths"]) - 1)
    return LatentSpace(weights.read(path), f, meta["metrics"]["latent_std"], settings["latent"])

"""A pipeline of Diffusers behind the book's interfaces: schedule, denoiser, latents and encoded captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course import UserError
from course.diffusion.guidance import Guided
from course.diffusion.objective import as_eps
from course.diffusion.samplers import Denoiser, last, sample
from course.diffusion.schedule import Schedule
from course.export import pipeline
from course.train.recipes.ldm import path as trailing

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}  # what networks answer with, theirs -> ours
BATCH = 100  # pictures at once


@dataclass(frozen=True)
class Parts:
    """What the book's own functions need of a Stable Diffusion pipeline.

    Attributes:
        pipe: with ``vae``, ``text_encoder``, ``tokenizer``, ``unet`` and ``scheduler``, as Diffusers has them.
        schedule: of the noise.
        kind: of the network's answer, "eps", "x0" or "v".
        predictor: the network: z (B, C, h, w), t (B,), cond (B, M, C') -> its answer (B, C, h, w).  To lead it, as a
            ControlNet does, put another one in its place: ``replace(parts, predictor=...)``.
    """

    pipe: DiffusionPipeline
    schedule: Schedule
    kind: str
    predictor: Denoiser

    @property
    def f(self) -> int:
        """How many times smaller a latent is on each side."""
        return self.pipe.vae_scale_factor

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] -> latents (N, C, H / f, W / f) of about unit variance, on the CPU.

        Raises:
            UserError: a height or width that does not divide by f.
        """
        if any(side % self.f for side in x.shape[2:]):
            raise UserError(f"height and width must be multiples of f = {self.f}, not {tuple(x.shape[2:])}")
        vae = self.pipe.vae
        means = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mean.cpu().float() for part in x.split(BATCH)]
        return torch.cat(means) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, C, h, w) -> pictures (N, 3, h f, w f) in [-1, 1], on the CPU."""
        vae = self.pipe.vae
        z = z / vae.config.scaling_factor
        pictures = [vae.decode(part.to(vae.device, vae.dtype)).sample.cpu().float() for part in z.split(BATCH)]
        return torch.cat(pictures).clamp(-1, 1)

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Captions -> their tokens' vectors (N, M, C), on the U-Net's device."""
        words, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        options = {"padding": "max_length", "truncation": True, "max_length": words.model_max_length}
        numbers = words(list(captions), return_tensors="pt", **options).input_ids
        return encoder(numbers.to(encoder.device))[0]

    @property
    def denoiser(self) -> Denoiser:
        """The network as the book's samplers call it; states may be float64."""
        return as_eps(self.schedule, self.kind, self.predictor)

    @torch.no_grad()
    def draw(
        self,
        captions: Sequence[str],
        *,
        scale: float = 3.0,
        steps: int = 20,
        seed: int = 0,
    ) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] for captions, of the size that the pipeline was trained on.

        Args:
            scale: of the guidance, 0 or more.
            steps: of DDIM; T must divide by them.
        """
        unet, generator = self.pipe.unet, torch.Generator().manual_seed(seed)
        side, null, made = unet.config.sample_size, self.embed([""]), []
        for start in range(0, len(captions), BATCH):
            cond = self.embed(captions[start : start + BATCH])
            z = torch.randn(len(cond), unet.config.in_channels, side, side, generator=generator).double()
            options = {"cond": cond, "path": trailing(len(self.schedule), steps)}
            guided = Guided(self.denoiser, null, scale)
            made.append(self.decode(last(sample(self.schedule, guided, z.to(unet.device), steps, **options))))
        return torch.cat(made)


def parts(pipe: DiffusionPipeline) -> Parts:
    """The parts of a pipeline that is loaded already."""
    config = pipe.scheduler.config
    if config.prediction_type not in KINDS:
        raise UserError(f"the pipeline's network must answer with {', '.join(KINDS)}, not {config.prediction_type}")

    def predictor(z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return pipe.unet(z.to(pipe.unet.dtype), t, cond.to(pipe.unet.dtype)).sample

    schedule = Schedule(pipe.scheduler.alphas_cumprod.double())
    return Parts(pipe, schedule, KINDS[config.prediction_type], predictor)


def opened(base: str) -> Parts:
    """The parts of a text-to-image model: by the name of shipped weights, a result of `course train ldm`, or a folder.

    Raises:
        UserError: none of these, or weights of another recipe.
    """
    return parts(pipeline.load(base) if Path(base).is_dir() else pipeline.built(base))

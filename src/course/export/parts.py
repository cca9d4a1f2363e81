"""A pipeline of Diffusers behind the book's interfaces: schedule, denoiser, latents and encoded captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from course import UserError
from course.diffusion.guidance import Guided
from course.diffusion.objective import as_eps
from course.diffusion.samplers import Denoiser, last, sample
from course.diffusion.schedule import Schedule
from course.export import pipeline
from course.models.autoencoder import Encoded
from course.train.latents import LatentSpace
from course.train.recipes.ldm import path as trailing

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}  # what networks answer with, theirs -> ours
BATCH = 100  # pictures drawn at once


class Translated(nn.Module):
    """Diffusers' autoencoder as the book calls one, on whatever device it is; takes and gives float32 on the CPU."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def encode(self, x: Tensor) -> Encoded:
        z = self.vae.encode(x.to(self.vae.device, self.vae.dtype)).latent_dist.mean
        return Encoded(z.cpu().float(), z.new_zeros(len(z)))

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z.to(self.vae.device, self.vae.dtype)).sample.cpu().float()


@dataclass(frozen=True)
class Parts:
    """What the book's own functions need of a Stable Diffusion pipeline.

    Attributes:
        pipe: with ``vae``, ``text_encoder``, ``tokenizer``, ``unet`` and ``scheduler``, as Diffusers has them.
        schedule: of the noise.
        space: pictures to latents and back, both on the CPU.
        kind: of the network's answer, "eps", "x0" or "v".
        predictor: the network: z (B, C, h, w), t (B,), cond (B, M, C') -> its answer (B, C, h, w).  To lead it, as a
            ControlNet does, put another one in its place: ``replace(parts, predictor=...)``.
    """

    pipe: DiffusionPipeline
    schedule: Schedule
    space: LatentSpace
    kind: str
    predictor: Denoiser

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Captions -> their tokens' vectors (N, M, C), on the U-Net's device.

        Raises:
            UserError: a caption with more tokens than the text encoder has places.
        """
        words, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        numbers = words(list(captions), padding="max_length").input_ids
        longest = max(map(len, numbers), default=0)
        if longest > words.model_max_length:
            raise UserError(f"a caption has {longest} tokens, at most {words.model_max_length} are allowed")
        return encoder(torch.tensor(numbers, device=encoder.device))[0]

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
            made.append(self.space.decode(last(sample(self.schedule, guided, z.to(unet.device), steps, **options))))
        return torch.cat(made)


def parts(pipe: DiffusionPipeline) -> Parts:
    """The parts of a pipeline that is loaded already."""
    config = pipe.scheduler.config
    if config.prediction_type not in KINDS:
        raise UserError(f"the pipeline's network must answer with {', '.join(KINDS)}, not {config.prediction_type}")

    def predictor(z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return pipe.unet(z.to(pipe.unet.dtype), t, cond.to(pipe.unet.dtype)).sample

    schedule, vae = Schedule(pipe.scheduler.alphas_cumprod.double()), pipe.vae.config
    space = LatentSpace(Translated(pipe.vae), pipe.vae_scale_factor, 1 / vae.scaling_factor, vae.latent_channels)
    return Parts(pipe, schedule, space, KINDS[config.prediction_type], predictor)


def opened(base: str, decoder: str = "") -> Parts:
    """The parts of a text-to-image model: by the name of shipped weights, a result of `course train ldm`, or a folder.

    Args:
        decoder: for weights, see :func:`course.export.pipeline.built`.

    Raises:
        UserError: none of these, or weights of another recipe; a decoder for a folder.
    """
    if not Path(base).is_dir():
        return parts(pipeline.built(base, decoder))
    if decoder:
        raise UserError(f"the folder {base} has a decoder of its own; leave out {decoder}")
    return parts(pipeline.load(base))

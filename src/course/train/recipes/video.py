"""Chapter 11: the spacetime autoencoder, whose latents a video diffusion transformer draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from course import data, measure
from course.models.video import VideoAutoencoder, video_autoencoder
from course.train.recipes.vqvae import player
from course.train.settings import Task, choice, number

# Canvas and frames of one batch after another; a clip of nine frames moves twice as fast, one of one frame is a picture
CLIPS = (((32, 32), 17), ((24, 40), 17), ((32, 32), 9), ((40, 24), 17), ((32, 32), 1))
AT_ONCE = 50  # clips that are measured together


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("shapes_video", "shapes_video")
    f: int = choice(4, 2, 4, 8)  # compression of each side
    temporal: int = choice(4, 1, 2, 4, 8)  # compression of time after the first frame; 1 codes every frame alone
    latent: int = number(8, 1, 512)  # numbers at each place of the code
    widths: tuple[int, ...] = number((64, 96, 96), 1, 4096)  # channels at each resolution, from half the full one down
    depth: int = number(1, 1, 8)  # residual blocks at each resolution
    weight: float = number(1e-6, 0.0, 100.0)  # of the pull towards N(0, I), in nats for each number of the code
    ema: float | None = number(0.998, 0.0, 0.99999)
    steps: int = number(6000, 1, 10_000_000)
    batch: int = number(16, 1, 65536)
    lr: float = number(1e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=2, widths=(8, 16, 16)),
    "quick": Settings(steps=60, batch=8, widths=(32, 64, 64)),
    "full": Settings(),
}


def load(settings: Settings, split: str) -> list[data.DataSet]:
    """The data sets that take turns; the first one is also what is measured."""
    return [
        data.load("shapes_video", split, size=size, frames=frames, seed=settings.seed)
        for size, frames in CLIPS
    ]


def model(settings: Settings) -> VideoAutoencoder:
    return video_autoencoder(
        3, settings.latent, settings.widths, settings.depth, settings.f, settings.temporal
    )


def loss(settings: Settings, model: VideoAutoencoder, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of a pixel, and the weighted KL divergence of a number of the code, as of the recipe kl."""
    x = batch["video"]  # (B, T, 3, H, W)
    decoded, encoded = model(x)
    error = functional.mse_loss(decoded.float(), x)
    bottleneck = settings.weight * encoded.loss.mean() / encoded.z[0].numel()
    return error + bottleneck, {"error": error, "bottleneck": bottleneck}


def batches(settings: Settings, start: int) -> Iterator[dict]:
    return data.in_turn(load(settings, "train"), settings.batch, seed=settings.seed, start=start, keys=("video",))


def build(settings: Settings, model_: VideoAutoencoder | None = None) -> Task:
    network = model(settings) if model_ is None else model_
    return Task([player(settings, network, loss)], partial(batches, settings), partial(metrics, settings))


@torch.no_grad()
def metrics(settings: Settings, model: VideoAutoencoder, count: int = 500) -> dict[str, float]:
    """How faithful reconstructions of test clips and of their first frames alone are, and the moments of the codes."""
    test_set, train_set = (load(settings, split)[0] for split in ("test", "train"))
    found = {"psnr": [], "psnr_image": []}
    for first in range(0, count, AT_ONCE):
        x = test_set.batch(range(first, min(first + AT_ONCE, count)))["video"]
        found["psnr"] += [measure.psnr(x, model(x)[0])] * len(x)
        found["psnr_image"] += [measure.psnr(x[:, :1], model(x[:, :1])[0])] * len(x)
    z = [model.encode(train_set.batch(range(n, n + AT_ONCE))["video"]).z for n in range(0, count, AT_ONCE)]
    z = torch.cat(z).double()
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return means | {"latent_mean": z.mean().item(), "latent_std": z.std().item()}

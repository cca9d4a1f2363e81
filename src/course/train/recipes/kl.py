"""Chapter 7: Stable Diffusion's autoencoder, whose codes a diffusion model draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from course import data
from course.data.captions import STYLES
from course.models.autoencoder import Autoencoder, Gaussian
from course.models.kl import kl_autoencoder
from course.models.quantise import VectorQuantiser
from course.train import checkpoint, weights
from course.train.recipes.vqvae import fidelity, player
from course.train.settings import Task, choice, number


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("shapes", "shapes", "glyphs", "digits", "mnist", "fashion_mnist")
    size: int | None = number(64, 8, 128)  # of the pictures; none for the data set's own
    latent: int = number(8, 1, 512)  # numbers at each position of the code
    widths: tuple[int, ...] = number((16, 32, 64, 128), 1, 4096)  # channels at each resolution; f = 2^(how many - 1)
    depth: int = number(1, 1, 8)  # residual blocks at each resolution
    groups: int = number(2, 1, 512)  # of each norm
    bottleneck: str = choice("kl", "kl", "vq")
    weight: float = number(1e-6, 0.0, 100.0)  # of the pull towards N(0, I), in nats for each number of the code
    entries: int = number(256, 2, 16384)  # in the codebook of the vq bottleneck
    styles: tuple[str, ...] = STYLES[:4]  # of the shapes
    start: str = ""  # weights whose encoder, and so whose latents, stay: the decoder alone learns on
    ema: float | None = number(0.998, 0.0, 0.99999)
    steps: int = number(4000, 1, 10_000_000)
    batch: int = number(32, 1, 65536)
    lr: float = number(1e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=8, size=16, widths=(8, 16), groups=1, entries=16),
    "quick": Settings(steps=100, batch=16, size=32, widths=(16, 32, 64), groups=2),
    "full": Settings(),
}


def load(settings: Settings, split: str) -> list[data.DataSet]:
    """The data sets that take turns; the first one is also what is measured.

    Of shapes there are scenes of one shape and of two, in all sizes and styles that training shows: stage two draws
    both, and what stage one has not learnt to draw stage two cannot.
    """
    options = {"size": settings.size, "seed": settings.seed}
    if settings.dataset != "shapes":
        return [data.load(settings.dataset, split, **options)]
    return [data.load("shapes", split, shapes=count, styles=settings.styles, **options) for count in (1, 2)]


def model(settings: Settings) -> Autoencoder:
    """A new autoencoder, or one with a trained start whose encoder is frozen."""
    network = kl_autoencoder(
        load(settings, "test")[0].channels,
        settings.latent,
        settings.widths,
        settings.depth,
        settings.groups,
        VectorQuantiser(settings.entries, settings.latent) if settings.bottleneck == "vq" else Gaussian(),
    )
    if settings.start:
        path, _ = weights.locate(settings.start)
        checkpoint.restore(network, checkpoint.load(path)[0], path)
        network.encoder.requires_grad_(False)
    return network


def loss(settings: Settings, model: Autoencoder, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error, and what the bottleneck charges: the weighted KL, or the codebook's loss.

    Both terms are means, the error over pixels and the KL over numbers of the code, so that the weight means the same
    for any size and f.  Rombach et al. (2022, appendix G) write sums over a picture and its code, with a weight of
    about 1e-6; in means that is 1e-6 (numbers of the code) / (numbers of the picture), 2e-8 for f = 8 and four
    channels.
    """
    x = batch["image"]
    decoded, encoded = model(x)
    error, bottleneck = functional.mse_loss(decoded.float(), x), encoded.loss.mean()
    if settings.bottleneck == "kl":
        bottleneck = settings.weight * bottleneck / encoded.z[0].numel()
    return error + bottleneck, {"error": error, "bottleneck": bottleneck}


def batches(settings: Settings, start: int) -> Iterator[dict]:
    return data.in_turn(load(settings, "train"), settings.batch, seed=settings.seed, start=start, keys=("image",))


def build(settings: Settings, model_: Autoencoder | None = None) -> Task:
    network = model(settings) if model_ is None else model_
    return Task([player(settings, network, loss)], partial(batches, settings), partial(metrics, settings))


@torch.no_grad()
def metrics(settings: Settings, model: Autoencoder, count: int = 2000) -> dict[str, float]:
    """How faithful reconstructions of test pictures are, and the mean and standard deviation of the codes."""
    test_set = load(settings, "test")[0]
    count = min(count, len(test_set) // 2)
    x, other = (test_set.batch(range(first, first + count))["image"] for first in (0, count))
    decoded = torch.cat([model(part)[0] for part in x.split(250)])
    mean, std = latent_moments(settings, model)
    return fidelity(x, decoded, other, load(settings, "train")[0]) | {"latent_mean": mean, "latent_std": std}


@torch.no_grad()
def latent_moments(settings: Settings, model: Autoencoder, count: int = 1000) -> tuple[float, float]:
    """Mean and standard deviation over all numbers of the codes of training pictures, equally many of each data set.

    Codes divided by this deviation have the variance that a noise schedule expects (Rombach et al. 2022, appendix G,
    where one batch is measured; the mean is taken off for the deviation, not from the codes).

    Args:
        model: in evaluation mode, so that a Gaussian's code is its mean.
        count: of pictures, or as many as there are.
    """
    train_sets = load(settings, "train")
    share = min(count, *(len(one) * len(train_sets) for one in train_sets)) // len(train_sets)
    parts = []
    for one in train_sets:
        for first in range(0, share, 250):
            images = one.batch(range(first, min(first + 250, share)))["image"]
            parts.append(model.encode(images).z)
    z = torch.cat(parts).double()
    return z.mean().item(), z.std().item()

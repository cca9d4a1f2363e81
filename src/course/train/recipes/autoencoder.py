"""Chapters 1 and 2: the autoencoder and the variational autoencoder, with a vector as code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from course import data, measure
from course.models.autoencoder import Autoencoder, Gaussian, Point, linear_autoencoder, vector_autoencoder
from course.train.fit import Player
from course.train.settings import Task, choice, number


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("glyphs", "glyphs", "digits", "shapes", "mnist", "fashion_mnist")
    kind: str = choice("ae", "ae", "vae", "linear")
    dim: int = number(16, 1, 1024)  # numbers in the code
    count: int | None = number(None, 1, 10_000_000)  # training pictures; none for all there are
    width: int = number(32, 8, 512)
    beta: float = number(1.0, 0.0, 1e6)  # weight of the pull towards N(0, I); the AE has none
    sigma: float = number(1.0, 1e-3, 10.0)  # standard deviation of a pixel around the decoder's answer
    steps: int = number(400, 1, 10_000_000)
    batch: int = number(64, 1, 65536)
    lr: float = number(2e-3, 1e-8, 1.0)
    precision: str = choice("no", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=16, width=8),
    "quick": Settings(steps=400),
    "full": Settings(steps=3000, batch=128, precision="bf16"),
}


def model(settings: Settings) -> Autoencoder:
    train_set = data.load(settings.dataset, "train", seed=settings.seed, count=settings.count)
    if settings.kind == "linear":
        mean = train_set.batch(range(min(5000, len(train_set))))["image"].mean(0)
        return linear_autoencoder(mean, settings.dim)
    bottleneck = {"ae": Point, "vae": Gaussian}[settings.kind]()
    return vector_autoencoder(
        train_set.size, train_set.channels, settings.dim, width=settings.width, bottleneck=bottleneck
    )


def loss(model: Autoencoder, price: float, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error plus the price of the bottleneck.

    The VAE's negative ELBO is ``squared error / (2 sigma^2) + beta KL``, summed over the pixels.  Multiplied by
    ``2 sigma^2 / pixels`` it becomes the mean squared error plus ``price * KL`` with
    ``price = 2 sigma^2 beta / pixels``: the same minimum, and numbers that can be compared with the AE's.
    """
    x = batch["image"]
    reconstruction, encoded = model(x)
    error = (x - reconstruction.float()).pow(2).mean()
    bottleneck = encoded.loss.mean()
    return error + price * bottleneck, {"error": error, "bottleneck": bottleneck}


def build(settings: Settings, model_: Autoencoder | None = None) -> Task:
    train_set = data.load(settings.dataset, "train", seed=settings.seed, count=settings.count)
    network = model(settings) if model_ is None else model_
    pixels = train_set.channels * train_set.size[0] * train_set.size[1]
    price = 2 * settings.sigma**2 * settings.beta / pixels
    player = Player("autoencoder", network, partial(loss, network, price), lr=settings.lr, decay=True)
    walk = partial(data.batches, train_set, settings.batch, seed=settings.seed, keys=("image",))
    return Task([player], lambda start: walk(start=start), partial(metrics, settings))


@torch.no_grad()
def metrics(settings: Settings, model: Autoencoder, count: int = 2000) -> dict[str, float]:
    """PSNR on test pictures; Frechet distances of reconstructions and of samples, beside that of real pictures.

    The floor is taken with real pictures drawn at random, as a model draws its samples.  Pictures in the test set's
    order hold each class equally often, so reconstructions of them can lie below it.
    """
    train_set = data.load(settings.dataset, "train", seed=settings.seed, count=settings.count)
    test_set = data.load(settings.dataset, "test", seed=settings.seed)
    count = min(count, len(test_set) // 2)
    x, other = test_set.batch(range(count))["image"], test_set.batch(range(count, 2 * count))["image"]
    reconstruction, _ = model(x)
    known = train_set.batch(range(min(5000, len(train_set))))["image"]
    draw = code_distribution(settings.kind, model.encode(known).z)
    judge = "shapes" if test_set.channels == 3 else "glyphs"
    return {
        "psnr": measure.psnr(x, reconstruction),
        "frechet": measure.frechet(other, model.decode(draw.sample((count,))).clamp(-1, 1), judge),
        "frechet_reconstruction": measure.frechet(other, reconstruction.clamp(-1, 1), judge),
        "frechet_floor": measure.floor(other, data.load(settings.dataset, "train", seed=settings.seed), judge),
        "ms_per_image": measure.milliseconds_per_image(lambda n: model.decode(draw.sample((n,))), 256),
    }


def code_distribution(kind: str, z: Tensor) -> MultivariateNormal:
    """Where codes for samples come from: N(0, I) for a VAE, a normal distribution fitted to the codes z otherwise."""
    if kind == "vae":
        return MultivariateNormal(torch.zeros(z.shape[1]), torch.eye(z.shape[1]))
    return MultivariateNormal(z.mean(0), torch.atleast_2d(z.T.cov()) + 1e-6 * torch.eye(z.shape[1]))

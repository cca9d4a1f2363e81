"""Chapter 6: the VQGAN, a VQ-VAE that also has to look right to a network and to an adversary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from course.models.autoencoder import Autoencoder
from course.models.gan import PatchDiscriminator, adaptive_weight, hinge_discriminator, hinge_generator, slope_penalty
from course.models.perceptual import Perceptual
from course.train.fit import Player
from course.train.recipes import vqvae
from course.train.settings import Task, choice, number


@dataclass(frozen=True)
class Settings(vqvae.Settings):
    dataset: str = choice("shapes", "glyphs", "digits", "shapes", "mnist", "fashion_mnist")
    content: str = choice("image", "image")
    size: int | None = number(64, 8, 128)
    entries: int = number(256, 2, 16384)
    perceptual: float = number(1.0, 0.0, 1e3)  # weight of the perceptual distance
    least: float = number(0.01, 0.0, 1e4)  # bounds of the adversary's adaptive weight
    most: float = number(0.02, 0.0, 1e4)
    penalty: float = number(30.0, 0.0, 1e6)  # weight of the discriminator's slope
    start: float = number(0.5, 0.0, 1.0)  # share of the training after which the adversary sets in


PROFILES = {
    "smoke": Settings(steps=5, batch=8, width=8, entries=16, size=32),
    "quick": Settings(steps=100, batch=16),
    "full": Settings(entries=512, halvings=3, depth=2, steps=6000, batch=32, ema=0.998, lr=1e-3),
}
# Each fifth update suffices: the penalty is costly and changes slowly (Karras et al. 2020, section 3.1).  An odd
# number, since the data sets take turns: every one of them pays.
PENALISED = 5


def model(settings: Settings) -> Autoencoder:
    return vqvae.model(settings)


def reconstruction_loss(
    settings: Settings, perceptual: Perceptual, x: Tensor, decoded: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error and perceptual distance, both means."""
    distance = perceptual.to(x.device)(x, decoded).mean()
    error = functional.mse_loss(decoded, x)
    return error + settings.perceptual * distance, {"error": error, "perceptual": distance}


def generator_loss(
    settings: Settings, model: Autoencoder, discriminator: nn.Module, perceptual: Perceptual, batch: dict
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction and bottleneck; from the start of the adversary reconstruction and verdict (Esser et al. 2021).

    From then on the decoder learns alone.  What the codes say is settled, only how they are drawn is not, and an update
    is cheaper than one of the whole network.  In several processes each takes the adaptive weight of its own slice.
    """
    x, against = batch["image"], started(settings, batch)
    with torch.set_grad_enabled(not against):
        encoded = model.encode(x)
    decoded = model.decode(encoded.z).float()
    batch["made"] = decoded.detach()  # for the discriminator, whose turn comes next
    rebuilt, parts = reconstruction_loss(settings, perceptual, x, decoded)
    if not against:
        return rebuilt + encoded.loss.mean(), parts
    verdict = hinge_generator(discriminator(decoded).float())
    weight = adaptive_weight(rebuilt, verdict, last_layer(model), settings.least, settings.most)
    return rebuilt + weight * verdict, parts | {"verdict": verdict, "weight": weight}


def discriminator_loss(
    settings: Settings, discriminator: nn.Module, batch: dict
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """The hinge loss, every few updates with the penalty; zero before the start."""
    if not started(settings, batch):
        return 0.0 * sum(parameter.sum() for parameter in discriminator.parameters())
    loss = hinge_discriminator(discriminator(batch["image"]).float(), discriminator(batch["made"]).float())
    if batch["step"][0].item() % PENALISED == 0:
        return loss + settings.penalty * slope_penalty(discriminator, batch["image"]), {"hinge": loss}
    return loss, {"hinge": loss}


def started(settings: Settings, batch: dict) -> bool:
    """Whether the adversary takes part in this update: before, it would judge what is not yet a picture."""
    return batch["step"][0].item() >= settings.start * settings.steps


def last_layer(model: Autoencoder) -> Tensor:
    """Weight of the decoder's last convolution."""
    return [layer for layer in model.decoder.modules() if isinstance(layer, nn.Conv2d)][-1].weight


def batches(settings: Settings, start: int) -> Iterator[dict]:
    for step, batch in enumerate(vqvae.batches(settings, start), start):
        yield batch | {"step": torch.full((len(batch["image"]),), step)}


def build(settings: Settings, model_: Autoencoder | None = None) -> Task:
    from course.train import weights

    network = model(settings) if model_ is None else model_
    channels = vqvae.load(settings, "test")[0].channels
    discriminator = PatchDiscriminator(channels, settings.width)
    perceptual = Perceptual(weights.load("judge_shapes" if channels == 3 else "judge_glyphs"))
    options = {"lr": settings.lr, "ema": settings.ema, "warmup": min(100, settings.steps // 5), "decay": True}
    players = [
        Player(
            "autoencoder",
            network,
            partial(generator_loss, settings, network, discriminator, perceptual),
            **options,
        ),
        # a short memory of the gradient: yesterday's direction is no guide against an opponent that moves
        Player(
            "discriminator",
            discriminator,
            partial(discriminator_loss, settings, discriminator),
            lr=settings.lr,
            betas=(0.5, 0.9),
            decay=True,
        ),
    ]
    return Task(players, partial(batches, settings), partial(vqvae.metrics, settings))

"""Chapters 5 and 6: the VQ-VAE, of pictures or of segmentation maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from course import data, measure
from course.data.captions import KINDS
from course.data.windows import Windows
from course.models.autoencoder import Autoencoder, grid_autoencoder
from course.models.quantise import VectorQuantiser, perplexity
from course.train.fit import Player
from course.train.settings import Task, choice, number

LABELS = 1 + len(KINDS)  # of a segmentation map: the ground, and each kind of shape


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("glyphs", "glyphs", "digits", "shapes", "mnist", "fashion_mnist")
    content: str = choice("image", "image", "mask")
    size: int | None = number(None, 8, 128)  # of the pictures; none for the data set's own
    entries: int = number(128, 2, 16384)  # in the codebook
    dim: int = number(16, 1, 512)  # numbers in each entry
    codebook: str = choice("ema", "ema", "gradient")
    commitment: float = number(0.25, 0.0, 100.0)
    restart: float = number(0.05, 0.0, 1.0)  # part of an even share below which an entry is dead
    halvings: int = number(2, 1, 5)  # f = 2^halvings
    width: int = number(32, 8, 512)
    depth: int = number(1, 0, 8)  # residual blocks at the code's resolution
    ema: float | None = number(None, 0.0, 0.99999)
    steps: int = number(600, 1, 10_000_000)
    batch: int = number(64, 1, 65536)
    lr: float = number(2e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=16, width=8, entries=16),
    "quick": Settings(),
    "full": Settings(steps=3000, batch=128),
}


def load(
    settings: Settings, split: str, *, sizes: tuple[str, ...] = ("medium", "large"), **world: tuple[str, ...]
) -> list[data.DataSet]:
    """The data sets that take turns; the first one is also what is measured.

    Of shapes there are scenes of one large or medium shape, and windows cut out of wider scenes of several, where these
    can be drawn.

    sizes: of the single shapes. world: styles and grounds of the shapes; by default all.
    """
    options = {"size": settings.size, "seed": settings.seed}
    if settings.dataset != "shapes":
        return [data.load(settings.dataset, split, **options)]
    scenes = data.load("shapes", split, sizes=sizes, **options, **world)
    side = scenes.size[0]
    if 2 * side > 128:  # the widest canvas that there is
        return [scenes]
    several = {"size": (side, 2 * side), "shapes": (2, 3), "sizes": ("medium",), "seed": settings.seed}
    return [scenes, Windows(data.load("shapes", split, **several, **world), scenes.size)]


def model(settings: Settings) -> Autoencoder:
    channels = load(settings, "test")[0].channels if settings.content == "image" else LABELS
    return grid_autoencoder(
        channels,
        settings.dim,
        width=settings.width,
        halvings=settings.halvings,
        depth=settings.depth,
        bottleneck=VectorQuantiser(
            settings.entries, settings.dim, settings.codebook, settings.commitment, settings.restart
        ),
    )


def network_input(settings: Settings, batch: dict) -> Tensor:
    """What the encoder sees: pictures (B, C, H, W), or maps (B, H, W) as one channel for each label."""
    if settings.content == "image":
        return batch["image"]
    return functional.one_hot(batch["mask"], LABELS).movedim(-1, 1).float()


def loss(settings: Settings, model: Autoencoder, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error (of maps: cross entropy of each pixel) and the bottleneck's own loss."""
    x = network_input(settings, batch)
    decoded, encoded = model(x)
    decoded = decoded.float()
    if settings.content == "image":
        error = functional.mse_loss(decoded, x)
    else:
        error = functional.cross_entropy(decoded, batch["mask"])
    bottleneck = encoded.loss.mean()
    return error + bottleneck, {"error": error, "bottleneck": bottleneck}


def batches(settings: Settings, start: int) -> Iterator[dict]:
    keys = (settings.content,)
    return data.in_turn(load(settings, "train"), settings.batch, seed=settings.seed, start=start, keys=keys)


def build(settings: Settings, model_: Autoencoder | None = None) -> Task:
    network = model(settings) if model_ is None else model_
    return Task([player(settings, network, loss)], partial(batches, settings), partial(metrics, settings))


def player(settings: Settings, network: Autoencoder, loss: Callable) -> Player:
    """An autoencoder that learns from loss(settings, network, batch)."""
    return Player(
        "autoencoder",
        network,
        partial(loss, settings, network),
        lr=settings.lr,
        ema=settings.ema,
        warmup=min(100, settings.steps // 5),
        decay=True,
    )


@torch.no_grad()
def metrics(settings: Settings, model: Autoencoder, count: int = 2000) -> dict[str, float]:
    """How faithful reconstructions of test pictures are, and how much of the codebook they use.

    Of maps: the share of pixels that are right, and the mean intersection over union.
    """
    test_set = load(settings, "test")[0]
    count = min(count, len(test_set) // 2)
    batch = test_set.batch(range(count))
    decoded, codes = reconstructed(model, network_input(settings, batch))
    found = {
        "perplexity": perplexity(codes, settings.entries),
        "used": codes.unique().numel() / settings.entries,
    }
    if settings.content == "mask":
        maps = decoded.argmax(1)
        right = (maps == batch["mask"]).double().mean().item()
        return found | {"pixels": right, "iou": measure.iou(maps, batch["mask"])}
    x, other = batch["image"], test_set.batch(range(count, 2 * count))["image"]
    return found | fidelity(x, decoded, other, load(settings, "train")[0])


def fidelity(x: Tensor, decoded: Tensor, other: Tensor, train_set: data.DataSet) -> dict[str, float]:
    """How near reconstructions are to their originals x, and as a set to other real pictures."""
    judge = "shapes" if train_set.channels == 3 else "glyphs"
    return {
        "psnr": measure.psnr(x, decoded),
        "frechet_reconstruction": measure.frechet(other, decoded.clamp(-1, 1), judge),
        "frechet_floor": measure.floor(other, train_set, judge),
        "sharpness": measure.sharpness(x, decoded),
    }


def reconstructed(model: Autoencoder, x: Tensor, batch: int = 250) -> tuple[Tensor, Tensor]:
    """Decoded pictures (or logits) and codes of many inputs (N, C, H, W), a batch at a time."""
    parts = [model(part) for part in x.split(batch)]
    return torch.cat([decoded for decoded, _ in parts]), torch.cat([encoded.codes for _, encoded in parts])

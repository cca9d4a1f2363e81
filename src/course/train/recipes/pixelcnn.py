"""Chapter 5: the PixelCNN, a model of the VQ-VAE's codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from course import data, measure
from course.diffusion.samplers import last
from course.models.pixelcnn import AsGrey, PixelCNN, generate
from course.train.codes import StageOne, stage_one, stored
from course.train.fit import Player
from course.train.recipes import vqvae
from course.train.recipes.ddpm import labels, recognised
from course.train.settings import Task, choice, number


@dataclass(frozen=True)
class Settings:
    codes: str = "vqvae"  # stage one: shipped weights, or a result file of `course train vqvae`
    dataset: str = choice("glyphs", "glyphs", "digits", "mnist", "fashion_mnist")  # that it was trained on
    count: int = number(20_000, 8, 10_000_000)  # training pictures, encoded once
    embed: str = choice("learnt", "learnt", "grey")  # grey is a pitfall: codes as if they were grey values
    width: int = number(64, 8, 1024)
    layers: int = number(6, 1, 64)
    kernel: int = number(3, 3, 15)
    ema: float = number(0.99, 0.0, 0.99999)
    steps: int = number(500, 1, 10_000_000)
    batch: int = number(64, 1, 65536)
    lr: float = number(2e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=16, width=8, layers=2, count=64, lr=0.02),
    "quick": Settings(),
    "full": Settings(count=100_000, steps=3000, ema=0.999),
}


def model(settings: Settings) -> PixelCNN:
    first = stage_one(settings.codes)
    classes = len(vqvae.load(first.settings, "test")[0].classes or ())
    embedding = AsGrey(first.entries, settings.width) if settings.embed == "grey" else None
    return PixelCNN(first.entries, settings.width, settings.layers, settings.kernel, classes, embedding)


def load(settings: Settings, first: StageOne, split: str, count: int) -> data.DataSet:
    """Codes and labels of ``count`` pictures; glyphs are drawn, so there are as many as are asked for."""
    own = {"count": count} if settings.dataset == "glyphs" else {}
    source = data.load(settings.dataset, split, size=first.settings.size, seed=settings.seed, **own)
    columns = {"codes": lambda batch: first.encode(batch["image"]), "label": lambda batch: labels(source.name, batch)}
    return stored(source, min(count, len(source)), columns)


def nats(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean negative log-likelihood of the codes (B, h, w), in nats a code; logits are (B, K, h, w)."""
    return functional.cross_entropy(logits.float(), codes)


def build(settings: Settings, model_: PixelCNN | None = None) -> Task:
    network = model(settings) if model_ is None else model_
    first = stage_one(settings.codes)
    train_set = load(settings, first, "train", settings.count)

    def loss(batch: dict) -> Tensor:
        return nats(network(batch["codes"], batch["label"]), batch["codes"])

    def walk(start: int) -> Iterator[dict]:
        return data.batches(train_set, settings.batch, seed=settings.seed, start=start)

    player = Player(
        "prior", network, loss, lr=settings.lr, ema=settings.ema, warmup=min(100, settings.steps // 5), decay=True
    )
    return Task([player], walk, partial(metrics, settings))


def draw(first: StageOne, model: nn.Module, label: Tensor, *, seed: int = 0, **options) -> Tensor:
    """Pictures of the wanted classes (N,), as many: codes by the PixelCNN, decoded by stage one."""
    generator = torch.Generator().manual_seed(seed)
    parts = label.split(250)
    codes = [last(generate(model, len(part), first.grid, part, generator=generator, **options)) for part in parts]
    return first.decode(torch.cat(codes))


@torch.no_grad()
def likelihood(
    predict: Callable[[Tensor, Tensor], Tensor], condition: Tensor, codes: Tensor, numbers: int
) -> dict[str, float]:
    """Negative log-likelihood of codes (N, ...): nats a code, bits a picture, and bits a dimension.

    Args:
        predict: (condition (B, ...), codes (B, ...)) -> logits (B, K, ...).
        condition: (N, ...).
        numbers: how many numbers a picture has, its dimensions.
    """
    parts = zip(condition.split(100), codes.split(100))
    value = (sum(nats(predict(told, part), part) * len(part) for told, part in parts) / len(codes)).item()
    bits = value / math.log(2) * codes[0].numel()
    return {"nats": value, "bits": bits, "bits_per_dim": bits / numbers}


@torch.no_grad()
def metrics(settings: Settings, model: PixelCNN, count: int = 2000) -> dict[str, float]:
    """Likelihood of test codes; Frechet distance, precision and recall of samples with classes in turn, and how many of
    them the judge recognises."""
    first = stage_one(settings.codes)
    known = load(settings, first, "test", count)
    known = known.batch(range(len(known)))
    real = data.load(settings.dataset, "test", size=first.settings.size, seed=settings.seed)
    count = min(count, len(real))
    images, pool = real.batch(range(count))["image"], data.load(settings.dataset, size=first.settings.size)
    wanted = torch.arange(count) % len(real.classes)
    fake = draw(first, model, wanted, seed=settings.seed)
    precision, recall = measure.precision_recall(images, fake, "glyphs")
    predict = lambda label, codes: model(codes, label)
    return likelihood(predict, known["label"], known["codes"], images[0].numel()) | {
        "frechet": measure.frechet(images, fake, "glyphs"),
        "frechet_floor": measure.floor(images, pool, "glyphs"),
        "precision": precision,
        "recall": recall,
        "ms_per_image": measure.milliseconds_per_image(lambda n: draw(first, model, wanted[:n]), 64, repeats=3),
    } | (recognised(settings.dataset, fake, wanted) if settings.dataset != "fashion_mnist" else {})

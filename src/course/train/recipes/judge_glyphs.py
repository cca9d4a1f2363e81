"""The glyph judge: a classifier of digits, the eye and the feature network for grey pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from course import data, measure
from course.models.judge import GlyphJudge
from course.train.fit import Player
from course.train.settings import Task, choice, number


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("glyphs", "glyphs", "digits", "mnist")
    width: int = number(32, 8, 512)
    steps: int = number(400, 1, 10_000_000)
    batch: int = number(128, 1, 65536)
    lr: float = number(2e-3, 1e-8, 1.0)
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=16, width=8),
    "quick": Settings(),
    "full": Settings(steps=1500),
}


def model(settings: Settings) -> GlyphJudge:
    return GlyphJudge(classes=10, width=settings.width)


def loss(model: GlyphJudge, batch: dict) -> Tensor:
    return functional.cross_entropy(model(batch["image"]), batch["label"], label_smoothing=0.05)


def build(settings: Settings, model_: GlyphJudge | None = None) -> Task:
    train_set = data.load(settings.dataset, "train", seed=settings.seed)
    network = model(settings) if model_ is None else model_
    player = Player(
        "judge", network, partial(loss, network), lr=settings.lr, weight_decay=0.01, decay=True, ema=0.99
    )
    walk = partial(data.batches, train_set, settings.batch, seed=settings.seed)
    return Task([player], lambda start: walk(start=start), partial(metrics, settings))


@torch.no_grad()
def metrics(settings: Settings, model: GlyphJudge) -> dict[str, float]:
    """Share of test pictures whose digit is named; Frechet distance of real pictures to other real ones."""
    test_set = data.load(settings.dataset, "test", seed=settings.seed)
    right = 0
    for start in range(0, len(test_set), 500):
        batch = test_set.batch(range(start, min(start + 500, len(test_set))))
        right += (model(batch["image"]).argmax(1) == batch["label"]).sum().item()
    found = {"accuracy": right / len(test_set)}
    if settings.dataset == "glyphs":  # drawn pictures never run out
        pool = data.load("glyphs", "train", seed=settings.seed)
        many = data.load("glyphs", "test", seed=settings.seed, count=10_000).batch(range(10_000))["image"]
        found |= {f"floor_{n}": measure.floor(many[:n], pool, model) for n in (1_000, 10_000)}
    return found

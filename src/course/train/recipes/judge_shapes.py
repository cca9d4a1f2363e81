"""The shapes judge: reads every factor of a scene, on canvases of several sizes and forms, one to three shapes each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from course import data, measure
from course.data.captions import COLOURS, GROUNDS, KINDS, SIZES, STYLES
from course.measure.judge import FACTORS, agreement, by_place, read
from course.models.judge import PLACE_MIDDLES, ShapeJudge
from course.train.fit import Player
from course.train.settings import Task, choice, number

# Canvas and numbers of shapes of one batch after another; most batches are what the chapters draw most.
CANVASES = (
    ((32, 32), (1,)),
    ((32, 32), (1, 2, 3)),
    ((32, 32), (1,)),
    ((48, 32), (1, 2, 3)),
    ((32, 32), (1,)),
    ((64, 64), (1, 2)),
    ((32, 32), (1,)),
    ((32, 64), (1, 2, 3)),
    ((32, 32), (1,)),
    ((16, 16), (1,)),
)


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("shapes", "shapes")
    width: int = number(48, 8, 512)
    steps: int = number(400, 1, 10_000_000)
    batch: int = number(64, 1, 65536)
    lr: float = number(2e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=8, width=16),
    "quick": Settings(),
    "full": Settings(steps=6000),
}


def model(settings: Settings) -> ShapeJudge:
    counts = [len(names) for names in (KINDS, COLOURS, SIZES, STYLES, GROUNDS)]
    return ShapeJudge(*counts, width=settings.width)


def loss(model: ShapeJudge, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropies of all factors where a shape is, of presence at every place, of the ground and of each pixel."""
    answers = {name: value.float() for name, value in model(batch["image"]).items()}
    wanted = by_place({name: batch[name] for name in (*FACTORS, "x", "y", "place", "ground")})
    here = wanted["kind"] >= 0
    parts = {name: functional.cross_entropy(answers[name][here], wanted[name][here]) for name in FACTORS}
    parts["present"] = 4 * functional.binary_cross_entropy_with_logits(
        answers["present"][..., 0], here.float()
    )
    parts["ground"] = functional.cross_entropy(answers["ground"], wanted["ground"])
    middles = torch.tensor(PLACE_MIDDLES, device=here.device)
    offset = torch.stack([wanted["x"], wanted["y"]], -1) - middles
    # Offsets are of the order of 0.02; in units of that size their error weighs like the other parts.
    parts["offset"] = 0.1 * functional.smooth_l1_loss(answers["offset"][here] * 50, offset[here] * 50)
    mask = functional.interpolate(
        batch["mask"][:, None].float(), answers["mask"].shape[2:], mode="nearest-exact"
    )
    parts["mask"] = functional.cross_entropy(answers["mask"], mask[:, 0].long())
    return sum(parts.values()), parts


def scenes(settings: Settings, start: int) -> Iterator[dict]:
    """Batches from each canvas in turn, the factors beside the picture."""
    sets = [
        data.load("shapes", size=size, shapes=shapes, styles=STYLES, seed=settings.seed)
        for size, shapes in CANVASES
    ]
    for batch in data.in_turn(sets, settings.batch, seed=settings.seed, start=start):
        yield {"image": batch["image"], "mask": batch["mask"], **batch["factors"]}


def build(settings: Settings, model_: ShapeJudge | None = None) -> Task:
    network = model(settings) if model_ is None else model_
    player = Player(
        "judge",
        network,
        partial(loss, network),
        lr=settings.lr,
        weight_decay=0.01,
        warmup=100,
        decay=True,
        ema=0.998,
    )
    return Task([player], partial(scenes, settings), metrics)


def metrics(model: ShapeJudge, count: int = 5000) -> dict[str, float]:
    """Agreement with the truth on test scenes, for one shape, for one to three, and for other canvases.

    Also the Frechet distance of real pictures to other real ones, for two numbers of pictures.
    """
    found = {}
    for label, size, shapes in (
        ("", (32, 32), (1,)),
        ("several_", (32, 32), (1, 2, 3)),
        ("large_", (64, 64), (1,)),
        ("wide_", (32, 64), (1,)),
        ("tiny_", (16, 16), (1,)),
    ):
        test_set = data.load("shapes", "test", size=size, shapes=shapes, styles=STYLES)
        batch = test_set.batch(range(count))
        seen = read(model, batch["image"])
        found |= {
            label + key: value for key, value in agreement(seen, by_place(batch["factors"]), size).items()
        }
        if seen["mask"].shape == batch["mask"].shape:
            found[label + "pixels"] = (seen["mask"] == batch["mask"]).double().mean().item()
    many = data.load("shapes", "test").batch(range(10_000))["image"]
    pool = data.load("shapes", "train")
    return found | {f"floor_{n}": measure.floor(many[:n], pool, model) for n in (1_000, 10_000)}

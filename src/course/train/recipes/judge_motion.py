"""The motion judge: names how the shape in a clip moves, on canvases of several forms and clips of several lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from course import data
from course.data.captions import MOTIONS
from course.models.judge import MotionJudge
from course.train.fit import Player
from course.train.settings import Task, choice, number

# Canvas and frames of one batch after another.
CLIPS = (((32, 32), 16), ((32, 32), 8), ((32, 32), 16), ((32, 48), 16), ((32, 32), 24), ((48, 32), 16))


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("shapes_video", "shapes_video")
    width: int = number(32, 8, 512)
    steps: int = number(200, 1, 10_000_000)
    batch: int = number(16, 1, 65536)
    lr: float = number(1e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=3, batch=4, width=8),
    "quick": Settings(),
    "full": Settings(steps=6000, lr=2e-3),
}


def model(settings: Settings) -> MotionJudge:
    return MotionJudge(len(MOTIONS), width=settings.width)


def loss(model: MotionJudge, batch: dict) -> Tensor:
    return functional.cross_entropy(model(batch["video"]).float(), batch["motion"])


def clips(settings: Settings, start: int) -> Iterator[dict]:
    """Batches of each form in turn."""
    sets = [data.load("shapes_video", size=size, frames=frames, seed=settings.seed) for size, frames in CLIPS]
    return data.in_turn(sets, settings.batch, seed=settings.seed, start=start, keys=("video", "motion"))


def build(settings: Settings, model_: MotionJudge | None = None) -> Task:
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
    return Task([player], partial(clips, settings), metrics)


@torch.no_grad()
def metrics(model: MotionJudge, count: int = 1000) -> dict[str, float]:
    """Share of test clips whose motion is named, for several forms and lengths."""
    found = {}
    for label, size, frames in (
        ("", (32, 32), 16),
        ("short_", (32, 32), 8),
        ("long_", (32, 32), 32),
        ("wide_", (32, 64), 16),
    ):
        test_set = data.load("shapes_video", "test", size=size, frames=frames)
        right = 0
        for start in range(0, count, 50):
            batch = test_set.batch(range(start, min(start + 50, count)))
            right += (model(batch["video"]).argmax(1) == batch["motion"]).sum().item()
        found[label + "accuracy"] = right / count
    return found

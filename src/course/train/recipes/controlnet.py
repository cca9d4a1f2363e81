"""Chapter 9: a ControlNet that makes a text-to-image model follow edges (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course import data, measure
from course.data.canny import canny
from course.diffusion.objective import simple_loss
from course.export.parts import Parts, opened
from course.train.codes import stored
from course.train.fit import Player
from course.train.processes import surroundings
from course.train.recipes.ldm import FACTORS
from course.train.settings import Task, choice, number

if TYPE_CHECKING:
    from diffusers import ControlNetModel


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("shapes", "shapes")
    base: str = "ldm"  # shipped weights, a result file of `course train ldm`, or the folder of a pipeline
    size: int = number(64, 16, 1024)
    drop: float = number(0.3, 0.0, 1.0)  # share of training pictures whose caption is left out
    count: int = number(20_000, 2, 1_000_000)  # training pictures
    ema: float = number(0.999, 0.0, 0.99999)
    steps: int = number(200, 1, 10_000_000)
    batch: int = number(32, 1, 65536)
    lr: float = number(5e-4, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=4, batch=2, count=8),  # gradients get past three layers of zeros
    "quick": Settings(count=2000),
    "full": Settings(steps=4000),
}


def sources(settings: Settings, split: str) -> list[data.DataSet]:
    """The pictures: of one shape and of two."""
    options = {"seed": settings.seed, "size": settings.size}
    return [data.load("shapes", split, shapes=(shapes,), **options) for shapes in (1, 2)]


def model(settings: Settings) -> ControlNetModel:
    """Diffusers' ControlNet: a copy of the base model's way down, and layers of zeros that lead into its way up."""
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(opened(settings.base).pipe.unet)


def controlled(parts: Parts, controlnet: ControlNetModel, edges: Tensor, strength: float = 1.0) -> Parts:
    """The base model, led by edges.

    Args:
        edges: (B, 1, H, W), 1 on an edge and 0 elsewhere, for a batch of B latents (or of 2 B, as guidance asks).
        strength: what the ControlNet's part is multiplied by; 0 is the base model alone.
    """
    edges = edges.expand(-1, 3, -1, -1)  # three channels, as Diffusers' pipeline hands them over

    def predictor(z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        unet = parts.pipe.unet
        z, cond, given = z.to(unet.dtype), cond.to(unet.dtype), edges.repeat(len(z) // len(edges), 1, 1, 1)
        down, middle = controlnet(z, t, cond, given.to(z), strength, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return unet(z, t, cond, **residuals).sample

    return replace(parts, predictor=predictor)


def loss(settings: Settings, parts: Parts, controlnet: ControlNetModel, null: Tensor, batch: dict) -> Tensor:
    """The base model's own loss on latents ("z"), encoded captions ("cond") and "edges".

    null: (1, M, C), the encoded empty caption, which takes a caption's place now and then.
    """
    left_out = torch.rand(len(batch["z"]), 1, 1, device=batch["z"].device) < settings.drop
    cond = torch.where(left_out, null, batch["cond"])
    led = controlled(parts, controlnet, batch["edges"])
    return simple_loss(led.schedule, led.kind, led.predictor, batch["z"], cond)


def build(settings: Settings, model_: ControlNetModel | None = None) -> Task:
    network, parts = model(settings) if model_ is None else model_, opened(settings.base)
    parts.pipe.to(surroundings().device)
    parts.pipe.unet.requires_grad_(False)  # it is led, not changed
    columns = {
        "z": lambda batch: parts.space.encode(batch["image"]),
        "cond": lambda batch: parts.embed(batch["caption"]),
        "edges": lambda batch: canny(batch["image"]).to(torch.int16),
    }
    sets = sources(settings, "train")
    kept = [stored(one, -(-settings.count // len(sets)), columns) for one in sets]

    def walk(start: int) -> Iterator[dict]:
        return data.in_turn(kept, settings.batch, seed=settings.seed, start=start)

    player = Player(
        "controlnet",
        network,
        partial(loss, settings, parts, network, parts.embed([""])),
        lr=settings.lr,
        ema=settings.ema,
        warmup=settings.steps // 20,
        decay=True,
    )
    return Task([player], walk, partial(metrics, settings))


@torch.no_grad()
def metrics(settings: Settings, controlnet: ControlNetModel, count: int = 100) -> dict[str, float]:
    """How well edges of samples lie on those given, and how often captions are obeyed, without and with it."""
    from course.train import weights

    batch, parts = sources(settings, "test")[0].batch(range(count)), opened(settings.base)
    wanted, found = canny(batch["image"]), {}
    for name, strength in (("without_", 0.0), ("", 1.0)):
        made = controlled(parts, controlnet, wanted, strength).draw(batch["caption"], seed=settings.seed)
        found[f"{name}edges"] = measure.edge_agreement(canny(made), wanted)
        seen = measure.read(weights.load("judge_shapes"), made)
        told = measure.agreement(seen, measure.by_place(batch["factors"]), made.shape[2:], FACTORS)
        found |= {f"{name}{factor}": told[factor] for factor in ("kind", "colour", "everything")}
    return found

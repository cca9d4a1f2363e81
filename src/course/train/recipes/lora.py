"""Chapter 9: a low-rank adapter that teaches a text-to-image model what it has not seen, such as a drawing style."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from course import UserError, data, measure
from course.data.captions import STYLES
from course.diffusion.objective import min_snr, simple_loss
from course.export.parts import Parts, opened
from course.models.lora import ATTENTION, Adapter
from course.train.codes import stored
from course.train.fit import Player
from course.train.processes import surroundings
from course.train.settings import Task, choice, number

SHOWN = (
    "large red circle top left",
    "medium blue square center",
    "small yellow heart bottom",
    "large green star right",
)


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("shapes", "shapes", "captioned")
    root: str = ""  # the folder, where the data set is one
    style: str = choice("dotted", *STYLES)  # of the shapes that are drawn
    base: str = "ldm"  # shipped weights, a result file of `course train ldm`, or the folder of a pipeline
    decoder: str = ""  # weights of the recipe kl whose decoder draws in place of the base's own
    rank: int = number(8, 1, 1024)
    targets: tuple[str, ...] = ATTENTION  # names of the layers that are changed, or how they end
    size: int = number(64, 16, 1024)
    count: int = number(2000, 1, 1_000_000)  # training pictures, at most
    noise_offset: float = number(0.0, 0.0, 1.0)
    gamma: float | None = number(5.0, 0.01, 1000.0)  # bounds the weight of times with little noise
    steps: int = number(200, 1, 10_000_000)
    batch: int = number(32, 1, 65536)
    parts: int = number(1, 1, 65536)  # that a batch is worked through in
    lr: float = number(3e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=2, batch=2, count=8),
    "quick": Settings(),
    "full": Settings(steps=2000, decoder="kl_styles"),
}


def load(settings: Settings, split: str = "train") -> data.DataSet:
    """The pictures: of one drawing style, or those of a folder."""
    if settings.dataset == "captioned":
        if not settings.root:
            raise UserError("dataset=captioned needs root=, a folder with pictures and a metadata.jsonl")
        return data.load("captioned", split, root=settings.root, size=settings.size)
    return data.load("shapes", split, seed=settings.seed, size=settings.size, styles=(settings.style,))


def model(settings: Settings) -> Adapter:
    """An adapter for the base model's U-Net, which changes nothing yet."""
    return Adapter(opened(settings.base).pipe.unet, settings.rank, targets=settings.targets)


def loss(settings: Settings, parts: Parts, batch: dict) -> Tensor:
    """The base model's own loss on latents ("z") and encoded captions ("cond")."""
    weight = None if settings.gamma is None else min_snr(parts.schedule, parts.kind, settings.gamma)
    shift = settings.noise_offset
    return simple_loss(
        parts.schedule, parts.kind, parts.predictor, batch["z"], batch["cond"], weight=weight, noise_offset=shift
    )


def build(settings: Settings, model_: Adapter | None = None) -> Task:
    adapter, parts = model(settings) if model_ is None else model_, opened(settings.base, settings.decoder)
    parts.pipe.to(surroundings().device)
    pictures = load(settings)
    columns = {
        "z": lambda batch: parts.space.encode(batch["image"]),
        "cond": lambda batch: parts.embed(batch["caption"]),
    }
    kept = stored(pictures, min(settings.count, len(pictures)), columns)
    parts.pipe.unet.requires_grad_(False)  # the network stays; gradients reach the adapter alone
    adapter.attach(parts.pipe.unet)

    def walk(start: int) -> Iterator[dict]:
        return data.batches(kept, settings.batch, seed=settings.seed, start=start)

    player = Player(
        "adapter", adapter, partial(loss, settings, parts), lr=settings.lr, warmup=settings.steps // 20, decay=True
    )

    def show(adapter: Adapter) -> Tensor:
        return parts.draw(SHOWN)

    return Task([player], walk, partial(metrics, settings), show)


@torch.no_grad()
def judged(parts: Parts, batch: dict, **options: int) -> dict[str, float]:
    """Shares of samples with the style, kind and colour of the scenes that a batch's captions describe.

    options: of `Parts.draw`.
    """
    from course.train import weights

    made = parts.draw(batch["caption"], **options)
    seen = measure.read(weights.load("judge_shapes"), made)
    told = measure.agreement(seen, measure.by_place(batch["factors"]), made.shape[2:])
    return {name: told[name] for name in ("style", "kind", "colour")}


@torch.no_grad()
def metrics(settings: Settings, adapter: Adapter, count: int = 200) -> dict[str, float]:
    """How often samples have the style, and obey their captions, without (0) and with the adapter."""
    if settings.dataset != "shapes":
        return {}
    batch, parts = load(settings, "test").batch(range(count)), opened(settings.base, settings.decoder)
    adapter.detach()  # from the network that it was trained with
    adapter.attach(parts.pipe.unet)
    numbers = [sum(p.numel() for p in module.parameters()) for module in (adapter, parts.pipe.unet)]
    found = {"share": numbers[0] / numbers[1]}
    for name, scale in (("without_", 0.0), ("", 1.0)):
        adapter.scale = scale
        found |= {f"{name}{factor}": share for factor, share in judged(parts, batch, seed=settings.seed).items()}
    adapter.detach()
    return found

"""Chapter 6: GPT, a transformer over the codes of pictures, told a class or a segmentation map by its prefix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from course import UserError, data, measure
from course.data.captions import COLOURS, KINDS
from course.data.shapes import pairs
from course.diffusion.samplers import last
from course.models.gpt import GPT, GridPlaces, generate
from course.train.codes import StageOne, stage_one, stored
from course.train.fit import Player
from course.train.recipes import vqvae
from course.train.recipes.ddpm import labels, recognised
from course.train.recipes.pixelcnn import likelihood
from course.train.settings import Task, choice, number

# Flat: large, filled, on a plain ground, as in chapter 3.  Grounds: filled, on any ground.
SCENES = {
    "flat": {"sizes": ("large",), "styles": ("filled",), "grounds": ("plain",)},
    "grounds": {"styles": ("filled",)},
    "all": {},
}


@dataclass(frozen=True)
class Settings:
    codes: str = "vqvae"  # stage one: shipped weights, or a result file of `course train`
    dataset: str = choice("glyphs", "glyphs", "digits", "shapes", "mnist", "fashion_mnist")  # that it was trained on
    condition: str = choice("class", "none", "class", "mask")  # of shapes a class is kind and colour together
    masks: str = "vqvae_masks"  # stage one of the segmentation maps
    scenes: str = choice("flat", *SCENES)  # of shapes: which of them
    count: int = number(20_000, 8, 10_000_000)  # training pictures, encoded once
    pkeep: float = number(1.0, 0.0, 1.0)  # share of input codes that are kept; the others become random ones
    width: int = number(128, 8, 4096)
    depth: int = number(4, 1, 64)
    heads: int = number(4, 1, 64)
    ema: float = number(0.99, 0.0, 0.99999)
    steps: int = number(500, 1, 10_000_000)
    batch: int = number(32, 1, 65536)
    lr: float = number(2e-3, 1e-8, 1.0)
    weight_decay: float = number(0.01, 0.0, 10.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=16, width=8, depth=2, count=64, lr=0.02),
    "quick": Settings(),
    "full": Settings(codes="vqgan", dataset="shapes", count=40_000, steps=1600, ema=0.998),
}


def class_tokens(dataset: str, label: Tensor) -> Tensor:
    """Classes (B,) as prefix tokens (B, P), counted from 0: one token; of shapes one for the kind, one for the colour.

    A token for each of the 42 pairs shown would be seen seven times more rarely than one for each of six kinds.
    """
    if dataset != "shapes":
        return label[:, None]
    return torch.stack([label // len(COLOURS), len(KINDS) + label % len(COLOURS)], 1)


def map_stage(settings: Settings) -> StageOne | None:
    """Stage one of the segmentation maps, where they are the condition."""
    return stage_one(settings.masks) if settings.condition == "mask" else None


def model(settings: Settings) -> GPT:
    first, second = stage_one(settings.codes), map_stage(settings)
    others, prefix = 1, (1, 1)  # without a condition there is a start token alone
    if settings.condition == "class":
        others, prefix = (len(KINDS) + len(COLOURS), (1, 2)) if settings.dataset == "shapes" else (10, (1, 1))
    if second is not None:
        if second.size != first.size:
            one, two = f"{settings.codes} knows {first.size} pixels", f"{settings.masks} {second.size}"
            raise UserError(f"{one} and {two}: take equal sizes")
        others, prefix = second.entries, second.grid
    places = GridPlaces(settings.width, prefix, first.grid)
    # What is drawn last is never an input: a sequence has one position less than prefix and codes together.
    length = len(places.weight) - 1
    return GPT(first.entries, others, length, settings.width, settings.depth, settings.heads, places)


def sources(settings: Settings, first: StageOne, split: str, count: int) -> list[data.DataSet]:
    """The pictures that are encoded: for maps as a condition also windows of wider scenes, else single shapes."""
    if settings.dataset == "shapes":
        sets = vqvae.load(first.settings, split, **SCENES[settings.scenes])
        return sets if settings.condition == "mask" and split == "train" else sets[:1]
    own = {"count": count} if settings.dataset == "glyphs" else {}
    return [data.load(settings.dataset, split, size=first.settings.size, seed=settings.seed, **own)]


def load(settings: Settings, first: StageOne, second: StageOne | None, split: str, count: int) -> list[data.DataSet]:
    """Codes of ``count`` pictures, shared evenly by the sources, each with its prefix (P,)."""
    columns = {"codes": lambda batch: first.encode(batch["image"]).flatten(1)}
    sets = sources(settings, first, split, count)
    columns["prefix"] = partial(prefix, settings, second, dataset=settings.dataset)
    return [stored(source, min(-(-count // len(sets)), len(source)), columns) for source in sets]


def prefix(settings: Settings, second: StageOne | None, batch: dict, *, dataset: str) -> Tensor:
    """The condition's tokens, (B, P), counted from 0: the codes of the map, those of the class, or the start token."""
    if settings.condition == "mask":
        return map_codes(second, batch["mask"])
    if settings.condition == "class":
        return class_tokens(dataset, labels(dataset, batch))
    return torch.zeros(len(batch["image"]), 1, dtype=torch.int64)


def map_codes(second: StageOne, mask: Tensor) -> Tensor:
    """Segmentation maps (B, H, W) as codes (B, P), row by row.

    Raises:
        UserError: maps of a size that does not divide by f, or labels that do not exist.
    """
    unit = 2**second.settings.halvings
    if mask.ndim != 3 or any(side % unit for side in mask.shape[1:]):
        raise UserError(f"a map has the shape (B, H, W), H and W multiples of {unit}, not {tuple(mask.shape)}")
    if not 0 <= mask.min() <= mask.max() < vqvae.LABELS:
        raise UserError(f"labels of a map are 0 .. {vqvae.LABELS - 1}, not {mask.min()} .. {mask.max()}")
    return second.encode(vqvae.network_input(second.settings, {"mask": mask})).flatten(1)


def build(settings: Settings, model_: GPT | None = None) -> Task:
    network = model(settings) if model_ is None else model_
    first, second = stage_one(settings.codes), map_stage(settings)
    train_sets = load(settings, first, second, "train", settings.count)

    def loss(batch: dict) -> Tensor:
        codes, start = batch["codes"], batch["prefix"] + first.entries
        known = codes[:, :-1]
        if settings.pkeep < 1:  # in training only: the targets stay what they are
            other = torch.randint_like(known, first.entries)
            known = torch.where(torch.rand(known.shape, device=known.device) < settings.pkeep, known, other)
        logits = network(torch.cat([start, known], 1))[:, start.shape[1] - 1 :]  # those that foretell a code
        return functional.cross_entropy(logits.float().flatten(0, 1), codes.flatten())

    def walk(start: int) -> Iterator[dict]:
        return data.in_turn(train_sets, settings.batch, seed=settings.seed, start=start)

    player = Player(
        "gpt",
        network,
        loss,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        ema=settings.ema,
        betas=(0.9, 0.95),
        warmup=min(100, settings.steps // 5),
        decay=True,
    )
    return Task([player], walk, partial(metrics, settings))


def draw(first: StageOne, model: GPT, prefix: Tensor, *, seed: int = 0, batch: int = 100, **options) -> Tensor:
    """Pictures (N, C, H, W) for prefixes (N, P) counted from 0: codes by the GPT, decoded by stage one."""
    generator = torch.Generator().manual_seed(seed)
    count, codes = first.grid[0] * first.grid[1], []
    for part in prefix.split(batch):
        tokens = last(generate(model, part + first.entries, count, generator=generator, **options))
        codes.append(tokens[:, -count:].unflatten(1, first.grid))
    return first.decode(torch.cat(codes))


def predict(model: GPT, start: Tensor, codes: Tensor) -> Tensor:
    """Logits (B, K, N) of codes (B, N) after prefixes (B, P) counted from 0."""
    logits = model(torch.cat([start + model.entries, codes[:, :-1]], 1))
    return logits[:, start.shape[1] - 1 :].movedim(-1, 1)


@torch.no_grad()
def metrics(settings: Settings, model: nn.Module, count: int = 1000) -> dict[str, float]:
    """Likelihood of test codes, and of samples the Frechet distance and how well they do what was asked for: the share
    that a judge recognises, or the overlap of its segmentation with the wanted map."""
    first, second = stage_one(settings.codes), map_stage(settings)
    known = load(settings, first, second, "test", count)[0]
    source, count = sources(settings, first, "test", count)[0], len(known)
    known = known.batch(range(count))
    batch = source.batch(range(count))
    images, judge = batch["image"], "shapes" if source.channels == 3 else "glyphs"
    start, wanted = known["prefix"], None
    if settings.condition == "class":
        wanted = balanced(settings, count)
        start = class_tokens(settings.dataset, wanted)
    fake = draw(first, model, start, seed=settings.seed)
    precision, recall = measure.precision_recall(images, fake, judge)
    found = likelihood(partial(predict, model), known["prefix"], known["codes"], images[0].numel()) | {
        "frechet": measure.frechet(images, fake, judge),
        "frechet_floor": measure.floor(images, sources(settings, first, "train", 20_000)[0], judge),
        "precision": precision,
        "recall": recall,
        "ms_per_image": measure.milliseconds_per_image(lambda n: draw(first, model, start[:n]), 64, repeats=3),
    }
    if settings.condition == "mask":
        return found | overlap(fake, images, batch["mask"])
    judged = wanted is not None and settings.dataset != "fashion_mnist"
    return found | recognised(settings.dataset, fake, wanted) if judged else found


def balanced(settings: Settings, count: int) -> Tensor:
    """Classes (count,), each equally often; of shapes only the pairs of kind and colour that training shows."""
    if settings.dataset != "shapes":
        return torch.arange(count) % 10
    colour, kind = torch.from_numpy(pairs("train")).T
    seen = (kind * len(COLOURS) + colour).sort().values
    return seen[torch.arange(count) % len(seen)]


@torch.no_grad()
def overlap(fake: Tensor, images: Tensor, mask: Tensor) -> dict[str, float]:
    """IoU of the judge's segmentation of made pictures with the wanted maps (B, H, W), and of the real pictures too."""
    from course.train import weights

    judge = weights.load("judge_shapes")
    seen, real = (measure.read(judge, part)["mask"] for part in (fake, images))
    small = functional.interpolate(mask[:, None].float(), seen.shape[1:], mode="nearest-exact")[:, 0].long()
    return {"iou": measure.iou(seen, small), "iou_real": measure.iou(real, small)}

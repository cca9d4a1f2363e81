"""Chapters 3 and 4: a diffusion model of pictures, with or without a class as condition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from course import UserError, data, measure
from course.data.captions import COLOURS, KINDS
from course.data.shapes import pairs
from course.diffusion import schedule as schedules
from course.diffusion.objective import KINDS as PREDICTIONS
from course.diffusion.objective import as_eps, simple_loss
from course.diffusion.samplers import Denoiser, last, sample
from course.diffusion.schedule import Schedule
from course.models.stack import Stack, Timeless
from course.models.unet import UNet
from course.train.fit import Player
from course.train.settings import Task, choice, number

SCHEDULES = {"linear": schedules.linear, "scaled_linear": schedules.scaled_linear, "cosine": schedules.cosine}


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("glyphs", "glyphs", "digits", "shapes", "mnist", "fashion_mnist", "celeba", "folder")
    condition: str = choice("none", "none", "class")  # shapes: kind and colour together
    network: str = choice("attention", "plain", "residual", "timeless", "unet", "attention")
    width: int = number(64, 8, 1024)  # channels at the highest resolution, doubled at each lower one
    levels: int = number(2, 1, 6)  # resolutions
    depth: int = number(1, 1, 8)  # residual blocks at each resolution
    patch: int = number(2, 1, 8)  # side of the squares of pixels that become channels
    size: int | None = number(None, 8, 128)  # of the pictures; none for the data set's own
    scenes: str = choice("all", "all", "flat")  # of shapes: flat ones are large, filled, on a plain ground
    root: str | None = None  # folder of the files, for data sets that read files
    schedule: str = choice("linear", *SCHEDULES)
    T: int = number(1000, 1, 100_000)
    predict: str = choice("eps", *PREDICTIONS)
    drop: float = number(0.1, 0.0, 1.0)  # share of training pictures whose condition is left out
    ema: float = number(0.999, 0.0, 0.99999)
    steps: int = number(500, 1, 10_000_000)
    batch: int = number(64, 1, 65536)
    lr: float = number(1e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(steps=5, batch=16, width=8),
    "quick": Settings(steps=1000, batch=24, lr=3e-3, width=32, ema=0.99, predict="v"),  # v: readable within a minute
    "full": Settings(steps=8000),
}


def classes(settings: Settings) -> int:
    """How many classes the condition has; 0 without one."""
    if settings.condition == "none":
        return 0
    if settings.dataset == "shapes":
        return len(KINDS) * len(COLOURS)
    known = load(settings, "test").classes
    if known is None:
        raise UserError(f"{settings.dataset} has no classes; choose condition=none")
    return len(known)


def load(settings: Settings, split: str) -> data.DataSet:
    flat = {"sizes": ("large",), "styles": ("filled",), "grounds": ("plain",)} if settings.scenes == "flat" else {}
    return data.load(settings.dataset, split, seed=settings.seed, size=settings.size, root=settings.root, **flat)


def labels(dataset: str, batch: dict) -> Tensor:
    """(B,) int64, the classes of a batch; for shapes ``kind * 8 + colour``."""
    if dataset == "shapes":
        return batch["factors"]["kind"][:, 0] * len(COLOURS) + batch["factors"]["colour"][:, 0]
    return batch["label"]


def model(settings: Settings) -> nn.Module:
    """The predictor: (x (B, C, H, W), t (B,), class (B,) or None) -> (B, C, H, W); the last class stands for "none"."""
    channels = load(settings, "test").channels
    count = classes(settings)
    if settings.network in ("plain", "residual"):
        if count:
            raise UserError(f"the {settings.network} network takes no condition")
        return Stack(channels, settings.width, residual=settings.network == "residual", patch=settings.patch)
    widths = [settings.width * 2**level for level in range(settings.levels)]
    attention = [settings.levels - 1] if settings.network == "attention" else []
    unet = UNet(
        channels,
        widths,
        settings.depth,
        attention,
        classes=count and count + 1,
        heads=max(1, widths[-1] // 64),
        patch=settings.patch,
    )
    return Timeless(unet) if settings.network == "timeless" else unet


def schedule(settings: Settings) -> Schedule:
    return SCHEDULES[settings.schedule](settings.T)


def denoiser(settings: Settings, model: nn.Module) -> Denoiser:
    """The model as a denoiser, whatever it predicts, computing in the precision that it was trained in."""

    def predictor(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            return model(x, t, cond).float()

    return as_eps(schedule(settings), settings.predict, predictor)


def build(settings: Settings, model_: nn.Module | None = None) -> Task:
    train_set = load(settings, "train")
    if len(load(settings, "test")) < 8:  # better now than after the training
        raise UserError(f"{settings.dataset} has fewer than 8 test pictures, too few to measure with; add pictures")
    network = model(settings) if model_ is None else model_
    noise, count = schedule(settings), classes(settings)

    def loss(batch: dict) -> Tensor:
        cond = batch.get("class")
        if cond is not None:
            cond = cond.where(torch.rand(len(cond), device=cond.device) >= settings.drop, count)
        return simple_loss(noise, settings.predict, lambda *inputs: network(*inputs).float(), batch["image"], cond)

    def walk(start: int) -> Iterator[dict]:
        for batch in data.batches(train_set, settings.batch, seed=settings.seed, start=start):
            picked = {"image": batch["image"]}
            yield picked | {"class": labels(settings.dataset, batch)} if count else picked

    player = Player(
        "denoiser", network, loss, lr=settings.lr, ema=settings.ema, warmup=min(100, settings.steps // 5), decay=True
    )
    return Task([player], walk, partial(metrics, settings))


def draw(
    settings: Settings, model: nn.Module, count: int, *, steps: int = 50, eta: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Samples (count, C, H, W) in [-1, 1] and their classes (count,), each equally often; None without a condition."""
    test_set = load(settings, "test")
    generator = torch.Generator().manual_seed(seed)
    total = classes(settings)
    wanted = torch.arange(count) % total if total else None
    if settings.dataset == "shapes" and total:  # only pairs that training shows
        colour, kind = torch.from_numpy(pairs("train")).T
        seen = (kind * len(COLOURS) + colour).sort().values
        wanted = seen[torch.arange(count) % len(seen)]
    options = {"eta": eta, "clip": True, "generator": generator}
    images = []
    for start in range(0, count, 250):
        noise = torch.randn(min(250, count - start), test_set.channels, *test_set.size, generator=generator)
        cond = None if wanted is None else wanted[start : start + len(noise)]
        images.append(last(sample(schedule(settings), denoiser(settings, model), noise, steps, cond=cond, **options)))
    return torch.cat(images).clamp(-1, 1), wanted


@torch.no_grad()
def metrics(settings: Settings, model: nn.Module, count: int = 2000) -> dict[str, float]:
    """Frechet distance, precision and recall of samples of 50 steps without noise, beside that of real pictures.

    With classes as conditions also the share of samples in which the judge sees what was asked for, where the judge
    knows these classes.  Distances are measured in a judge's features on any pictures: grey ones by the judge of
    digits, coloured ones by the judge of shapes.  Far from what they were trained on, such numbers only compare models
    with each other and with the floor.
    """
    test_set = load(settings, "test")
    count = min(count, len(test_set) // 2)
    real = test_set.batch(range(count))["image"]
    judge = "shapes" if test_set.channels == 3 else "glyphs"
    steps = min(50, settings.T)
    fake, wanted = draw(settings, model, count, steps=steps, seed=settings.seed)
    precision, recall = measure.precision_recall(real, fake, judge)
    found = {
        "frechet": measure.frechet(real, fake, judge),
        "frechet_floor": measure.floor(real, load(settings, "train"), judge),
        "precision": precision,
        "recall": recall,
        "ms_per_image": measure.milliseconds_per_image(
            lambda n: draw(settings, model, n, steps=steps)[0], 64, repeats=3
        ),
    }
    judged = wanted is not None and settings.dataset in ("glyphs", "digits", "mnist", "shapes")
    return found if not judged else found | recognised(settings.dataset, fake, wanted)


def recognised(dataset: str, images: Tensor, wanted: Tensor) -> dict[str, float]:
    """Shares of pictures (B, C, H, W) in which the judge sees the wanted class (B,); for shapes kind and colour."""
    from course.train import weights

    if dataset != "shapes":
        seen = weights.load("judge_glyphs")(images).argmax(1)
        return {"recognised": (seen == wanted).double().mean().item()}
    seen = measure.read(weights.load("judge_shapes"), images)
    kind, colour = wanted[:, None] // len(COLOURS), wanted[:, None] % len(COLOURS)
    one = (seen["kind"] >= 0).sum(1) == 1
    kinds, colours = ((seen["kind"] == kind).any(1) & one), ((seen["colour"] == colour).any(1) & one)
    return {
        "recognised": (kinds & colours).double().mean().item(),
        "recognised_kind": kinds.double().mean().item(),
        "recognised_colour": colours.double().mean().item(),
    }

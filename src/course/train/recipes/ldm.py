"""Chapter 7: diffusion on latents, told what to draw by a caption or by another picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from course import UserError, data, measure
from course.data.tokens import LENGTH, TOKENS, tokenize
from course.diffusion import schedule as schedules
from course.diffusion.guidance import Guided
from course.diffusion.objective import as_eps, simple_loss
from course.diffusion.samplers import Denoiser, last, sample
from course.models.concat import Concatenated
from course.models.ldm import TextToImage
from course.models.text import TextEncoder
from course.models.unet import UNet
from course.train.codes import stored
from course.train.fit import Player
from course.train.latents import LatentSpace, latent_space
from course.train.processes import surroundings
from course.train.recipes.vqvae import LABELS
from course.train.settings import Task, choice, number

TEXT, LOW, MAP, HOLE = "text", "low", "map", "hole"  # the conditions
GUIDED = {TEXT: 3.0, MAP: 1.5}  # those that are left out now and then, and a good scale for the guidance by them


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("shapes", "shapes")
    latents: str = "kl"  # the autoencoder: shipped weights, a result file of `course train kl`, or "pixels"
    condition: str = choice(TEXT, TEXT, LOW, MAP, HOLE)
    size: int = number(64, 16, 128)
    widths: tuple[int, ...] = number((64, 128), 8, 1024)
    depth: int = number(1, 1, 8)
    patch: int = number(1, 1, 8)
    heads: int = number(4, 1, 64)
    groups: int = number(8, 1, 32)
    text_width: int = number(128, 8, 1024)
    text_depth: int = number(2, 1, 12)
    drop: float = number(0.1, 0.0, 1.0)  # share of training pictures whose caption or map is left out
    T: int = number(1000, 1, 100_000)
    count: int = number(60_000, 8, 1_000_000)  # training pictures, encoded once
    ema: float = number(0.9995, 0.0, 0.99999)
    steps: int = number(500, 1, 10_000_000)
    batch: int = number(64, 1, 65536)
    lr: float = number(1e-3, 1e-8, 1.0)
    precision: str = choice("bf16", "no", "bf16")
    seed: int = number(0, 0, 2**31)


PROFILES = {
    "smoke": Settings(latents="pixels", size=16, widths=(16, 16), groups=2, text_width=16, steps=3, batch=8, count=48),
    "quick": Settings(count=2000, steps=150, batch=32),
    "full": Settings(steps=20_000),
}

FACTORS = ("kind", "colour", "size", "place")  # what a terse caption says
FINE = 2  # a segmentation map enters at half the picture's resolution, the judge's own
SHRUNK = 4  # how many times smaller the picture is that super-resolution starts from


def sources(settings: Settings, split: str) -> list[data.DataSet]:
    """The pictures. For captions: one shape in few words, one in many, and two shapes; else one shape and two."""
    options = {"size": settings.size}
    one = data.load("shapes", split, seed=settings.seed, **options)
    two = data.load("shapes", split, seed=settings.seed, shapes=(2,), **options)
    if settings.condition != TEXT:
        return [one, two]
    return [one, data.load("shapes", split, seed=settings.seed + 1, detail="detailed", **options), two]


def low(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) at a quarter of their size, each pixel the mean of sixteen."""
    return functional.avg_pool2d(images, SHRUNK)


def holes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Where pictures (B, C, H, W) are missing: (B, 1, H, W), 1 inside a rectangle of a quarter to a half of each side.

    Its borders are multiples of 8 pixels, so that a latent is either known or not.
    """
    b, _, h, w = images.shape
    inside = torch.zeros(b, 1, h, w)
    for one in inside:
        tall, wide = (int(torch.randint(side // 32, side // 16 + 1, (), generator=generator)) for side in (h, w))
        top = int(torch.randint(h // 8 - tall + 1, (), generator=generator))
        left = int(torch.randint(w // 8 - wide + 1, (), generator=generator))
        one[:, top * 8 : (top + tall) * 8, left * 8 : (left + wide) * 8] = 1
    return inside


def beside(condition: str, space: LatentSpace, batch: dict) -> Tensor:
    """A condition that is a picture, brought to the latents' grid: (B, C'', h, w).

    batch: "low" (B, 3, H / 4, W / 4), or "mask" (B, H, W), or "image" with "hole" (B, 1, H, W).  Pixels of finer
    pictures than the grid become channels, so nothing of them is lost.
    """
    if condition == LOW:
        return functional.pixel_unshuffle(batch["low"], space.f // SHRUNK)
    if condition == MAP:
        small = batch["mask"][:, FINE // 2 :: FINE, FINE // 2 :: FINE]
        layers = functional.one_hot(small, LABELS).movedim(-1, 1).float()
        return functional.pixel_unshuffle(layers, space.f // FINE)
    known = space.encode(batch["image"] * (1 - batch["hole"]))  # the hole is grey
    return torch.cat([known, functional.max_pool2d(batch["hole"], space.f)], 1)


def _condition(settings: Settings, space: LatentSpace, generator: torch.Generator, batch: dict) -> Tensor:
    """What the model is told of a batch of the data: tokens (B, M), or a picture on the latents' grid."""
    if settings.condition == TEXT:
        return tokenize(batch["caption"])
    if settings.condition == LOW:
        batch = batch | {"low": low(batch["image"])}
    if settings.condition == HOLE:
        batch = batch | {"hole": holes(batch["image"], generator)}
    return beside(settings.condition, space, batch)


def model(settings: Settings) -> nn.Module:
    """The predictor of the velocity: (z (B, C, h, w), t (B,), condition) -> (B, C, h, w)."""
    space = latent_space(settings.latents)
    unet = partial(
        UNet,
        widths=settings.widths,
        depth=settings.depth,
        attention=range(len(settings.widths)),
        heads=settings.heads,
        patch=settings.patch,
        groups=settings.groups,
        out_channels=space.channels,
    )
    if settings.condition == TEXT:
        text = TextEncoder(len(TOKENS), LENGTH, settings.text_width, settings.text_depth)
        return TextToImage(unet(space.channels, context=settings.text_width), text)
    if space.f < SHRUNK or space.f % SHRUNK:
        raise UserError(f"condition={settings.condition} needs latents with f = 4 or 8, not {space.f}")
    few = sources(settings, "test")[0].batch([0, 1])
    return Concatenated(unet(space.channels + _condition(settings, space, torch.Generator(), few).shape[1]))


def schedule(settings: Settings) -> schedules.Schedule:
    """Cosine: at its end hardly any signal is left, and a sample starts from what training showed (Lin et al. 2024)."""
    return schedules.cosine(settings.T)


def denoiser(settings: Settings, predictor: nn.Module) -> Denoiser:
    """A network that predicts the velocity as a denoiser; the U-Net of `TextToImage` takes encoded captions.

    States may be float64, whatever the type of the network.
    """
    kind = next(predictor.parameters()).dtype
    return as_eps(schedule(settings), "v", lambda z, t, cond: predictor(z.to(kind), t, cond))


def build(settings: Settings, model_: nn.Module | None = None) -> Task:
    network = model(settings) if model_ is None else model_
    space, table = latent_space(settings.latents), schedule(settings)
    space.model.to(surroundings().device)
    sets = sources(settings, "train")
    told = partial(_condition, settings, space, torch.Generator().manual_seed(settings.seed))
    columns = {"z": lambda batch: space.encode(batch["image"]), "cond": told}
    kept = [stored(one, -(-settings.count // len(sets)), columns) for one in sets]

    def loss(batch: dict) -> Tensor:
        cond = batch["cond"]
        if settings.condition in GUIDED:
            left_out = torch.rand(len(cond), *[1] * (cond.ndim - 1), device=cond.device) < settings.drop
            cond = torch.where(left_out, nothing(settings, cond), cond)
        return simple_loss(table, "v", network, batch["z"], cond)

    def walk(start: int) -> Iterator[dict]:
        return data.in_turn(kept, settings.batch, seed=settings.seed, start=start)

    player = Player(
        "denoiser", network, loss, lr=settings.lr, ema=settings.ema, warmup=min(500, settings.steps // 5), decay=True
    )
    return Task([player], walk, partial(metrics, settings))


def nothing(settings: Settings, cond: Tensor) -> Tensor:
    """What stands for no condition, for one picture: the tokens (1, M) of no words, a map (1, C, h, w) of no labels."""
    return tokenize([""]).to(cond.device) if settings.condition == TEXT else torch.zeros_like(cond[:1])


def path(T: int, steps: int) -> list[int]:
    """Falling times that end a whole step before clean data, as Diffusers spaces them when told "trailing".

    Raises:
        UserError: a number of steps that T does not divide by.
    """
    if not 1 <= steps <= T or T % steps:
        raise UserError(f"steps must divide T = {T}, such as 10, 20 or 50, not {steps}")
    return [*range(T - 1, -1, -(T // steps)), -1]


@torch.no_grad()
def draw(
    settings: Settings,
    model: nn.Module,
    cond: Sequence[str] | Tensor,
    *,
    scale: float | None = None,
    steps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1], one for each caption, or for each picture on the latents' grid.

    Args:
        scale: of the guidance by captions or maps, that of `GUIDED` by default; the other conditions are not guided.
        steps: of the sampler, DDIM.
    """
    space, table = latent_space(settings.latents), schedule(settings)
    scale = GUIDED.get(settings.condition) if scale is None else scale
    generator, made = torch.Generator().manual_seed(seed), []
    grid = settings.size // space.f
    for start in range(0, len(cond), 100):
        part = cond[start : start + 100]
        z = torch.randn(len(part), space.channels, grid, grid, generator=generator)
        # at the noisy end the signal is 5e-5 of a state: read off in float32, the clean picture would be wrong in the
        # third digit
        z = z.double()
        predictor = denoiser(settings, model)
        if settings.condition == TEXT:
            null, part = model.text(tokenize([""])), model.text(tokenize(part))
            predictor = Guided(denoiser(settings, model.unet), null, scale)
        elif settings.condition in GUIDED:
            predictor = Guided(predictor, nothing(settings, part), scale)
        times = path(settings.T, steps)
        z = last(sample(table, predictor, z, steps, cond=part, path=times))
        made.append(space.decode(z.float()))
    return torch.cat(made)


def obeyed(images: Tensor, factors: dict[str, Tensor]) -> dict[str, float]:
    """Shares of pictures in which the judge sees what the caption says, factor by factor and all together.

    images: (B, 3, H, W). factors: of the scenes that the captions describe.
    """
    from course.train import weights

    seen, wanted = measure.read(weights.load("judge_shapes"), images), measure.by_place(factors)
    found = measure.agreement(seen, wanted, images.shape[2:], FACTORS)
    return {f"right_{name}": found[name] for name in (*FACTORS, "everything")}


@torch.no_grad()
def metrics(settings: Settings, model: nn.Module, count: int = 500) -> dict[str, float]:
    """How well samples do what the condition says, and how far they are from real pictures as a set.

    Captions: of test scenes, of pairs of kind and colour that training never shows, and of two shapes.
    """
    test = data.load("shapes", "test", size=settings.size, seed=settings.seed)
    batch = test.batch(range(count))
    cond = batch["caption"]
    if settings.condition != TEXT:
        generator = torch.Generator().manual_seed(settings.seed)
        cond = _condition(settings, latent_space(settings.latents), generator, batch)
    fake = draw(settings, model, cond, seed=settings.seed)
    precision, recall = measure.precision_recall(batch["image"], fake, "shapes")
    found = {
        "frechet": measure.frechet(batch["image"], fake, "shapes"),
        "frechet_floor": measure.floor(batch["image"], data.load("shapes", "train", size=settings.size), "shapes"),
        "precision": precision,
        "recall": recall,
        "ms_per_image": measure.milliseconds_per_image(lambda n: draw(settings, model, cond[:n]), 64, repeats=3),
    }
    if settings.condition == TEXT:
        found |= obeyed(fake, batch["factors"])
        for name, options in (("composition", {}), ("two", {"shapes": (2,)})):
            split = "composition" if name == "composition" else "test"
            others = data.load("shapes", split, size=settings.size, seed=settings.seed, **options).batch(range(count))
            seen = obeyed(draw(settings, model, others["caption"], seed=settings.seed), others["factors"])
            found |= {f"{name}_{key}": value for key, value in seen.items()}
    if settings.condition == LOW:
        found["psnr"] = measure.psnr(batch["image"], fake)
    if settings.condition == MAP:
        from course.train.recipes.gpt import overlap

        found |= overlap(fake, batch["image"], batch["mask"])
    return found

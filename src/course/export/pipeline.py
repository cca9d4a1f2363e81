"""Our text-to-image model as Diffusers' StableDiffusionPipeline: with equal results, and as a folder on the disk."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course import UserError
from course.diffusion.schedule import Schedule
from course.export.autoencoder import autoencoder
from course.export.text import text_encoder, tokenizer
from course.export.unet import unet
from course.models.ldm import TextToImage
from course.train import weights
from course.train.latents import LatentSpace, latent_space
from course.train.recipes import ldm
from course.train.settings import restored

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

INDEX, CLASS = "model_index.json", "StableDiffusionPipeline"


def pipeline(settings: ldm.Settings, model: TextToImage, space: LatentSpace) -> StableDiffusionPipeline:
    """A text-to-image model and its latent space as Diffusers' pipeline, which draws the same pictures.

    Args:
        settings: of the recipe ldm, with condition=text.
        model: of the recipe; its U-Net answers with the velocity.
        space: that it was trained on, with the autoencoder of the recipe kl.

    Returns:
        With copies of all weights, in the models' type.  Like Stable Diffusion's own it guides with scales above 1; for
        others the answer is that of scale 1.

    Raises:
        UserError: another condition, another structure, a size that f does not divide, or no Diffusers.
    """
    if settings.condition != ldm.TEXT:
        raise UserError(f"{CLASS} is conditioned on text, not on condition={settings.condition}")
    if settings.size % space.f:
        raise UserError(f"the size of pictures must be a multiple of f = {space.f}, not {settings.size}")
    theirs = _class()
    with TemporaryDirectory() as folder:  # the tokenizer is read from files
        words = tokenizer(folder)
    return theirs(
        vae=autoencoder(space.model, 1 / space.std, settings.size),
        text_encoder=text_encoder(model.text),
        tokenizer=words,
        unet=unet(model.unet, settings.size // space.f),
        scheduler=scheduler(ldm.schedule(settings)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def scheduler(schedule: Schedule) -> DDIMScheduler:
    """A schedule with the steps of `course.train.recipes.ldm.path`, for a network that answers with the velocity.

    Diffusers keeps alpha_bar in float32, which moves samples by some millionths.
    """
    from diffusers import DDIMScheduler

    before = torch.cat([schedule.alpha_bar.new_ones(1), schedule.alpha_bar[:-1]])
    return DDIMScheduler(
        num_train_timesteps=len(schedule),
        trained_betas=(1 - schedule.alpha_bar / before).tolist(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",  # from T - 1, where training ended too
        set_alpha_to_one=True,  # the last step leads to clean data
        clip_sample=False,  # latents know no bounds
        steps_offset=1,  # without effect on this spacing, but the pipeline asks for it
    )


def save(pipe: StableDiffusionPipeline, folder: Path | str) -> Path:
    """Write a pipeline as a folder that `StableDiffusionPipeline.from_pretrained` reads: all of it or nothing.

    Args:
        folder: does not exist yet or is empty.

    Returns:
        The folder's full path.

    Raises:
        UserError: it holds something, is no folder, or cannot be written.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name a new one")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _quiet():
                pipe.save_pretrained(partial)
            if folder.exists():
                folder.rmdir()  # some systems do not rename onto a folder, even an empty one
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    return folder


def load(folder: Path | str) -> StableDiffusionPipeline:
    """A pipeline from its folder on this disk, in float32, without network and without progress bars.

    Raises:
        UserError: no such folder, another pipeline's, or a damaged one.
    """
    path = Path(folder) / INDEX
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{folder} is no folder of a pipeline: it has no readable {INDEX}") from None
    if found != CLASS:
        raise UserError(f"{folder} holds a {found}, not a {CLASS}")

    theirs = _class()
    try:
        with _quiet():
            pipe = theirs.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds: each file has a reader of its own
        raise UserError(f"{folder} is damaged: {str(error).strip().splitlines()[0]}") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _class() -> type[StableDiffusionPipeline]:
    try:
        import transformers  # noqa: F401
        from diffusers import StableDiffusionPipeline
    except ImportError as error:
        raise UserError(f"{error}: this needs Diffusers, pip install diffusers transformers") from None
    return StableDiffusionPipeline


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of Diffusers and transformers while files are read or written: it takes less than a second."""
    import diffusers
    import transformers

    logs = diffusers.utils.logging, transformers.utils.logging
    were = [getattr(log, "_tqdm_active", True) for log in logs]  # not every version has a function that tells
    for log in logs:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, active in zip(logs, were):
            if active:
                log.enable_progress_bar()


@torch.no_grad()
def draw(
    pipe: StableDiffusionPipeline,
    captions: list[str],
    *,
    scale: float = 3.0,
    steps: int = 20,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] by the pipeline: what `course.train.recipes.ldm.draw` gives, up to rounding.

    Args:
        captions: N of them, at most 100, since the noise is drawn for all at once.
        size: height and width; none for those of training.

    Raises:
        UserError: a scale below 1, which the pipeline would take for 1, or a size that f does not divide.
    """
    if not 1 <= scale < math.inf:
        raise UserError(f"the pipeline's guidance scale must be 1 or more, not {scale}")
    f = pipe.vae_scale_factor
    height, width = (None, None) if size is None else size
    if size is not None and (height % f or width % f or min(size) < f):
        raise UserError(f"height and width must be multiples of f = {f}, not {tuple(size)}")
    generator = torch.Generator().manual_seed(seed)
    options = {"guidance_scale": scale, "num_inference_steps": steps, "generator": generator}
    return pipe(list(captions), height, width, output_type="pt", **options).images * 2 - 1


def built(name: str, decoder: str = "") -> StableDiffusionPipeline:
    """Shipped weights, or a result of `course train ldm` by its path, as a pipeline.

    Args:
        decoder: weights of the recipe kl with the same latents, whose decoder draws in place of the model's own.

    Raises:
        UserError: as :func:`pipeline`, no such weights, or weights of another recipe.
    """
    path, meta = weights.locate(name)
    if meta.get("recipe") != "ldm":
        raise UserError(f"{name} is no text-to-image model: it was made by the recipe {meta.get('recipe')!r}, not ldm")
    settings = restored(ldm.Settings, meta["settings"])
    space = latent_space(settings.latents)
    if decoder:
        start = weights.locate(decoder)[1]["settings"].get("start")
        if start != settings.latents:
            raise UserError(f"{decoder} has other latents than {name}: train it with start={settings.latents}")
        space = replace(space, model=latent_space(decoder).model)
    return pipeline(settings, weights.read(path), space)


def export(name: str, folder: Path | str) -> Path:
    """Write a model as the folder of a pipeline. Arguments and errors as :func:`built` and :func:`save`."""
    return save(built(name), folder)

"""The shipped models: small files in ``course/weights``, each made by a recipe that its metadata names."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from course import UserError
from course.train import checkpoint, recipes
from course.train.settings import restored

FILE_LIMIT, TOTAL_LIMIT = 10_000_000, 60_000_000  # bytes; git keeps every version of every file


def folder() -> Path:
    """Where the shipped files are."""
    return Path(str(files("course"))) / "weights"


def names() -> tuple[str, ...]:
    """Names of the shipped models."""
    return tuple(sorted(path.stem for path in folder().glob("*.safetensors")))


def info(name: str) -> dict[str, Any]:
    """Where a shipped model comes from: recipe, settings, dataset, commit, steps, hardware, seconds, metrics, ..."""
    return checkpoint.describe(_path(name))


def load(name: str) -> nn.Module:
    """A shipped model, ready for use: in evaluation mode, float32, on the CPU, without gradients.

    Raises:
        UserError: no such model, or its file is damaged or does not fit its recipe.
    """
    return read(_path(name))


def read(path: str | Path) -> nn.Module:
    """The same for any result file of ``course train``."""
    tensors, meta = checkpoint.load(path)
    if meta.get("kind") != "weights":
        raise UserError(f"{path} holds no finished model but: {meta.get('kind')}")
    recipe = recipes.get(meta["recipe"])
    with torch.random.fork_rng(devices=[]):  # building draws random weights; the caller's numbers stay as they were
        model = recipe.model(restored(recipe.Settings, meta["settings"]))
    checkpoint.restore(model, tensors, path)
    return model.float().eval().requires_grad_(False)


def ship(path: str | Path) -> Path:
    """Copy a result file among the shipped models, under the name in its metadata. Returns the copy.

    Raises:
        UserError: it does not load, or is larger than 10 MB, or all shipped files would be larger than 60 MB.
    """
    read(path)
    content = Path(path).read_bytes()
    target = folder() / f"{checkpoint.describe(path)['name']}.safetensors"
    others = sum(file.stat().st_size for file in folder().glob("*.safetensors") if file != target)
    for size, limit, what in (
        (len(content), FILE_LIMIT, str(path)),
        (others + len(content), TOTAL_LIMIT, f"with {path}, all shipped weights"),
    ):
        if size > limit:
            raise UserError(f"{what}: {size / 1e6:.1f} MB, allowed are {limit / 1e6:.0f} MB")
    checkpoint.write(target, content)
    return target


def _path(name: str) -> Path:
    if name not in names():
        raise UserError(f"no shipped weights {name!r}; there are: {', '.join(names()) or 'none yet'}")
    return folder() / f"{name}.safetensors"

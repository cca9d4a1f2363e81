"""The shipped models: small files in ``course/weights``, each made by a recipe that its metadata names."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from course import UserError
from course.train import checkpoint, recipes
from course.train.settings import restored

FILE_LIMIT, TOTAL_LIMIT = 10_000_000, 100_000_000  # bytes; git keeps every version of every file


def folder() -> Path:
    """Where the shipped files are."""
    return Path(str(files("course"))) / "weights"


def names() -> tuple[str, ...]:
    """Names of the shipped models."""
    return tuple(sorted(path.stem for path in folder().glob("*.safetensors")))


def info(name: str) -> dict[str, Any]:
    """Where a shipped model comes from: recipe, settings, dataset, commit, steps, hardware, metrics, ..."""
    return checkpoint.describe(_path(name))


def locate(name: str) -> tuple[Path, dict[str, Any]]:
    """Where a result is, and where it comes from: shipped weights by name, or a file of ``course train`` by path."""
    path = Path(name) if name.endswith(".safetensors") else folder() / f"{name}.safetensors"
    return path, info(path.stem) if path.parent == folder() else checkpoint.describe(path)


def settings(name: str) -> Any:
    """The settings that a shipped model was made with, as its recipe's dataclass."""
    meta = info(name)
    return restored(recipes.get(meta["recipe"]).Settings, meta["settings"])


def load(name: str) -> nn.Module:
    """A shipped model, ready for use: in evaluation mode, float32, on the CPU, without gradients.

    Raises:
        UserError: no such model, or its file is damaged or does not fit its recipe.
    """
    return read(_path(name))


def read(path: str | Path) -> nn.Module:
    """The same for any result file of ``course train``."""
    tensors, meta = checkpoint.load(path)
    _demand_result(path, meta)
    recipe = recipes.get(meta["recipe"])
    # Building draws random weights; the caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        model = recipe.model(restored(recipe.Settings, meta["settings"]))
    checkpoint.restore(model, tensors, path)
    return model.float().eval().requires_grad_(False)


def ship(path: str | Path) -> Path:
    """Copy a result file among the shipped models, under the name in its metadata. Returns the copy.

    Raises:
        UserError: it does not load, or is larger than 10 MB, or all shipped files would be larger than 100 MB.
    """
    read(path)
    content = Path(path).read_bytes()
    target = folder() / f"{check_name(checkpoint.describe(path)['name'])}.safetensors"
    others = sum(file.stat().st_size for file in folder().glob("*.safetensors") if file != target)
    for size, limit, what in (
        (len(content), FILE_LIMIT, str(path)),
        (others + len(content), TOTAL_LIMIT, f"with {path}, all shipped weights"),
    ):
        if size > limit:
            raise UserError(f"{what}: {size / 1e6:.1f} MB, allowed are {limit / 1e6:.0f} MB")
    checkpoint.write(target, content)
    return target


def check_name(name: str) -> str:
    """The name itself, if a model may be called so.

    Raises:
        UserError: it is not made of letters, digits, - and _.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise UserError(f"a name has letters, digits, - and _ only, not {name!r}")
    return name


def _demand_result(path: str | Path, meta: dict[str, Any]) -> None:
    needed = {"name", "recipe", "settings", "dataset", "parameters"}
    if meta.get("kind") != "weights" or not (needed <= meta.keys() and isinstance(meta["settings"], dict)):
        raise UserError(f"{path} is no result of `course train` but a file of kind {meta.get('kind')!r}")


def _path(name: str) -> Path:
    if name not in names():
        raise UserError(f"no shipped weights {name!r}; there are: {', '.join(names()) or 'none yet'}")
    return folder() / f"{name}.safetensors"

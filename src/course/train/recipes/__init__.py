"""Recipes: one small module for each trained model.

A recipe has

Settings                      a frozen dataclass with at least ``dataset``, ``steps`` and ``seed``; settings
                              called ``precision`` ("no" or "bf16") and ``parts`` are handed to `course.train.fit.fit`
PROFILES                      Settings for smoke, quick and full
model(settings)               the untrained network
build(settings, model=None)   the `course.train.settings.Task`
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

from course import UserError


def names() -> tuple[str, ...]:
    """Names of all recipes."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def get(name: str) -> ModuleType:
    """A recipe by name.

    Raises:
        UserError: there is none of that name, with those that there are.
    """
    if name not in names():
        raise UserError(f"unknown recipe {name!r}; choose one of {', '.join(names())}")
    return import_module(f"{__name__}.{name}")

"""Trainings of equal time, for comparisons of what different models make of it."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from course.train.fit import fit

TRIAL = 10  # updates that tell how long one takes


def trained_for(seconds: float, recipe: ModuleType, settings: Any) -> tuple[nn.Module, dict[str, float]]:
    """A recipe's model after so many seconds of updates, the learning rate falling to zero at their end.

    The time of a few trial updates decides how many there will be.  What a recipe prepares before the first update,
    such as codes of pictures, is not counted.

    Returns:
        The model in evaluation mode on the CPU; its updates ("steps") and what they took ("seconds").
    """
    torch.manual_seed(settings.seed)
    model = recipe.model(settings)
    task = recipe.build(settings, model)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for updates in (TRIAL // 2, TRIAL):  # the very first updates take longer than later ones
        for progress in fit(task.players, task.batches, updates, precision=settings.precision):  # noqa: B007
            pass
    model.load_state_dict(start)
    settings = replace(settings, steps=max(TRIAL, int(seconds / progress.seconds * TRIAL)))
    (player,) = task.players
    player.warmup = min(100, settings.steps // 5)
    updates = fit(task.players, task.batches, settings.steps, seed=settings.seed, precision=settings.precision)
    for progress in updates:  # noqa: B007
        pass
    return player.trained.cpu().eval(), {"steps": settings.steps, "seconds": round(progress.seconds, 1)}

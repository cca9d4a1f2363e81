"""What every chapter's notebook needs before its first experiment: checked parameters and a profile.

papermill only warns about a misspelt parameter and goes on with the default.  A reader who asks for another data set
must not get the default one in silence, so each notebook checks its parameters in the cell after them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from course import UserError
from course.measure.expect import Unechoed

if TYPE_CHECKING:
    from torch import nn

    from course.train.fit import Progress

PROFILES = ("smoke", "quick", "full")


def parameters(namespace: Mapping[str, Any], **allowed: Collection | type) -> None:
    """Check a notebook's parameters, given as its ``globals()`` right after the parameters cell.

    Args:
        namespace: the notebook's global names.
        allowed: for each parameter its allowed values: a tuple of choices, a ``range`` (bounds for whole numbers), or a
            type for any value of it.  ``profile`` is known already.

    Raises:
        UserError: a parameter has a value outside its choices, or the namespace holds a name that is no parameter
            (a misspelt one), with the choices listed.
    """
    allowed = {"profile": PROFILES, **allowed}
    for name, value in namespace.items():
        # Names that a notebook owns itself: IPython's (In, Out, _, exit, ...) and whatever was imported.
        is_data = not (name.startswith("_") or callable(value) or isinstance(value, ModuleType))
        if is_data and name not in allowed and name not in ("In", "Out"):
            raise UserError(f"unknown parameter {name!r}; this chapter has: {', '.join(sorted(allowed))}")
    for name, choices in allowed.items():
        if name not in namespace:
            raise UserError(f"parameter {name!r} is missing from the parameters cell")
        value = namespace[name]
        if isinstance(choices, type):
            if not isinstance(value, choices):
                raise UserError(f"parameter {name} must be of type {choices.__name__}, not {value!r}")
        elif isinstance(choices, range):
            if type(value) is not int or not choices.start <= value < choices.stop:
                raise UserError(
                    f"parameter {name} must be a whole number from {choices.start} to {choices.stop - 1}, not {value!r}"
                )
        elif value not in choices:
            raise UserError(f"parameter {name} must be one of {', '.join(map(str, choices))}, not {value!r}")


def pick(profile: str, *, smoke: Any, quick: Any, full: Any) -> Any:
    """The value of a setting for this profile: ``pick(profile, smoke=2, quick=200, full=5000)``."""
    values = {"smoke": smoke, "quick": quick, "full": full}
    if profile not in values:
        raise UserError(f"unknown profile {profile!r}; choose from {', '.join(PROFILES)}")
    return values[profile]


def watch(updates: Iterable[Progress], steps: int) -> Iterable[Progress]:
    """The updates of a training, with a progress bar that leaves nothing behind when it is done.

    Args:
        updates: from :func:`course.train.fit.fit`.
        steps: how many there will be.
    """
    from tqdm.auto import tqdm

    return tqdm(updates, total=steps, leave=False)


def train(recipe: str, profile: str, **settings: Any) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a recipe's model inside a notebook, under a progress bar.

    Args:
        recipe: name of a recipe.
        profile: of the chapter; the recipe's profile of that name gives the settings that are not named.
        settings: what differs from it.

    Returns:
        The trained model in evaluation mode on the CPU, and the losses of every update.

    Raises:
        UserError: an unknown recipe, profile or setting, or a value that is not allowed.
    """
    import torch

    from course.train import recipes
    from course.train.fit import fit
    from course.train.settings import override

    home = recipes.get(recipe)
    if profile not in home.PROFILES:
        raise UserError(f"unknown profile {profile!r}; {recipe} has: {', '.join(home.PROFILES)}")
    chosen = override(home.PROFILES[profile], [f"{key}={value}" for key, value in settings.items()])
    torch.manual_seed(chosen.seed)  # the weights to start from
    model = home.model(chosen)
    task = home.build(chosen, model)
    player = next(player for player in task.players if player.module is model)
    precision = getattr(chosen, "precision", "no")
    updates = fit(task.players, task.batches, chosen.steps, seed=chosen.seed, precision=precision)
    losses = [update.losses for update in watch(updates, chosen.steps)]
    return player.trained.cpu().eval(), losses


def report(name: str, value: float, low: float | None, high: float | None, unit: str = "") -> float:
    """Print a value beside the range that holds for the page's own parameters, without checking it.

    Stands in for :func:`course.measure.expect` when a chapter runs on other data or in another profile.
    """
    span = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"{low:g} .. {high:g}"
    print(f"{name}: {float(value):.4g} {unit}".rstrip() + f" (this page's own run: {span})")
    return Unechoed(value)


def shipped(name: str, profile: str, dataset: str) -> nn.Module | None:
    """Shipped weights for a chapter in its quick profile, if they were made for this data set; else None.

    Prints where they come from.  In the other profiles a chapter trains its models itself.
    """
    from course.train import weights

    if profile != "quick" or name not in weights.names() or weights.info(name)["dataset"] != dataset:
        return None
    facts = weights.info(name)
    print(f"{name}: {facts['steps']:,} updates, {facts['parameters']:,} parameters, trained on {facts['hardware']}")
    return weights.load(name)

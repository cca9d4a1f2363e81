"""What every chapter's notebook needs before its first experiment: checked parameters and a profile.

papermill only warns about a misspelt parameter and goes on with the default.  A reader who asks for another data set
must not get the default one in silence, so each notebook checks its parameters in the cell after them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from course import UserError

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

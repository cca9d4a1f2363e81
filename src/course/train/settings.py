"""What a recipe is made of: settings that are checked in one place, and the task that they describe."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from course import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from course.train.fit import Player

S = TypeVar("S")
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass
class Task:
    """A training, ready to run.

    Attributes:
        players: what learns; one of them holds the model that the recipe is about.
        batches: step to start from -> endless iterator of batches, see `course.train.fit.fit`.
        measure: trained model, on the CPU and in evaluation mode -> its metrics.
        show: model in training -> a few pictures (N, C, H, W) in [-1, 1], to be looked at on the way; or none.
    """

    players: list[Player]
    batches: Callable[[int], Iterator[dict[str, Any]]]
    measure: Callable[[nn.Module], dict[str, float]]
    show: Callable[[nn.Module], Tensor] | None = None


def number(default: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field of a settings dataclass with a range, both ends allowed; in a tuple it holds for each entry."""
    return field(default=default, metadata={"low": low, "high": high})


def choice(default: Any, *choices: Any) -> Any:
    """A field of a settings dataclass with these choices."""
    return field(default=default, metadata={"choices": choices})


def check(settings: S) -> S:
    """The settings themselves, if each has its type and lies in its range.

    Raises:
        UserError: names the first setting that does not, and what is allowed.
    """
    hints = typing.get_type_hints(type(settings))
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if not _allowed(value, hints[entry.name], entry.metadata):
            wanted = _words(hints[entry.name], entry.metadata)
            raise UserError(f"setting {entry.name} must be {wanted}, not {value!r}")
    return settings


def override(settings: S, assignments: Iterable[str]) -> S:
    """Settings with some values replaced, each given as text: ``override(settings, ["width=64"])``.

    Text becomes a value by the type of the field: ``3``, ``0.1``, ``true``, ``32,64`` (a tuple), ``none``.

    Raises:
        UserError: no ``=``, an unknown setting, or a value that is not allowed, with what is.
    """
    hints = typing.get_type_hints(type(settings))
    known = {entry.name: entry for entry in fields(settings)}
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"write a setting as key=value, not {assignment!r}")
        if key not in known:
            raise UserError(_unknown(key, known))
        try:
            values[key] = _parsed(text, hints[key])
        except ValueError:
            wanted = _words(hints[key], known[key].metadata)
            raise UserError(f"setting {key} must be {wanted}, not {text!r}") from None
    return check(replace(settings, **values))


def restored(kind: type[S], values: Mapping[str, Any]) -> S:
    """Settings from a JSON object, where tuples have become lists. Raises what `check` raises."""
    known = [entry.name for entry in fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(_unknown(key, known))
    return check(kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}))


def _unknown(key: str, known: Iterable[str]) -> str:
    return f"unknown setting {key!r}; this recipe has: {', '.join(known)}"


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of ``A | None``; a plain type is its only one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _parsed(text: str, hint: Any) -> Any:
    options = _options(hint)
    if types.NoneType in options and text.lower() == "none":
        return None
    kind = next(option for option in options if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        entry = typing.get_args(kind)[0]
        return tuple(_parsed(part.strip(), entry) for part in text.strip("()").split(",") if part.strip())
    if kind is bool:
        if text.lower() not in TRUTH:
            raise ValueError(text)
        return TRUTH[text.lower()]
    return kind(text)


def _allowed(value: Any, hint: Any, limits: Mapping[str, Any]) -> bool:
    if value is None:
        return types.NoneType in _options(hint)
    kind = next(option for option in _options(hint) if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        entries = typing.get_args(kind)
        if not isinstance(value, tuple) or (entries[-1] is not Ellipsis and len(entries) != len(value)):
            return False
        return all(_allowed(entry, entries[0], limits) for entry in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # not isinstance: a bool is no number here
        return False
    if "choices" in limits:
        return value in limits["choices"]
    if "low" in limits:
        return limits["low"] <= value <= limits["high"]  # false for nan
    return True


def _words(hint: Any, limits: Mapping[str, Any]) -> str:
    """What is allowed, for an error message."""
    kind = next(option for option in _options(hint) if option is not types.NoneType)
    several = typing.get_origin(kind) is tuple
    entries = typing.get_args(kind)
    name = WORDS[entries[0] if several else kind]
    if several:
        count = "" if entries[-1] is Ellipsis else f"{len(entries)} "
        text = f"{count}{name}s separated by commas"
    else:
        text = name if name in ("text", "true or false") else f"a {name}"
    if "choices" in limits:
        listed = ", ".join(str(option) for option in limits["choices"])
        text = f"{text}, each of {listed}" if several else f"one of {listed}"
    elif "low" in limits:
        low, high = limits["low"], limits["high"]
        span = f"from {low} to {high}" if low > -math.inf and high < math.inf else ""
        span = span or (
            f"at least {low}" if low > -math.inf else f"at most {high}" if high < math.inf else ""
        )
        text = f"{text}{', each' if several and span else ''} {span}".rstrip()
    return f"{text}, or none" if types.NoneType in _options(hint) else text

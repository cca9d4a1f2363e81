"""The names of everything in the shapes world, and the sentences made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from course import UserError

KINDS = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
STYLES = ("filled", "outline", "gradient", "hatched", "dotted", "rings")
GROUNDS = ("plain", "stripes", "checker", "speckle")
MOTIONS = (
    ("drift", "left"), ("drift", "right"), ("drift", "up"), ("drift", "down"),
    ("bounce", "left"), ("bounce", "right"), ("bounce", "up"), ("bounce", "down"),
    ("orbit", "clockwise"), ("orbit", "counterclockwise"),
    ("grow", ""), ("shrink", ""),
    ("rotate", "clockwise"), ("rotate", "counterclockwise"),
    ("occlude", "left"), ("occlude", "right"),
    ("still", ""),
)  # fmt: skip
DETAILS = ("terse", "detailed")

_STYLE_WORDS = {
    "filled": "with a solid fill",
    "outline": "with only an outline",
    "gradient": "with a gradient fill",
    "hatched": "with a hatched fill",
    "dotted": "with a dotted fill",
    "rings": "with a ringed fill",
}
_GROUND_WORDS = {"plain": "plain", "stripes": "striped", "checker": "checkered", "speckle": "speckled"}
_VERBS = {
    "drift": "drifts",
    "bounce": "bounces",
    "orbit": "orbits",
    "grow": "grows",
    "shrink": "shrinks",
    "rotate": "rotates",
    "occlude": "passes behind a post",
    "still": "stays still",
}


def motion_name(motion: int) -> str:
    """Name of a motion class, for instance "bounce right" or "grow"."""
    return " ".join(MOTIONS[motion]).strip()


def _motion_words(motion: int) -> str:
    verb, direction = MOTIONS[motion]
    if direction in ("left", "right"):
        direction = "to the " + direction
    return f"{_VERBS[verb]} {direction}".strip()


def _place_words(place: str) -> str:
    return "in the center" if place == "center" else f"at the {place}"


def caption(
    factors: Mapping[str, Sequence[int] | int], detail: str = "terse", motion: int | None = None
) -> str:
    """Describe one scene.

    ``factors`` holds "kind", "colour", "size", "place", "style" (one index a shape, -1 where there is none)
    and "ground" (one index); ``motion`` is an index into MOTIONS for a video. Terse: "large red circle top
    left"; detailed: "a large red circle with a hatched fill at the top left, on a speckled ground". With a
    motion: "a large red circle bounces to the right".  Raises UserError for another detail.
    """
    if detail not in DETAILS:
        raise UserError(f"detail must be one of {', '.join(DETAILS)}, got {detail!r}")
    phrases = []
    for kind, colour, size, place, style in zip(
        *(factors[name] for name in ("kind", "colour", "size", "place", "style")), strict=True
    ):
        if kind < 0:
            continue
        phrase = f"{SIZES[size]} {COLOURS[colour]} {KINDS[kind]}"
        if detail == "detailed":
            phrase = f"a {phrase} {_STYLE_WORDS[STYLES[style]]} {_place_words(PLACES[place])}"
        elif motion is not None:
            phrase = f"a {phrase}"
        else:
            phrase = f"{phrase} {PLACES[place]}"
        phrases.append(phrase if motion is None else f"{phrase} {_motion_words(motion)}")
    text = " and ".join(phrases)
    if detail == "detailed":
        text += f", on a {_GROUND_WORDS[GROUNDS[factors['ground']]]} ground"
    return text


def words(text: str) -> list[str]:
    """Split a caption into the tokens of VOCABULARY; a comma is a token of its own."""
    return text.replace(",", " ,").split()


def _vocabulary() -> tuple[str, ...]:
    parts = [",", "a", "and", "on", "ground", *SIZES, *COLOURS, *KINDS, *PLACES]
    parts += [_place_words(place) for place in PLACES]
    parts += [*_STYLE_WORDS.values(), *_GROUND_WORDS.values()]
    parts += [_motion_words(motion) for motion in range(len(MOTIONS))]
    return tuple(dict.fromkeys(word for part in parts for word in part.split()))


VOCABULARY = _vocabulary()

"""The shapes world: pictures of coloured figures, drawn on the fly from a seed and an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from course import UserError
from course.data.base import DataSet, check_count, check_seed, check_size, check_split
from course.data.captions import COLOURS, DETAILS, GROUNDS, KINDS, PLACES, SIZES, STYLES, caption
from course.data.counter import bits, deal, uniform
from course.data.drawing import REACH, SHADES, TURN, Figures, grounds, paint

SPLITS = ("train", "test", "composition")
COUNTS = {"train": 1_000_000, "test": 10_000, "composition": 10_000}
SLOTS = 3  # most shapes in a scene

# One pair for each kind, each of another colour: not in train and test, and all that "composition" shows.
HELD_OUT = (
    ("purple", "circle"),
    ("green", "square"),
    ("yellow", "triangle"),
    ("blue", "star"),
    ("orange", "cross"),
    ("cyan", "heart"),
)
RADII = (0.13, 0.18, 0.25)  # of the canvas's shorter side, for SIZES
MIDDLES = (0.28, 0.5, 0.72)  # of width and height: columns and rows of PLACES
SPREAD = 0.04  # how far a centre leaves its place's middle, at most

# Angles come in 64 steps; upright kinds lean by at most five of them (28 degrees) and so stay readable.
_STEP = TURN // 64
_LEAN = {"triangle": 5, "star": 5, "cross": 5, "heart": 5}

# Sets of places for two and for three shapes, no two of them neighbours, not even diagonally.
_SPOTS = {
    2: ((0, 2), (0, 5), (0, 6), (0, 7), (0, 8), (1, 6), (1, 7), (1, 8),
        (2, 3), (2, 6), (2, 7), (2, 8), (3, 5), (3, 8), (5, 6), (6, 8)),
    3: ((0, 2, 6), (0, 2, 7), (0, 2, 8), (0, 5, 6), (0, 6, 8), (1, 6, 8), (2, 3, 8), (2, 6, 8)),
}  # fmt: skip


def pairs(split: str) -> np.ndarray:
    """(P, 2) int64: the (colour, kind) pairs that a split shows."""
    held_out = {(COLOURS.index(colour), KINDS.index(kind)) for colour, kind in HELD_OUT}
    everything = [(colour, kind) for colour in range(len(COLOURS)) for kind in range(len(KINDS))]
    return np.array([pair for pair in everything if (pair in held_out) == (split == "composition")])


def chosen(name: str, what: str, values: Sequence[str] | str, allowed: Sequence[str]) -> np.ndarray:
    """Check a choice of names -> their indices in ``allowed``, in that order; UserError for anything else."""
    values = (values,) if isinstance(values, str) else values
    good = isinstance(values, (tuple, list)) and len(values) > 0 and all(value in allowed for value in values)
    if not good or len(set(values)) < len(values):
        raise UserError(f"{name}: {what} must be different names out of {', '.join(allowed)}, got {values!r}")
    return np.array(sorted(allowed.index(value) for value in values))


def check_detail(name: str, detail: str) -> str:
    """Return ``detail``, or raise UserError when it is neither "terse" nor "detailed"."""
    if detail not in DETAILS:
        raise UserError(f"{name}: detail must be one of {', '.join(DETAILS)}, got {detail!r}")
    return detail


def levels(canvas: np.ndarray) -> np.ndarray:
    """Round float32 values 0 to 255 to uint8."""
    return np.floor(canvas + 0.5).astype(np.uint8)


def pieces(items: int, pixels: int) -> Iterator[slice]:
    """Cut a batch into slices of at most 2^20 pixels (or one item), so that large canvases fit in memory."""
    step = max(1, 2**20 // pixels)
    return (slice(first, first + step) for first in range(0, items, step))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 pixels -> float32 in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(127.5) - np.float32(1))


class Shapes(DataSet):
    """Still scenes of one to three shapes.

    split: "train", "test" (another stream of the same world) or "composition" (the colour and kind pairs
    HELD_OUT, which the other two never show). size: pixels, a number or (H, W), 16 to 128. sizes, styles,
    grounds: names out of SIZES, STYLES and GROUNDS; "dotted" and "rings" come only when asked for. shapes:
    how many shapes a scene may have, a number or several of 1, 2, 3; where there are several, none is large.
    detail: "terse" or "detailed" captions. Raises UserError for anything else.

    Each combination of colour and kind, size, place, style and ground comes equally often (`counter.deal`).
    """

    def __init__(
        self,
        split: str = "train",
        *,
        size: int | tuple[int, int] = 32,
        seed: int = 0,
        count: int | None = None,
        sizes: Sequence[str] = SIZES,
        styles: Sequence[str] = STYLES[:4],
        grounds: Sequence[str] = GROUNDS,
        shapes: Sequence[int] | int = (1,),
        detail: str = "terse",
    ) -> None:
        check_split("shapes", split, SPLITS)
        count = check_count("shapes", count, COUNTS[split])
        super().__init__(
            "shapes", split, channels=3, size=check_size("shapes", size, 16, 128), count=count, classes=KINDS
        )
        self.seed = check_seed("shapes", seed)
        self.sizes = chosen("shapes", "sizes", sizes, SIZES)
        self.styles = chosen("shapes", "styles", styles, STYLES)
        self.grounds = chosen("shapes", "grounds", grounds, GROUNDS)
        numbers = shapes if isinstance(shapes, (tuple, list)) else (shapes,)
        if not numbers or any(type(n) is not int or not 1 <= n <= SLOTS for n in numbers):
            raise UserError(f"shapes: shapes must be one or several of 1, 2, 3, got {shapes!r}")
        self.shapes = np.array(sorted(set(numbers)))
        self.crowded_sizes = self.sizes[self.sizes < SIZES.index("large")]
        if max(numbers) > 1 and not len(self.crowded_sizes):
            raise UserError("shapes: scenes of several shapes hold small and medium ones; add one to sizes")
        self.detail = check_detail("shapes", detail)
        self.pairs = pairs(split)

    def _key(self, *counters: np.ndarray) -> np.ndarray:
        return bits(self.seed % 2**64, SPLITS.index(self.split), *counters)

    def factors(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """What the scenes consist of, without drawing them.

        kind, colour, size, place, style: (B, 3) int64, one column a shape in reading order of the places, -1
        where there is none. x, y: (B, 3) float32, centres as fractions of width and height; radius: (B, 3)
        float32, a fraction of the shorter side; angle: (B, 3) int64, 4096 to a turn, clockwise; -1 where
        there is none. ground, shade: (B,) int64.
        """
        index = self.numbers(indices)
        key = int(self._key()[0])
        blank = np.full((len(index), SLOTS), -1, np.int64)
        found = {name: blank.copy() for name in ("kind", "colour", "size", "place", "style", "angle")}
        found |= {name: blank.astype(np.float32) for name in ("x", "y", "radius")}
        found |= {name: np.zeros(len(index), np.int64) for name in ("ground", "shade")}

        # every run of len(self.shapes) scenes has each number of shapes once, and a pack for each number
        turn, (slot,) = index // len(self.shapes), deal(index, (len(self.shapes),), key, 0)
        for number in self.shapes:
            rows = np.flatnonzero(self.shapes[slot] == number)
            if len(rows):
                self._compose(found, rows, index[rows], turn[rows], int(number), key)
        return found

    def _compose(
        self, found: dict, rows: np.ndarray, index: np.ndarray, turn: np.ndarray, number: int, key: int
    ) -> None:
        """Fill in the rows of ``found``: scenes with this number of shapes; turn: which cards they get."""
        styles, grounds, shades = len(self.styles), len(self.grounds), len(SHADES)
        if number == 1:
            pack = (len(self.pairs), len(self.sizes), len(PLACES), styles, grounds, shades)
            pair, size, place, style, ground, shade = deal(turn, pack, key, 1)
            slots = [(pair, self.sizes[size], style)]
            places = place[:, None]
        else:  # all combinations are too many for one pack: one for the scene, one for each shape
            spots = np.array(_SPOTS[number])
            spot, ground, shade = deal(turn, (len(spots), grounds, shades), key, number, 0)
            pack = (len(self.pairs), len(self.crowded_sizes), styles)
            slots = [deal(turn, pack, key, number, 1 + slot) for slot in range(number)]
            slots = [(pair, self.crowded_sizes[size], style) for pair, size, style in slots]
            places = spots[spot]
        found["ground"][rows], found["shade"][rows] = self.grounds[ground], shade
        for slot, (pair, size, style) in enumerate(slots):
            place = places[:, slot]
            colour, kind = self.pairs[pair].T
            chances = [uniform(key, index, slot, n) for n in range(3)]
            x, y, radius = settle(place, size, self.size, chances, crowded=number > 1)
            angle = tilt(kind, bits(key, index, slot, 3))
            values = {"kind": kind, "colour": colour, "size": size, "place": place}
            values |= {"style": self.styles[style], "x": x, "y": y, "radius": radius, "angle": angle}
            for name, value in values.items():
                found[name][rows, slot] = value

    def batch(self, indices: Iterable[int]) -> dict:
        """Scenes by number.

        "image": (B, 3, H, W) float32 in [-1, 1]; "label": (B,) int64, the kind of the first shape; "mask":
        (B, H, W) int64, 0 on the ground and 1 + kind inside a silhouette; "caption": list of B sentences;
        "factors": dict of tensors as `factors` describes them. Raises UserError for a number of no item.
        """
        index = self.numbers(indices)
        found = self.factors(index)
        pixels, mask = self._draw(index, found)
        return {
            "image": to_tensor(pixels),
            "label": torch.from_numpy(found["kind"][:, 0].copy()),
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "caption": describe(found, self.detail),
            "factors": {name: torch.from_numpy(value) for name, value in found.items()},
        }

    def _draw(self, index: np.ndarray, found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.size
        pixels = np.empty((len(index), 3, height, width), np.uint8)
        mask = np.zeros((len(index), height, width), np.uint8)
        for piece in pieces(len(index), height * width):
            key = self._key(index[piece])
            canvas = grounds(found["ground"][piece], found["shade"][piece], key, self.size)
            for slot in range(int(self.shapes.max())):
                row = np.flatnonzero(found["kind"][piece, slot] >= 0)
                part = {name: found[name][piece][row, slot] for name in Figures._fields}
                paint(canvas, mask[piece], row, figures(part, self.size))
            pixels[piece] = levels(canvas)
        return pixels, mask


def figures(part: dict[str, np.ndarray], size: tuple[int, int]) -> Figures:
    """Factors of N shapes, lengths as fractions of the canvas -> what `paint` draws, lengths in pixels."""
    height, width = size
    return Figures(
        **{name: part[name] for name in ("kind", "colour", "style", "angle")},
        x=part["x"] * np.float32(width),
        y=part["y"] * np.float32(height),
        radius=part["radius"] * np.float32(min(size)),
    )


def settle(
    place: np.ndarray, size: np.ndarray, canvas: tuple[int, int], random: Sequence[np.ndarray], crowded: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where in its place a shape stands: x, y, radius as fractions, from three random numbers in [0, 1) each.

    The radius varies by 4 %. A lone shape's centre leaves its place's middle by up to SPREAD in each
    direction; in a crowded scene centres only move outwards, so that shapes in places that are not neighbours
    never overlap. The centre is pushed inwards where the shape would leave the canvas.
    """
    radius = np.array(RADII, np.float32)[size] * (np.float32(0.96) + np.float32(0.08) * random[2])
    centre = []
    for which, extent, chance in ((place % 3, canvas[1], random[0]), (place // 3, canvas[0], random[1])):
        shift = 2 * chance - 1
        if crowded:
            shift = np.where(which == 1, shift, (which - 1) * (0.4 + 0.6 * chance)).astype(np.float32)
        middle = np.array(MIDDLES, np.float32)[which] + np.float32(SPREAD) * shift
        margin = (radius * np.float32(REACH * min(canvas)) + np.float32(0.5)) / np.float32(extent)
        centre.append(np.minimum(np.maximum(middle, margin), 1 - margin))
    return centre[0], centre[1], radius


def tilt(kind: np.ndarray, random: np.ndarray) -> np.ndarray:
    """A random angle of those that suit each kind."""
    lean = np.array([_LEAN.get(name, -1) for name in KINDS])[kind]
    number = np.where(lean < 0, 64, 2 * lean + 1)
    step = (random % number.astype(np.uint64)).astype(np.int64)
    return np.where(lean < 0, step, step - lean) * _STEP % TURN


def describe(found: dict[str, np.ndarray], detail: str, motion: np.ndarray | None = None) -> list[str]:
    """One caption for each scene of a batch of factors."""
    names = ("kind", "colour", "size", "place", "style", "ground")
    columns = zip(*(found[name].tolist() for name in names), strict=True)
    motions = [None] * len(found["kind"]) if motion is None else motion.tolist()
    return [
        caption(dict(zip(names, values, strict=True)), detail, one)
        for values, one in zip(columns, motions, strict=True)
    ]

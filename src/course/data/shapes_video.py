"""The shapes world in motion: clips of one figure that drifts, bounces, orbits, grows, turns or hides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from course import UserError
from course.data.base import DataSet, check_count, check_seed, check_size, check_split
from course.data.captions import GROUNDS, KINDS, MOTIONS, PLACES, SIZES, STYLES, motion_name
from course.data.counter import bits, deal, uniform
from course.data.drawing import REACHES, SHADES, TURN, cosine, grounds, paint, post, sine
from course.data.shapes import (
    COUNTS,
    SLOTS,
    SPLITS,
    check_detail,
    chosen,
    describe,
    figures,
    levels,
    pairs,
    pieces,
    settle,
    tilt,
    to_tensor,
)

# What a clip may start with, so that its motion shows: everything, unless named here.
_SIZES = {
    "grow": ("small", "medium"),
    "shrink": ("medium", "large"),
    "rotate": ("medium", "large"),
    "occlude": ("small",),  # it needs room on both sides of a post wide enough to hide it
}
_START = {  # the side that a path towards a direction begins at
    "right": ("top left", "left", "bottom left"),
    "left": ("top right", "right", "bottom right"),
    "down": ("top left", "top", "top right"),
    "up": ("bottom left", "bottom", "bottom right"),
    "clockwise": ("top", "left", "right", "bottom"),
    "counterclockwise": ("top", "left", "right", "bottom"),
}
_FORTH = 1.7  # a bounce's path, in distances from its start to the wall: there, and 0.7 of the way back
_ORBIT = 3 * TURN // 4
_ROTATE = round(TURN * 100 / 360)  # 100 degrees: no symmetry of a square, a star or a triangle
_GROWTH = 1.5
_HIDE = 0.03  # of the width: by how much a post is wider than its figure, on each side


class ShapesVideo(DataSet):
    """Clips of one moving shape; the options are those of `Shapes`, and frames, the number of pictures (1 to
    64).

    A clip shows its whole motion in any number of frames: frame k stands at k / (frames - 1) of the path. The
    classes are the names of MOTIONS, all equally often; within each, all combinations of the other factors
    that suit it are. Shapes begin where their path needs it (drifting to the right begins at the left),
    circles never rotate, growing shapes begin small or medium, shrinking ones medium or large.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        size: int | tuple[int, int] = 32,
        seed: int = 0,
        count: int | None = None,
        frames: int = 16,
        styles: Sequence[str] = STYLES[:4],
        grounds: Sequence[str] = GROUNDS,
        detail: str = "terse",
    ) -> None:
        name = "shapes_video"
        check_split(name, split, SPLITS)
        count = check_count(name, count, COUNTS[split])
        classes = [motion_name(motion) for motion in range(len(MOTIONS))]
        super().__init__(
            name, split, channels=3, size=check_size(name, size, 16, 128), count=count, classes=classes
        )
        self.seed = check_seed(name, seed)
        if type(frames) is not int or not 1 <= frames <= 64:
            raise UserError(f"{name}: frames must be a whole number from 1 to 64, got {frames!r}")
        self.frames = frames
        self.styles = chosen(name, "styles", styles, STYLES)
        self.grounds = chosen(name, "grounds", grounds, GROUNDS)
        self.detail = check_detail(name, detail)
        self._packs = [self._pack(verb, direction) for verb, direction in MOTIONS]

    def _pack(self, verb: str, direction: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The (colour, kind) pairs, sizes and places that suit a motion."""
        allowed = pairs(self.split)
        if verb == "rotate":
            allowed = allowed[allowed[:, 1] != KINDS.index("circle")]
        sizes = [SIZES.index(size) for size in _SIZES.get(verb, SIZES)]
        starts = PLACES if verb == "rotate" else _START.get(direction, PLACES)
        return allowed, np.array(sizes), np.array([PLACES.index(place) for place in starts])

    def _key(self, *counters: np.ndarray) -> np.ndarray:
        return bits(self.seed % 2**64, SPLITS.index(self.split), 1, *counters)

    def scenes(self, indices: Iterable[int]) -> tuple[np.ndarray, dict, dict]:
        """Motions (B,), factors of the first frames as `Shapes.factors` has them, and the paths.

        The paths: x, y (fractions of width and height), radius (fraction of the shorter side) and angle of
        each frame, (B, T) each, and post (B,), half the width of the post in front as a fraction of the
        shorter side.
        """
        index = self.numbers(indices)
        batch = len(index)
        key = int(self._key()[0])
        turn, (motion,) = index // len(MOTIONS), deal(index, (len(MOTIONS),), key, 0)
        scene = {name: np.empty(batch, np.int64) for name in ("colour", "kind", "size", "place", "style")}
        found = {name: np.empty(batch, np.int64) for name in ("ground", "shade")}
        for code in range(len(MOTIONS)):
            rows = np.flatnonzero(motion == code)
            allowed, sizes, places = self._packs[code]
            pack = (len(allowed), len(sizes), len(places), len(self.styles), len(self.grounds), len(SHADES))
            pair, size, place, style, ground, shade = deal(turn[rows], pack, key, 1, code)
            scene["colour"][rows], scene["kind"][rows] = allowed[pair].T
            scene["size"][rows], scene["place"][rows] = sizes[size], places[place]
            scene["style"][rows] = self.styles[style]
            found["ground"][rows], found["shade"][rows] = self.grounds[ground], shade

        chances = [uniform(key, index, 0, n) for n in range(3)]
        x, y, radius = settle(scene["place"], scene["size"], self.size, chances, crowded=False)
        start = {"x": x, "y": y, "radius": radius, "angle": tilt(scene["kind"], bits(key, index, 0, 3))}
        path = paths(motion, scene["kind"], start, self.frames, self.size)
        scene |= {name: path[name][:, 0] for name in start}
        for name, value in scene.items():  # into the layout of stills: one shape and two empty slots
            found[name] = np.full((batch, SLOTS), -1, value.dtype)
            found[name][:, 0] = value
        return motion, found, path

    def batch(self, indices: Iterable[int]) -> dict:
        """Clips by number.

        "video": (B, T, 3, H, W) float32 in [-1, 1]; "motion" and "label": (B,) int64, index into MOTIONS and
        classes; "mask": (B, T, H, W) int64, 0 on the ground and the post, 1 + kind on the visible part of the
        silhouette; "caption": list of B sentences; "factors": dict of tensors, those of the first frame, in
        the layout of `Shapes.factors`. Raises UserError for a number of no item.
        """
        index = self.numbers(indices)
        motion, found, path = self.scenes(index)
        frames, (height, width) = self.frames, self.size
        pixels = np.empty((len(index), frames, 3, height, width), np.uint8)
        mask = np.zeros((len(index), frames, height, width), np.uint8)
        for piece in pieces(len(index), frames * height * width):
            key = self._key(index[piece])
            canvas = grounds(found["ground"][piece], found["shade"][piece], key, self.size)
            canvas = np.repeat(canvas, frames, axis=0)  # the frames of one clip behind each other
            seen = mask[piece].reshape(-1, height, width)  # a view: what is drawn arrives in mask
            part = {name: np.repeat(found[name][piece, 0], frames) for name in ("kind", "colour", "style")}
            part |= {name: path[name][piece].reshape(-1) for name in ("x", "y", "radius", "angle")}
            paint(canvas, seen, np.arange(len(canvas)), figures(part, self.size))

            half = np.repeat(path["post"][piece], frames) * np.float32(min(self.size))
            hidden = np.flatnonzero(half > 0)
            post(canvas, seen, hidden, np.full(len(hidden), 0.5 * width, np.float32), half[hidden])
            pixels[piece] = levels(canvas).reshape(-1, frames, 3, height, width)
        return {
            "video": to_tensor(pixels),
            "label": torch.from_numpy(motion.copy()),
            "motion": torch.from_numpy(motion),
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "caption": describe(found, self.detail, motion),
            "factors": {name: torch.from_numpy(value) for name, value in found.items()},
        }


def paths(
    motion: np.ndarray, kind: np.ndarray, start: dict[str, np.ndarray], frames: int, canvas: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Where N figures are in each of T frames, in the units of `Shapes.factors`, and their posts' half width.

    motion, kind: (N,) indices; start: x, y, radius, angle, (N,) each, as `settle` and `tilt` give them;
    canvas: (H, W). Returns x, y, radius, angle (N, T) and post (N,).
    """
    u = (np.arange(frames, dtype=np.float32) / np.float32(max(frames - 1, 1)))[None, :]
    path = {name: np.repeat(value[:, None], frames, axis=1) for name, value in start.items()}
    path["post"] = np.zeros(len(motion), np.float32)
    reach = REACHES[kind] * start["radius"]
    extents = {"x": canvas[1], "y": canvas[0]}
    for code, (verb, direction) in enumerate(MOTIONS):
        rows = np.flatnonzero(motion == code)
        sign = -1 if direction in ("left", "up", "counterclockwise") else 1
        axis = "y" if direction in ("up", "down") else "x"
        if verb in ("drift", "bounce", "occlude"):
            margin = _margin(reach[rows], canvas, extents[axis])
            way = 1 - start[axis][rows] if sign < 0 else start[axis][rows]  # from the wall behind the start
            if verb == "drift":
                way = way[:, None] + u * (1 - 2 * way)[:, None]
            elif verb == "bounce":
                wall = (1 - margin)[:, None]
                way = wall - np.abs(wall - way[:, None] - u * (_FORTH * (wall - way[:, None])))
            else:
                ratio = np.float32(min(canvas) / canvas[1])
                path["post"][rows] = reach[rows] + np.float32(_HIDE) / ratio
                clear = 0.5 - np.float32(_HIDE) - 2 * reach[rows] * ratio  # where it just touches the post
                way = np.maximum(margin, 0.5 * (margin + clear))
                way = way[:, None] + u * (1 - 2 * way)[:, None]
            path[axis][rows] = 1 - way if sign < 0 else way
        elif verb == "orbit":
            _orbit(path, rows, sign, u, reach, canvas)
        elif verb in ("grow", "shrink"):
            final = np.float32(_GROWTH if verb == "grow" else 1 / _GROWTH)
            path["radius"][rows] *= 1 + u * (final - 1)
            room = reach[rows] * np.maximum(final, np.float32(1))
            for name, extent in extents.items():  # it needs room where it is largest
                margin = _margin(room, canvas, extent)[:, None]
                path[name][rows] = np.minimum(np.maximum(path[name][rows], margin), 1 - margin)
        elif verb == "rotate":
            path["angle"][rows] += sign * np.floor(u * _ROTATE + 0.5).astype(np.int64)
    path["angle"] %= TURN
    return path


def _orbit(
    path: dict, rows: np.ndarray, sign: int, u: np.ndarray, reach: np.ndarray, canvas: tuple[int, int]
) -> None:
    """Three quarters of a turn around the canvas's middle: a circle in fractions, or as round as fits."""
    dx, dy = path["x"][rows] - np.float32(0.5), path["y"][rows] - np.float32(0.5)
    angle = sign * np.floor(u * _ORBIT + 0.5).astype(np.int64)
    c, s = cosine(angle), sine(angle)
    away = np.sqrt(dx * dx + dy * dy)
    for name, turned, extent in (("x", c * dx - s * dy, canvas[1]), ("y", s * dx + c * dy, canvas[0])):
        most = 0.5 - _margin(reach[rows], canvas, extent)[:, None]
        path[name][rows] = 0.5 + turned * np.minimum(most / away, 1)


def _margin(reach: np.ndarray, canvas: tuple[int, int], extent: int) -> np.ndarray:
    """How near a figure's centre may come to a wall, as a fraction of the extent: reach and half a pixel."""
    return (reach * np.float32(min(canvas)) + np.float32(0.5)) / np.float32(extent)

"""Drawing: many figures at once, as arrays, with smooth edges.

A figure is described by its signed distance: how many pixels a point lies outside (positive) or inside
(negative) its outline. Half a pixel of transition around zero gives a smooth edge, and stripes of the same
distance give outlines and rings. Coordinates are in pixels, x to the right, y downwards; pixel (i, j) has its
middle at (j + 0.5, i + 0.5).

Only operations that IEEE 754 rounds in one way are used (+ - * / sqrt, minimum, maximum, floor, comparison,
on float32; sines come from a rounded table), so that a picture has the same bytes on every machine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from course.data.captions import COLOURS, GROUNDS, KINDS, STYLES
from course.data.counter import bits, uniform

TURN = 4096  # angles are whole numbers, this many to a full turn; positive turns clockwise on the screen
# How far from its centre each of KINDS goes, in radii, whatever its angle; and the largest of these.
REACHES = np.array([1.0, 1.16, 1.25, 1.25, 1.21, 1.21], np.float32)
REACH = 1.25

# Chosen to differ in lightness as well as in hue, so that neighbours stay apart for colour-blind eyes.
RGB = {
    "red": (220, 28, 36),
    "orange": (250, 130, 0),
    "yellow": (250, 215, 0),
    "green": (30, 145, 50),
    "cyan": (40, 200, 220),
    "blue": (35, 70, 215),
    "purple": (125, 25, 150),
    "pink": (255, 110, 185),
}
SHADES = ((238, 235, 228), (206, 210, 216), (176, 172, 165))  # of the ground: neutral, so never near a colour
POST = (88, 90, 96)

_PALETTE = np.array([RGB[name] for name in COLOURS], np.float32)
_SHADES = np.array(SHADES, np.float32)
# A rounded table, because the last bit of a library's sine differs between machines.
_COS = np.array([round(math.cos(2 * math.pi * k / TURN) * 2**14) / 2**14 for k in range(TURN)], np.float32)


def cosine(angle: np.ndarray) -> np.ndarray:
    """Cosine of whole angles (TURN to a full turn), float32, in steps of 2^-14."""
    return _COS[np.asarray(angle) % TURN]


def sine(angle: np.ndarray) -> np.ndarray:
    """Sine of whole angles (TURN to a full turn), float32, in steps of 2^-14."""
    return _COS[(np.asarray(angle) - TURN // 4) % TURN]


class Figures(NamedTuple):
    """N figures as arrays (N,): kind, colour, style (indices), x, y, radius (pixels, float32), angle."""

    kind: np.ndarray
    colour: np.ndarray
    style: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


# --- signed distances; (u, v) are a figure's own coordinates, v downwards; r is the radius that sizes mean


def circle(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """A disc of radius r."""
    return np.sqrt(u * u + v * v) - r


def square(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Half a side is 0.82 r, so that it looks as large as the circle."""
    return np.maximum(np.abs(u), np.abs(v)) - 0.82 * r


def triangle(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Equal sides, a tip upwards: three half-planes, each half a circumradius from the centre."""
    return np.maximum(v, 0.8660254 * np.abs(u) - 0.5 * v) - 0.5 * REACH * r


def star(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Five tips, one upwards, and notches half as far from the centre.

    Measured along and across the direction of the nearest tip, all ten edges are one line: from the tip
    (1, 0) to the notch (cos 36, sin 36) / 2, in units of the tip's distance.
    """
    u = np.abs(u)
    along = np.maximum(np.maximum(-v, 0.9510565 * u - 0.3090170 * v), 0.5877853 * u + 0.8090170 * v)
    across = np.sqrt(np.maximum(u * u + v * v - along * along, 0.0))
    return 0.4425673 * along + 0.8967363 * across - (0.4425673 * REACH) * r


def cross(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Two bars at a right angle."""
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 1.13 * r, np.minimum(u, v) - 0.42 * r)


def heart(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """A square standing on its tip, of half diagonal h, with a half disc on each upper side."""
    h = 0.95 * r
    u, v = np.abs(u), 1.25 * h - v  # v from the tip upwards
    disc = np.sqrt(np.square(u - 0.5 * h) + np.square(v - 1.5 * h)) - 0.7071068 * h
    notch = np.sqrt(u * u + np.square(v - 2.0 * h))
    return np.where(u + v > 2.0 * h, disc, np.maximum(0.7071068 * (u - v), -notch))


_DISTANCES = (circle, square, triangle, star, cross, heart)
assert tuple(f.__name__ for f in _DISTANCES) == KINDS


def cover(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies inside, from the signed distance of its middle: a ramp one pixel wide."""
    return np.minimum(np.maximum(0.5 - distance, 0.0), 1.0)


def stripes(s: np.ndarray, period: float, width: float) -> np.ndarray:
    """Smooth stripes across the coordinate s: 1 within width / 2 of period / 2 + any number of periods."""
    s = s / period
    return cover(np.abs(s - np.floor(s) - 0.5) * period - 0.5 * width)


# --- styles; lengths are fractions of the canvas's shorter side, so that a scene looks the same at any size

LINE = 0.043  # width of an outline
RIM = 0.025  # of plain colour around a pattern, which keeps small silhouettes whole
HATCH, DOTS, RINGS = 0.125, 0.14, 0.1  # periods
DARK = 0.3  # what is left of the colour in the dark tone of gradients and hatches
PALE = 0.2  # and in the pale tone of dots and rings, which is mixed with white


def _fill(
    style: str, distance: np.ndarray, u: np.ndarray, v: np.ndarray, r: np.ndarray, unit: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """How much ink each pixel gets, and how far the ink is from the colour (0) to its second tone (1)."""
    inside = cover(distance)
    if style == "filled":
        return inside, None
    if style == "outline":
        return inside - cover(distance + LINE * unit), None
    if style == "gradient":
        return inside, np.minimum(np.maximum(0.5 + 0.55 * v / r, 0.0), 1.0)
    if style == "hatched":
        period = HATCH * unit
        return inside, stripes(0.7071068 * (u + v), period, 0.5 * period) * cover(distance + RIM * unit)
    if style == "dotted":
        period = DOTS * unit
        u, v = u / period, v / period
        u, v = u - np.floor(u + 0.5), v - np.floor(v + 0.5)
        return inside, cover((np.sqrt(u * u + v * v) - 0.3) * period) * cover(distance + RIM * unit)
    period = RINGS * unit
    return inside, stripes(distance, period, 0.5 * period)


def _second(style: str, colour: np.ndarray) -> np.ndarray:
    return PALE * colour + (1 - PALE) * 255.0 if style in ("dotted", "rings") else DARK * colour


def paint(canvas: np.ndarray, mask: np.ndarray, row: np.ndarray, figures: Figures) -> None:
    """Draw N figures, at most one to a canvas, over what is there.

    canvas: (B, 3, H, W) float32, 0 to 255; mask: (B, H, W) uint8, set to 1 + kind inside the silhouettes;
    both are changed. row: (N,) which canvas each figure goes to.
    """
    height, width = canvas.shape[2:]
    group = figures.kind * len(STYLES) + figures.style
    for code in np.unique(group):
        chosen = np.flatnonzero(group == code)
        kind, style = divmod(int(code), len(STYLES))
        colour, x, y, radius, angle = (
            getattr(figures, name)[chosen] for name in ("colour", "x", "y", "radius", "angle")
        )
        dx = (np.arange(width, dtype=np.float32) + 0.5) - x[:, None]
        dy = (np.arange(height, dtype=np.float32) + 0.5) - y[:, None]
        c, s = cosine(angle)[:, None], sine(angle)[:, None]
        u = (c * dx)[:, None, :] + (s * dy)[:, :, None]
        v = (c * dy)[:, :, None] - (s * dx)[:, None, :]
        r = radius[:, None, None]
        distance = _DISTANCES[kind](u, v, r)
        amount, tone = _fill(STYLES[style], distance, u, v, r, min(height, width))

        rows = row[chosen]
        below = canvas[rows]
        first = _PALETTE[colour]
        for channel in range(3):
            ink = first[:, channel, None, None]
            if tone is not None:
                ink = ink + tone * (_second(STYLES[style], ink) - ink)
            below[:, channel] += amount * (ink - below[:, channel])
        canvas[rows] = below
        silhouette = mask[rows]
        silhouette[distance < 0] = 1 + kind
        mask[rows] = silhouette


def post(canvas: np.ndarray, mask: np.ndarray, row: np.ndarray, x: np.ndarray, half: np.ndarray) -> None:
    """Draw upright grey posts over canvases ``row``: middle x and half width, (N,) each, in pixels."""
    distance = np.abs(np.arange(canvas.shape[3], dtype=np.float32) + 0.5 - x[:, None]) - half[:, None]
    amount = cover(distance)[:, None, None, :]
    below = canvas[row]
    canvas[row] = below + amount * (np.array(POST, np.float32)[:, None, None] - below)
    mask[row] = np.where(distance[:, None, :] < 0, 0, mask[row])


# --- grounds

CONTRAST = 13.0  # how far a texture leaves the ground's shade, of 255
WAVE = 0.25  # period of stripes and checks, of the shorter side
FLECK = 0.125  # side of the cells that have one fleck each


def grounds(ground: np.ndarray, shade: np.ndarray, key: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Empty canvases (N, 3, H, W) float32, 0 to 255.

    ground: (N,) indices into GROUNDS; shade: (N,) indices into SHADES; key: (N,) uint64, where the textures
    get their phases and flecks from; size: (H, W).
    """
    height, width = size
    unit = min(size)
    canvas = np.empty((len(ground), 3, height, width), np.float32)
    canvas[:] = _SHADES[shade][:, :, None, None]
    x = (np.arange(width, dtype=np.float32) + 0.5) / unit
    y = (np.arange(height, dtype=np.float32) + 0.5) / unit
    for code in range(1, len(GROUNDS)):
        rows = np.flatnonzero(ground == code)
        if len(rows):
            canvas[rows] += CONTRAST * _TEXTURES[code - 1](x, y, key[rows], unit)[:, None]
    return canvas


def _wave(at: np.ndarray, phase: np.ndarray, unit: int) -> np.ndarray:
    """(N, length): stripes between -1 and 1 across one axis."""
    period = WAVE * unit
    return 2 * stripes((at / WAVE + phase[:, None]) * period, period, 0.5 * period) - 1


def _stripes(x: np.ndarray, y: np.ndarray, key: np.ndarray, unit: int) -> np.ndarray:
    return np.repeat(_wave(x, uniform(key, 0), unit)[:, None, :], len(y), axis=1)


def _checker(x: np.ndarray, y: np.ndarray, key: np.ndarray, unit: int) -> np.ndarray:
    return _wave(y, uniform(key, 1), unit)[:, :, None] * _wave(x, uniform(key, 0), unit)[:, None, :]


def _speckle(x: np.ndarray, y: np.ndarray, key: np.ndarray, unit: int) -> np.ndarray:
    # one fleck in each cell of a grid, light or dark, at a place of its own
    x, y = x / FLECK, y / FLECK
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    cells = np.arange(row[-1] + 1)[:, None] * 4096 + np.arange(column[-1] + 1)
    random = bits(key[:, None, None], 2, cells)  # (N, rows, columns)
    u, v = (((random >> np.uint64(shift)) & np.uint64(255)).astype(np.float32) / 255 for shift in (8, 16))
    sign = (random & np.uint64(1)).astype(np.float32) * 2 - 1
    here = (slice(None), row[:, None], column)  # from cells to pixels
    dx = (x - column.astype(np.float32)) - (0.3 + 0.4 * u)[here]
    dy = (y - row.astype(np.float32))[:, None] - (0.3 + 0.4 * v)[here]
    spot = cover((np.sqrt(dx * dx + dy * dy) - 0.32) * (FLECK * unit))
    return 1.3 * spot * sign[here]  # stronger than the other textures, since it covers less


_TEXTURES = (_stripes, _checker, _speckle)

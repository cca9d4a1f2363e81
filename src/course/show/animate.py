"""Looping animations that fit into a notebook: animated PNG files of at most 300 kB.

Why PNG: notebooks, Colab, the built book and GitHub show it like any other PNG, nbval does not compare its
bytes across machines, and on enlarged pixels it needs about half of what GIF needs and less than lossy WebP.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from course import UserError
from course.show import style
from course.show.grids import mosaic, to_pixels
from course.show.picture import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

LIMIT = 300_000  # bytes
COLOURS = (256, 128, 64, 32)  # tried in this order until the file fits
LEAST = 6  # frames that still make an animation
ACROSS = 560  # pixels that a grid of pictures is enlarged to, about
GAP = 4  # pixels between pictures


def animation(
    frames: Iterable[Tensor] | Iterable[Figure],
    *,
    fps: float = 10,
    columns: int = 8,
    labels: Sequence[object] | None = None,
    hold: float = 1.0,
    limit: int = LIMIT,
) -> Picture:
    """A looping animation, made small enough for a notebook; show it with ``show.figure(..., alt=...)``.

    If the file is too large, colours are taken away first (down to 32), then every second frame (playing at
    half the rate, so that the pace stays; the first and the last frame remain).  Coloured noise takes most
    room: 30 frames of 8 pictures of 32 x 32 fit.

    Args:
        frames: for each moment a batch of pictures (B, C, H, W) in [-1, 1], drawn as a grid; or a matplotlib
            figure, all of one size.  A clip (B, T, C, H, W) is given as ``clip.unbind(1)``.
        fps: frames a second.
        columns: pictures in a row of the grid.
        labels: a short text below each frame.
        hold: seconds that the last frame stays.
        limit: bytes the file may have.

    Raises:
        UserError: fewer than two frames, frames of different sizes, or no way to fit into ``limit``.
    """
    drawn = [_draw(frame, columns) for frame in frames]
    if len(drawn) < 2:
        raise UserError(f"an animation needs two frames or more, not {len(drawn)}")
    if len({frame.shape for frame in drawn}) != 1:
        raise UserError("all frames of an animation must be of one size")
    if labels is not None:
        if len(labels) != len(drawn):
            raise UserError(f"labels holds {len(labels)} texts for {len(drawn)} frames")
        lines = [_line(label, drawn[0].shape[1]) for label in labels]
        drawn = [np.concatenate(pair) for pair in zip(drawn, lines, strict=True)]

    width, count = drawn[0].shape[1], len(drawn)
    while True:
        for colours in COLOURS:
            data = _encode(drawn, colours, fps, hold)
            if len(data) <= limit:
                return Picture(data, width)
        if len(drawn) // 2 + 1 < LEAST:
            break
        drawn = drawn[:-1:2] + drawn[-1:]
        fps /= 2
    raise UserError(
        f"{count} frames of {width} x {drawn[0].shape[0]} pixels do not fit into {limit / 1000:g} kB: "
        "show fewer pictures or fewer frames"
    )


def _draw(frame: Tensor | Figure, columns: int) -> np.ndarray:
    """One frame as uint8 (height, width, 3)."""
    if hasattr(frame, "savefig"):
        from PIL import Image

        buffer = io.BytesIO()
        with style.context():
            frame.savefig(buffer, format="png", dpi=style.CSS_DPI)
        return np.asarray(Image.open(buffer).convert("RGB"))
    pixels = to_pixels(frame)
    columns = min(columns, len(pixels))
    factor = max(1, (ACROSS // columns - GAP) // pixels.shape[2])
    factor = min(factor, max(1, 150 // pixels.shape[2]))  # few pictures are not blown up without end
    bands = [pixels[start : start + columns] for start in range(0, len(pixels), columns)]
    return mosaic(bands, columns, factor, gap=GAP, between=GAP, margin=GAP)


def _line(label: object, width: int) -> np.ndarray:
    """A line of text as uint8 (26, width, 3), centred."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context():
        figure = Figure(figsize=(width / style.CSS_DPI, 0.26), dpi=style.CSS_DPI, layout="none")
        figure.text(0.5, 0.5, str(label), ha="center", va="center", fontsize=11)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def _bins(pixels: np.ndarray) -> np.ndarray:
    """Number of the colour's bin, 0 to 32767, for pixels (..., 3) uint8: 32 steps of each primary."""
    red, green, blue = np.moveaxis(pixels >> 3, -1, 0).astype(np.int32)
    return (red * 32 + green) * 32 + blue


def _palette(frames: list[np.ndarray], colours: int) -> tuple[np.ndarray, np.ndarray]:
    """One palette for all frames, so that nothing flickers: (colours, 3) uint8, and for each bin its entry.

    Each colour counts by the root of its number.  Counted one by one, a large grey ground would leave no room
    for the few red pixels that the picture is about.
    """
    from PIL import Image

    # The last frame stays longest and is often what the others lead to: it counts as much as all of them.
    weighted = [*frames, *[frames[-1]] * len(frames)]
    pixels = np.concatenate([frame[::2, ::2].reshape(-1, 3) for frame in weighted])
    bins = _bins(pixels)
    counts = np.bincount(bins, minlength=32**3)
    sums = np.stack(
        [np.bincount(bins, weights=pixels[:, axis], minlength=32**3) for axis in range(3)], axis=1
    )
    means = sums / np.maximum(counts, 1)[:, None]
    seen = np.rint(means).astype(np.uint8).repeat(np.sqrt(counts).astype(int), axis=0)
    chosen = Image.fromarray(seen[None]).quantize(colours - 1, Image.Quantize.MEDIANCUT)
    paper = [int(style.PAPER[at : at + 2], 16) for at in (1, 3, 5)]
    palette = np.array([*paper, *(chosen.getpalette() or [])], np.uint8).reshape(-1, 3)

    # Bins that the sample missed are given by their middle.
    middles = (np.stack(np.unravel_index(np.arange(32**3), (32, 32, 32)), axis=1) * 8 + 4).astype(float)
    wanted = np.where(counts[:, None] > 0, means, middles).astype(np.float32)
    entries = palette.astype(np.float32)
    nearest = ((entries**2).sum(axis=1) - 2 * wanted @ entries.T).argmin(axis=1)
    return palette, nearest.astype(np.uint8)


def _encode(frames: list[np.ndarray], colours: int, fps: float, hold: float) -> bytes:
    """Animated PNG of the frames in so many colours."""
    from PIL import Image

    palette, entry = _palette(frames, colours)
    images = [Image.fromarray(entry[_bins(frame)]) for frame in frames]
    for image in images:
        image.putpalette(palette.tobytes())
    durations = [1000 / fps] * (len(images) - 1) + [1000 / fps + 1000 * hold]
    buffer = io.BytesIO()
    images[0].save(buffer, "PNG", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()

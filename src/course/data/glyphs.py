"""Digits like MNIST's without a download: the fonts that come with matplotlib, deformed at random.

Each digit of each font becomes a signed distance field once: positive inside the ink, negative outside.
Adding a constant to it makes the stroke thicker or thinner, and a picture is the field looked up at bent
coordinates. All arithmetic on items is elementwise + - * / in NumPy, so an item does not depend on the batch
that it is drawn in.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from course.data.base import DataSet, check_count, check_seed, check_size, check_split
from course.data.counter import uniform

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
)
DOTTED = ("DejaVuSansMono", "DejaVuSansMono-Bold")  # a mark inside their zero makes it look like an eight

CELLS = 64  # a field is CELLS x CELLS
EXTENT = 1.6  # ... and covers this many digit heights
FINER = 4  # fields are measured on a grid this much finer

KNOTS = 4  # the elastic field is a cubic B-spline on KNOTS x KNOTS control points
HEIGHT = 20 / 28  # of the digit, as a part of the picture's shorter side
TAN_HALF = 0.13  # tangent of half the largest rotation: 14.8 degrees
SHEAR = 0.2
SHIFT = 1.5 / 28  # of the shorter side
ELASTIC = 0.08  # largest control displacement, in digit heights
STROKE = (0.048, 0.08)  # half the width of the stroke in digit heights: 1.9 to 3.2 pixels wide in 28
THINNEST = 0.75  # hairlines vanish when more than this part of a bold stroke is taken away

DRAWS = 8 + 2 * KNOTS * KNOTS


@lru_cache(maxsize=1)
def fields() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """The distance fields of all digits.

    Returns (fields (N, CELLS, CELLS) float32 in digit heights, half (N,) mean half stroke width in digit
    heights, choices: for each digit 0-9 the numbers of its fields).
    """
    import matplotlib
    from PIL import ImageFont
    from scipy.ndimage import distance_transform_edt

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fine = CELLS * FINER
    unit = fine / EXTENT  # the digit's height in fine pixels
    stack, half, choices = [], [], [[] for _ in range(10)]
    for name in FONTS:
        path = str(folder / f"{name}.ttf")
        probe = ImageFont.truetype(path, 256, layout_engine=ImageFont.Layout.BASIC)
        for digit in range(10):
            if digit == 0 and name in DOTTED:
                continue
            _, top, _, bottom = probe.getbbox(str(digit))
            points = round(256 * unit / (bottom - top))
            font = ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)
            ink = _ink(font, str(digit), fine)
            inside, outside = distance_transform_edt(ink), distance_transform_edt(~ink)
            field = (inside - outside - np.where(ink, 0.5, -0.5)) / unit  # the edge lies between two pixels
            # a strip of width w and length l has area w l and edge 2 l
            edge = (np.abs(field) * unit < 1).sum() / 2
            half.append(ink.sum() / edge / unit)
            choices[digit].append(len(stack))
            stack.append(field.reshape(CELLS, FINER, CELLS, FINER).mean((1, 3)))
    return (
        np.stack(stack).astype(np.float32),
        np.array(half),
        tuple(np.array(each) for each in choices),
    )


def _ink(font, text: str, side: int) -> np.ndarray:
    """The text, centred on its ink in a side x side picture -> (side, side) bool."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (side, side))
    left, top, right, bottom = font.getbbox(text)
    corner = ((side - left - right) // 2, (side - top - bottom) // 2)
    ImageDraw.Draw(picture).text(corner, text, fill=255, font=font)
    return np.asarray(picture) > 127


class Glyphs(DataSet):
    """Digits 0-9 from matplotlib's fonts, grey: ink 1 on background -1; the label is the item modulo 10.

    size: 8 to 64 pixels, a number or (H, W); 28 by default. count: 20,000 (train) or 4,000 (test) by default;
    any number is possible. Each item has its own font, stroke width, scale, rotation (at most 15 degrees),
    shear, shift and a small smooth elastic deformation, drawn from (seed, split, item).
    """

    def __init__(
        self,
        split: str = "train",
        *,
        size: int | tuple[int, int] | None = None,
        seed: int = 0,
        count: int | None = None,
    ) -> None:
        check_split("glyphs", split)
        super().__init__(
            "glyphs",
            split,
            channels=1,
            size=check_size("glyphs", 28 if size is None else size, 8, 64),
            count=check_count("glyphs", count, 20_000 if split == "train" else 4_000),
            classes=tuple("0123456789"),
        )
        self.seed = check_seed("glyphs", seed)

    def parameters(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """What items are drawn from -> (label (B,) int64, uniform numbers in [0, 1) (B, DRAWS) float64)."""
        items = self.numbers(indices)
        stream = ("train", "test").index(self.split)
        return items % 10, uniform(self.seed, stream, items[:, None], np.arange(DRAWS)).astype(np.float64)

    def batch(self, indices: Iterable[int]) -> dict[str, torch.Tensor]:
        """-> "image" (B, 1, H, W) float32 in [-1, 1] (256 levels), "label" (B,) int64."""
        labels, u = self.parameters(indices)
        height, width = self.size
        finer = max(1, -(-20 // min(self.size)))  # strokes thinner than a pixel need several samples a pixel
        ink = _draw(labels, u, height * finer, width * finer)
        ink = ink.reshape(len(labels), height, finer, width, finer)
        ink = sum(ink[:, :, i, :, j] for i in range(finer) for j in range(finer)) / np.float32(finer * finer)
        levels = np.floor(ink * np.float32(255) + np.float32(0.5))
        image = levels / np.float32(127.5) - np.float32(1)
        return {"image": torch.from_numpy(image[:, None]), "label": torch.from_numpy(labels)}


def _draw(labels: np.ndarray, u: np.ndarray, height: int, width: int) -> np.ndarray:
    """labels (B,), uniform numbers (B, DRAWS) -> coverage by ink (B, height, width) float32 in [0, 1]."""
    table, half, choices = fields()
    number = len(labels)
    counts = np.array([len(each) for each in choices])
    padded = np.array([np.resize(each, counts.max()) for each in choices])
    which = padded[labels, (u[:, 0] * counts[labels]).astype(np.int64)]
    spread = 2 * u - 1

    # thicken by `change` on every side, shrink by `grown`: the height stays and the stroke is as wanted
    wanted = STROKE[0] + (STROKE[1] - STROKE[0]) * u[:, 7]
    change = (wanted - half[which]) / (1 - 2 * wanted)
    change = np.maximum(change, (THINNEST - 1) * half[which])
    grown = 1 + 2 * change

    # the inverse map, picture -> digit: un-shift, un-rotate, un-shear, un-scale
    tan = TAN_HALF * spread[:, 1]
    # cos and sin from the half angle's tangent: NumPy's own may round differently on another machine
    cos, sin = (1 - tan * tan) / (1 + tan * tan), 2 * tan / (1 + tan * tan)
    shear = SHEAR * spread[:, 2]
    tall, wide = (1 + 0.12 * spread[:, 3]) / grown, (1 + 0.15 * spread[:, 4]) / grown
    matrix = np.stack([(cos - shear * sin) / wide, (sin + shear * cos) / wide, -sin / tall, cos / tall], 1)
    pixel = 1 / (HEIGHT * min(height, width))  # in digit heights
    shift = SHIFT / HEIGHT * spread[:, 5:7]

    ys = (np.arange(height) + 0.5 - height / 2) * pixel
    xs = (np.arange(width) + 0.5 - width / 2) * pixel
    y = (ys - shift[:, :1]).astype(np.float32)[:, :, None]
    x = (xs - shift[:, 1:]).astype(np.float32)[:, None, :]
    a, b, c, d = matrix.astype(np.float32).T[:, :, None, None]
    bend = (ELASTIC * spread[:, 8:]).astype(np.float32).reshape(number, 2, KNOTS, KNOTS)
    bend = _spline(bend, height, width)
    across = a * x + b * y + bend[0]
    down = c * x + d * y + bend[1]

    # bilinear look-up; beyond the border the field is clamped, and there is no ink
    scale = np.float32(CELLS / EXTENT)
    middle = np.float32(CELLS / 2 - 0.5)
    limit = np.float32(CELLS - 1.001)
    across = np.clip(across * scale + middle, np.float32(0), limit)
    down = np.clip(down * scale + middle, np.float32(0), limit)
    column, row = across.astype(np.int32), down.astype(np.int32)
    across -= column
    down -= row
    place = (which.astype(np.int32)[:, None, None] * CELLS + row) * CELLS + column
    flat = table.reshape(-1)
    top = flat.take(place)
    top += across * (flat.take(place + 1) - top)
    place += CELLS
    low = flat.take(place)
    low += across * (flat.take(place + 1) - low)
    top += down * (low - top)

    # the ramp is one pixel wide where the map keeps areas; sqrt is exact in IEEE arithmetic
    sharp = np.sqrt(tall * wide) / pixel
    top += change.astype(np.float32)[:, None, None]
    top *= sharp.astype(np.float32)[:, None, None]
    top += np.float32(0.5)
    return np.clip(top, np.float32(0), np.float32(1), out=top)


def _spline(control: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Control values (B, 2, KNOTS, KNOTS) -> two smooth surfaces (B, height, width): uniform cubic B-spline.

    Terms are added one by one because a matrix product may round differently for another batch size.
    """
    rows, columns = _basis(height), _basis(width)
    lines = sum(control[:, :, :, k, None] * columns[k] for k in range(KNOTS))  # (B, 2, KNOTS, width)
    return tuple(
        sum(lines[:, part, k, None, :] * rows[k][:, None] for k in range(KNOTS)) for part in range(2)
    )


@lru_cache(maxsize=16)
def _basis(length: int) -> np.ndarray:
    """Cubic B-spline weights of the control points at each pixel -> (KNOTS, length) float32."""
    place = (np.arange(length) + 0.5) / length * (KNOTS - 1)
    r = np.abs(place - np.arange(KNOTS)[:, None])
    near = 2 / 3 - r * r + r * r * r / 2
    far = np.maximum(2 - r, 0)
    return np.where(r < 1, near, far * far * far / 6).astype(np.float32)

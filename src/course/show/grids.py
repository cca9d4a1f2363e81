"""Pictures side by side: grids, named rows and strips, pixel for pixel.

All pictures of a figure are pasted into one array, each pixel enlarged by a whole number, and that array is
drawn at exactly the figure's resolution: pixels stay squares with sharp edges.  Geometry is computed in
inches before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from course import UserError
from course.show import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

LARGEST = 1.5  # inches across one picture, however few there are
GAP = 0.05  # inches between pictures
MARGIN = 0.1  # inches around everything
TEXT = 0.26  # inches for a line of text


def grid(
    images: Tensor,
    *,
    columns: int = 8,
    titles: Sequence[object] | None = None,
    top: Sequence[object] | None = None,
    left: Sequence[object] | None = None,
    scale: float = 1.0,
) -> Figure:
    """Pictures in reading order, ``columns`` to a row.

    Args:
        images: (B, C, H, W) in [-1, 1], grey (C=1) or colour (C=3); values outside are clipped.
        columns: pictures in a row (fewer when there are fewer pictures).
        titles: a short text above each picture.
        top: a short text above each column.
        left: a short text beside each row.
        scale: share of the usual size, for figures that should stay small.

    Raises:
        UserError: the tensor is not a batch of pictures, or the texts do not match them in number.
    """
    pixels = to_pixels(images)
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    _expect("titles", titles, len(pixels), "pictures")
    _expect("top", top, columns, "columns")
    _expect("left", left, rows, "rows")
    bands = [pixels[row * columns : (row + 1) * columns] for row in range(rows)]
    above = None if titles is None else [titles[row * columns : (row + 1) * columns] for row in range(rows)]
    return _draw(bands, columns, titles=above, top=top, left=left, scale=scale)


def rows(named: Mapping[str, Tensor], *, columns: int = 8, scale: float = 1.0) -> Figure:
    """One row of pictures for each name, the name above it: originals, one model's results, another's.

    Args:
        named: name -> (B, C, H, W) in [-1, 1]; all of the same shape.  Only the first ``columns`` pictures
            are shown.
        columns: pictures in a row.
        scale: share of the usual size.
    """
    bands = [to_pixels(images)[:columns] for images in named.values()]
    if len({band.shape for band in bands}) != 1:
        told = ", ".join(f"{name} {tuple(images.shape)}" for name, images in named.items())
        raise UserError(f"rows must hold equally many pictures of one size, not {told}")
    return _draw(bands, len(bands[0]), headings=list(named), scale=scale)


def pairs(
    top: Tensor,
    bottom: Tensor,
    names: tuple[str, str] = ("original", "reconstruction"),
    *,
    columns: int = 8,
    scale: float = 1.0,
) -> Figure:
    """Two rows of pictures that belong together: originals over their reconstructions (see ``rows``)."""
    return rows(dict(zip(names, (top, bottom), strict=True)), columns=columns, scale=scale)


def strip(images: Tensor, labels: Sequence[object] | None = None, *, scale: float = 1.0) -> Figure:
    """Pictures in one row, a short label above each: stages of a process, steps between two pictures."""
    return grid(images, columns=len(images), titles=labels, scale=scale)


def to_pixels(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] as uint8 (B, H, W, 3); values outside the range are clipped.

    Raises:
        UserError: not a batch of grey or colour pictures, or not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise UserError(f"expected pictures (B, C, H, W) with 1 or 3 channels, not {tuple(images.shape)}")
    values = images.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError("these pictures hold values that are not finite (NaN or infinity)")
    grey_levels = np.rint((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(grey_levels, (len(values), 3, *values.shape[2:])).transpose(0, 2, 3, 1)


def mosaic(
    bands: Iterable[np.ndarray], columns: int, factor: int, *, gap: int, between: int, margin: int = 0
) -> np.ndarray:
    """Paste rows of pictures, each (n, H, W, 3) uint8, into one array with paper around and between them.

    Args:
        columns: pictures in a row; the last row may have fewer.
        factor: whole number by which each pixel is enlarged.
        gap: pixels between neighbours in a row.
        between: pixels between rows.
        margin: pixels around everything.
    """
    bands = list(bands)
    height, width = (side * factor for side in bands[0].shape[1:3])
    tall = len(bands) * (height + between) - between
    wide = columns * (width + gap) - gap
    sheet = np.empty((tall + 2 * margin, wide + 2 * margin, 3), np.uint8)
    sheet[:] = [int(style.PAPER[at : at + 2], 16) for at in (1, 3, 5)]
    for row, band in enumerate(bands):
        for column, picture in enumerate(band):
            y, x = margin + row * (height + between), margin + column * (width + gap)
            sheet[y : y + height, x : x + width] = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return sheet


def _draw(
    bands: list[np.ndarray],
    columns: int,
    *,
    titles: list[Sequence[object]] | None = None,
    top: Sequence[object] | None = None,
    left: Sequence[object] | None = None,
    headings: Sequence[str] | None = None,
    scale: float = 1.0,
) -> Figure:
    """Lay out in inches, choose the enlargement that comes nearest to it, then paste and write."""
    from matplotlib.figure import Figure

    height, width = bands[0].shape[1:3]
    beside = 0.0 if left is None else max(_inches(text) for text in left) + 0.08
    room = (style.WIDTH - 2 * MARGIN - beside - (columns - 1) * GAP) / columns
    cell = min(room, LARGEST) * scale

    # The resolution is bent a little, so that a picture's pixel covers a whole number of the figure's pixels.
    factor = max(1, round(cell * style.DPI / width))
    dpi = factor * width / cell
    above = TEXT if titles is not None or headings is not None else 0.0  # text over each row
    over = TEXT if top is not None else 0.0  # text over the first row
    gap, line = round(GAP * dpi), round((above or GAP) * dpi)
    sheet = mosaic(bands, columns, factor, gap=gap, between=line)

    margin = round(MARGIN * dpi)
    x0, y0 = margin + round(beside * dpi), margin + round((above + over) * dpi)
    total = (x0 + sheet.shape[1] + margin, y0 + sheet.shape[0] + margin)
    with style.context():
        figure = Figure(figsize=(total[0] / dpi, total[1] / dpi), dpi=dpi, layout="none")
        # Seen from below, as matplotlib counts: the sheet ends one margin above the figure's lower edge.
        figure.figimage(sheet, xo=x0, yo=margin, origin="upper", resize=False)

        def write(x: float, y: float, text: object, **look: object) -> None:
            figure.text(x / total[0], 1 - y / total[1], str(text), **{"fontsize": 11, **look})

        lift = round(0.06 * dpi)  # from a text's base line to the picture below it
        for row in range(len(bands)):
            y = y0 + row * (height * factor + line)
            if headings is not None:
                write(x0, y - lift, headings[row], weight="bold")
            if left is not None:
                write(x0 - 0.08 * dpi, y + height * factor / 2, left[row], ha="right", va="center")
            for column, text in enumerate(titles[row] if titles is not None else ()):
                write(x0 + column * (width * factor + gap) + width * factor / 2, y - lift, text, ha="center")
        for column, text in enumerate(top if top is not None else ()):
            middle = x0 + column * (width * factor + gap) + width * factor / 2
            write(middle, y0 - round(above * dpi) - lift, text, ha="center", weight="bold")
    return figure


def _inches(text: object) -> float:
    """Width of a text of 11 points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return (
        TextPath((0, 0), str(text), size=11, prop=FontProperties(family="DejaVu Sans")).get_extents().width
        / 72
    )


def _expect(what: str, texts: Sequence[object] | None, count: int, things: str) -> None:
    if texts is not None and len(texts) != count:
        raise UserError(f"{what} holds {len(texts)} texts for {count} {things}")

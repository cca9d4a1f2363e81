"""One look for every figure of the book.

Figures are 6 inches wide and are shown 600 CSS pixels wide, so that type of 12 points is as large as the
page's own text, and still about 9 pixels high on a telephone.  They are printed on an opaque, slightly warm
card: the same picture looks deliberate on the light page and on the dark one.  The colours are Okabe and
Ito's, which stay apart under every common form of colour blindness; each has a role, and keeps it through the
book.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

WIDTH = 6.0  # inches
CSS_DPI = 100  # an inch of figure is 100 CSS pixels of page
DPI = 2 * CSS_DPI  # two image pixels for each CSS pixel: sharp on dense screens

PAPER = "#faf8f3"  # the card
INK = "#22303c"  # text and marks that carry no meaning of their own
MUTED = "#5b6773"  # axes, secondary text
LINE = "#e4dfd3"  # grid lines, frames

# Okabe & Ito (2008) by role: what is true, what this chapter makes, what it is compared with.
COLOURS: Mapping[str, str] = {
    "data": "#4d5b68",  # real pictures, exact values, ground truth
    "model": "#0072b2",  # the chapter's own model (blue)
    "rival": "#d55e00",  # what it is compared with (vermilion)
    "third": "#009e73",  # one more curve (green)
    "fourth": "#cc79a7",  # and another (purple)
    "accent": "#e69f00",  # a mark on top of the others (orange)
    "faint": "#56b4e9",  # the model's lighter companion, such as its unsmoothed curve (sky)
}

# Ten classes need more hues than Okabe and Ito have: these are Petroff's (2021), made for colour-blind
# readers too.  Ten colours are many for any eye: write the class beside its cloud of points as well.
CLASSES = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip

SEQUENTIAL = "viridis"  # from little to much; uniform in lightness, readable in grey

SETTINGS: Mapping[str, Any] = {
    "figure.figsize": (WIDTH, 3.6),
    "figure.dpi": CSS_DPI,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,  # inches
    "figure.constrained_layout.h_pad": 0.1,
    "savefig.dpi": DPI,
    "savefig.facecolor": PAPER,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 12,
    "text.color": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 12,
    "axes.labelcolor": INK,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "scatter.edgecolors": "none",
    "image.interpolation": "nearest",
    "image.cmap": SEQUENTIAL,
    "mathtext.fontset": "dejavusans",
}


def _settings() -> dict[str, Any]:
    from matplotlib import cycler

    roles = ("model", "rival", "third", "fourth", "accent", "faint")
    return {**SETTINGS, "axes.prop_cycle": cycler(color=[COLOURS[role] for role in roles])}


def use() -> None:
    """Make the book's style matplotlib's default for the rest of the process."""
    import matplotlib

    matplotlib.rcParams.update(_settings())


def context() -> AbstractContextManager[None]:
    """The book's style inside a ``with`` block only."""
    import matplotlib

    return matplotlib.rc_context(_settings())


def axes(rows: int = 1, columns: int = 1, *, height: float = 3.6, **options: Any) -> tuple[Figure, Any]:
    """A figure in the book's style with its axes, made without pyplot, so nothing is displayed twice.

    The style becomes matplotlib's default (``use``), since titles, curves and legends follow after this call.

    Args:
        rows, columns: of axes; arranged as ``plt.subplots`` does (one Axes, or an array of them).
        height: of the figure in inches; its width is the book's.
        options: passed on to ``Figure.subplots`` (``sharex``, ``sharey``, ``width_ratios`` ...).
    """
    from matplotlib.figure import Figure

    use()
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, **options)


def square(axis: Axes, *, limits: tuple[float, float] | None = None) -> None:
    """Equal units along x and y, for planes of codes; with ``limits`` both axes span that range."""
    axis.set_aspect("equal")
    if limits is not None:
        axis.set_xlim(*limits)
        axis.set_ylim(*limits)


def diverging() -> LinearSegmentedColormap:
    """A colour map for signed values: blue below zero, paper at zero, vermilion above.

    Its lightness falls in a straight line on both sides of zero (in Oklab, Ottosson 2020), so equal distances
    from zero look equally strong.  Give ``imshow`` limits that are symmetric about zero.
    """
    from matplotlib.colors import LinearSegmentedColormap

    # Lightness and the two opponent axes (green-red, blue-yellow) of the ends and of the paper between them.
    ends = np.array([[0.38, -0.04, -0.125], [0.98, 0.0, 0.005], [0.38, 0.125, 0.075]])
    at = np.linspace(-1, 1, 257)
    lab = np.stack([np.interp(at, [-1, 0, 1], ends[:, axis]) for axis in range(3)], axis=1)
    return LinearSegmentedColormap.from_list("course", _oklab_to_rgb(lab), N=len(at))


def _oklab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """Oklab (n, 3) to sRGB (n, 3) in [0, 1]; constants from Ottosson, *A perceptual color space* (2020)."""
    to_lms = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_lms.T) ** 3 @ to_linear.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)

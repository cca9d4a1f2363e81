"""One value for each name, on a logarithmic scale: how far apart models are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from course import UserError
from course.show import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def dots(values: Mapping[str, float], *, label: str, floor: float | None = None, model: str = "") -> Figure:
    """Values above zero as dots in rows, a number beside each.  Dots and not bars: a logarithmic scale has no zero.

    Args:
        values: name -> value, drawn from top to bottom.
        label: what the values are, below the axis.
        floor: the least value that can be hoped for, such as real pictures against real ones; a dashed line.
        model: rows whose names contain this are drawn in the chapter's own colour, the others in the rival's; rows that
            begin with "real" in the colour of real pictures.

    Raises:
        UserError: a value that is not above zero.
    """
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"a logarithmic scale needs values above zero, but {name!r} is {value}")
    figure, axis = style.axes(height=1.1 + 0.38 * len(values))
    for row, (name, value) in enumerate(values.items()):
        role = "data" if name.startswith("real") else "model" if model in name else "rival"
        colour = style.COLOURS[role]
        axis.plot([value], [row], "o", color=colour, markersize=10, clip_on=False)
        axis.annotate(f"{value:#.2g}", (value, row), xytext=(9, 0), textcoords="offset points", va="center")
    if floor is not None:
        axis.axvline(floor, color=style.COLOURS["data"], linestyle="--", linewidth=1.5)
        axis.annotate(
            f"floor {floor:.2g}", (floor, -0.55), xytext=(5, 0), textcoords="offset points", va="bottom",
            color=style.COLOURS["data"],
        )  # fmt: skip
    axis.set_yticks(range(len(values)), list(values))
    axis.set(xscale="log", xlabel=label, ylim=(len(values) - 0.5, -0.9 if floor is not None else -0.5))
    axis.margins(x=0.12)
    return figure

"""Showing: figures in one style, grids of pictures, animations, the library's own code, the map of the book.

show.figure(picture, alt="...", caption="...", name="...")    puts any picture on the page
show.grid / rows / pairs / strip                              pictures side by side, as matplotlib figures
show.axes(rows, columns)                                      an empty figure in the book's style
show.animation(frames, fps=10)                                a looping animation of at most 300 kB
show.source(function)                                         code of the library, with a link
show.roadmap(place="autoencoder")                             the map of the two roads
"""

from course.show.animate import animation
from course.show.dots import dots
from course.show.grids import grid, pairs, rows, strip
from course.show.picture import Picture, figure
from course.show.roadmap import roadmap
from course.show.source import source
from course.show.style import CLASSES, COLOURS, axes, diverging, square, use

__all__ = [
    "CLASSES",
    "COLOURS",
    "Picture",
    "animation",
    "axes",
    "diverging",
    "dots",
    "figure",
    "grid",
    "pairs",
    "roadmap",
    "rows",
    "source",
    "square",
    "strip",
    "use",
]

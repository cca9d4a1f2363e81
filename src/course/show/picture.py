"""A picture that knows what it shows: image bytes with a text alternative, a caption and a name.

One call, ``show.figure(...)``, puts every figure, animation and drawing on the page.  The text alternative,
the caption and the name travel in the output's metadata, where ``course.show.page`` finds them when the book
is built; in a notebook the caption is a line of text below the picture.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course import UserError
from course.show import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSLESS = 60_000  # bytes; a larger figure is stored with 256 colours, which no eye misses on a plot


@dataclass(frozen=True, repr=False)
class Picture:
    """An image ready for the page.

    Attributes:
        data: the file's bytes, PNG (also an animated one) or SVG.
        width: CSS pixels across, as large as the page lets it be.
        alt: what the picture shows, in words.
        caption: text below the picture (Markdown), or "".
        name: what ``{numref}`` refers to, or "".
    """

    data: bytes
    width: int
    alt: str = ""
    caption: str = ""
    name: str = ""

    @property
    def mime(self) -> str:
        return "image/png" if self.data.startswith(b"\x89PNG") else "image/svg+xml"

    def save(self, path: str | Path) -> None:
        """Write the image file."""
        Path(path).write_bytes(self.data)

    def __repr__(self) -> str:
        # Stands beside the image in a stored notebook and is compared by nbval: no sizes, no addresses.
        return f"[picture: {self.alt}]"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        is_text = self.mime == "image/svg+xml"
        content = self.data.decode() if is_text else base64.b64encode(self.data).decode()
        told = {"alt": self.alt, "caption": self.caption, "name": self.name, "width": self.width}
        bundle = {self.mime: content, "text/plain": repr(self)}
        return bundle, {self.mime: {key: value for key, value in told.items() if value}}


def figure(picture: Figure | Picture, alt: str = "", *, caption: str = "", name: str = "") -> None:
    """Show a picture on the page, with its text alternative and, if given, as a numbered figure.

    Args:
        picture: a matplotlib figure, or what ``animation`` and ``roadmap`` return.
        alt: what is to be seen, in one or two sentences, for readers who cannot see it.  Only pictures that
            bring their own (the map) may leave it out.
        caption: Markdown below the picture, formulas allowed; makes it a numbered figure of the book.
        name: label for cross-references, ``{numref}`name` ``; needs a caption, since only captioned figures
            are numbered.

    Raises:
        UserError: the text alternative is missing, or a name comes without a caption.
    """
    from IPython.display import display

    if not isinstance(picture, Picture):
        picture = render(picture)
    alt, caption = " ".join((alt or picture.alt).split()), " ".join(caption.split())
    if not alt:
        raise UserError('a figure needs a text alternative: show.figure(picture, alt="what is to be seen")')
    if name and not caption:
        raise UserError(f"figure {name!r} needs a caption: only captioned figures have a number to refer to")
    display(replace(picture, alt=alt, caption=caption, name=name))
    if caption:
        # For readers of the notebook.  The built book leaves this line out: there it stands below the number.
        display({"text/markdown": caption}, raw=True, metadata={"text/markdown": {"caption": True}})


def render(figure: Figure) -> Picture:
    """A matplotlib figure as PNG, two image pixels for each CSS pixel, the same bytes for the same figure."""
    # Pictures that were pasted pixel by pixel keep their own resolution.
    dpi = figure.dpi if figure.images else style.DPI
    with style.context():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    _forget(figure)
    data = buffer.getvalue()
    width = round(min(figure.get_figwidth(), style.WIDTH) * style.CSS_DPI)
    return Picture(data if len(data) <= LOSSLESS else _fewer_colours(data), width)


def _fewer_colours(png: bytes) -> bytes:
    """At most 256 colours, each channel rounded to multiples of 8: half the size where a network's faint noise is."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    rounded = np.minimum((pixels.astype(np.int64) + 4) // 8 * 8, 255).astype(np.uint8)
    page = (pixels == pixels[0, 0]).all(-1, keepdims=True)  # the colour around the pictures stays that of the page
    image = Image.fromarray(np.where(page, pixels, rounded)).quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return min(buffer.getvalue(), png, key=len)


def _forget(figure: Figure) -> None:
    """Close the figure in pyplot, if pyplot made it: otherwise the notebook would show it a second time."""
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)

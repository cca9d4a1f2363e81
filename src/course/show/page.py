"""How the built book shows the library's pictures: a plugin of myst-nb, named in pyproject.toml.

myst-nb reads text alternatives and captions from a cell's metadata only.  Here they come from the output's
metadata, where ``show.figure`` puts them, so the words stand in the code beside the picture they describe.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils import nodes
    from myst_nb.core.render import MimeData, NbElementRenderer

# "dark-light" keeps the theme from dimming the picture on the dark page: it brings its own light card.
CLASSES = "course-picture dark-light"


class PagePictures:
    """Renders images that carry a text alternative; everything else is left to myst-nb."""

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer: NbElementRenderer, data: MimeData, inline: bool) -> list[nodes.Node] | None:
        """Image nodes with alt text, in a numbered figure if there is a caption; None for other output."""
        told = data.output_metadata.get(data.mime_type) or {}
        if data.mime_type == "text/markdown" and told.get("caption"):
            return []  # the caption's line below a notebook's picture: in the book it belongs to the figure
        if not data.mime_type.startswith("image/") or "alt" not in told:
            return None

        from docutils.nodes import Element
        from myst_nb.core.render import create_figure_context

        key = renderer.config.cell_metadata_key
        cell = data.cell_metadata.get(key, {})
        options = {"alt": told["alt"], "classes": CLASSES, "align": "center", **cell.get("image", {})}
        image = renderer.render_image(replace(data, cell_metadata={key: {**cell, "image": options}}))
        if inline or not told.get("caption"):
            return image

        page, holder = renderer.renderer, Element()
        numbered = {"caption": told["caption"], "name": told.get("name"), "align": "center"}
        with page.current_node_context(holder), create_figure_context(page, numbered, data.line or 0):
            page.current_node.extend(image)
        return holder.children

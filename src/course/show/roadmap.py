"""The map of the book: two roads from the autoencoder, where they meet, and on to Sora.

The drawing is one self-contained SVG file made from the list of stops below: no fonts or images from
elsewhere, the same bytes every time, readable at the width of a telephone.  ``python -m course.show`` writes
the copy that the landing page shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from course import UserError
from course.show import style
from course.show.picture import Picture

WIDTH, HEIGHT = (
    420,
    574,
)  # units of the drawing; at 340 pixels across, the smallest letters are 9.3 pixels high
CSS_WIDTH = 480

ONE, TWO, BOTH = (
    style.COLOURS["model"],
    style.COLOURS["rival"],
    "#00805f",
)  # the third is Okabe-Ito's green, for small text
LEFT, MIDDLE, RIGHT = 34, 130, 226  # where the roads run


@dataclass(frozen=True)
class Stop:
    """A chapter on the map: its number, the name used by ``place=``, what is written, and where it stands."""

    number: int
    key: str
    name: str
    idea: str
    x: int
    y: int
    colour: str


STOPS = (
    Stop(1, "autoencoder", "Autoencoder", "squeeze pictures into codes", MIDDLE, 44, style.INK),
    Stop(2, "vae", "VAE", "make codes samplable", LEFT, 150, ONE),
    Stop(3, "ddpm", "DDPM", "undo noise step by step", LEFT, 206, ONE),
    Stop(4, "ddim", "DDIM", "same model, fewer steps", LEFT, 262, ONE),
    Stop(5, "vqvae", "VQ-VAE + PixelCNN", "codes from a codebook", RIGHT, 150, TWO),
    Stop(6, "vqgan", "VQGAN + transformer", "write pictures like text", RIGHT, 206, TWO),
    Stop(7, "latent", "Latent diffusion", "denoise codes, not pixels", MIDDLE, 342, BOTH),
    Stop(8, "stable", "Stable Diffusion", "inside the real thing", MIDDLE, 398, BOTH),
    Stop(9, "lora", "LoRA", "small change, new style", LEFT, 464, BOTH),
    Stop(10, "editing", "Editing", "steer by attention", RIGHT, 464, BOTH),
    Stop(11, "sora", "Sora", "a sentence becomes a film", MIDDLE, 530, BOTH),
)
PLACES = tuple(stop.key for stop in STOPS)


def roadmap(place: str | None = None) -> Picture:
    """The map as a picture with its own text alternative; the last line of a cell shows it.

    Args:
        place: the stop to mark as the reader's place, one of ``PLACES``; None marks nothing.

    Raises:
        UserError: unknown place.
    """
    here = next((stop for stop in STOPS if stop.key == place), None)
    if place is not None and here is None:
        raise UserError(f"unknown place {place!r} on the map; choose from {', '.join(PLACES)}")
    return Picture(draw(here).encode(), CSS_WIDTH, alt=describe(here))


def describe(here: Stop | None = None) -> str:
    """The map in words."""
    told = {stop.number: f"{stop.name} ({stop.number})" for stop in STOPS}
    text = (
        f"Map of the book. From {told[1]} two roads lead on. "
        f"Road one shapes the codes: {told[2]}, {told[3]}, {told[4]}. "
        f"Road two models the codes: {told[5]}, {told[6]}. "
        f"They meet at {told[7]} and go on by {told[8]}, {told[9]} and {told[10]} to {told[11]}."
    )
    return text if here is None else f"{text} You are at chapter {here.number}, {here.name}."


def landing(root: str | Path) -> str:
    """The landing page's map: each chapter in the table of contents at ``root`` is a link to its page."""
    pages = re.findall(r"(notebooks/(\d\d)_\w+)", (Path(root) / "_toc.yml").read_text())
    return draw(links={int(number): f"../{page}.html" for page, number in pages})


def draw(here: Stop | None = None, links: Mapping[int, str] | None = None) -> str:
    """The map as SVG text.

    Args:
        here: the stop to mark.
        links: chapter number -> address; these stops become links where the drawing stands inside a page.
    """
    links = links or {}
    role = "group" if links else "img"  # what is inside an img is hidden from screen readers, links too
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{CSS_WIDTH}" '
        f'height="{CSS_WIDTH * HEIGHT // WIDTH}" role="{role}" aria-label="{escape(describe(here))}" '
        "font-family=\"'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif\">",
        _gradients(),
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="14" fill="{style.PAPER}" '
        f'stroke="{style.LINE}"/>',
        _roads(),
        _signs(),
        _drawings(),
    ]
    for stop in STOPS:
        drawn = _stop(stop, stop is here)
        if stop.number in links:
            drawn = f'<a href="{escape(links[stop.number])}" style="text-decoration:none">{drawn}</a>'
        parts.append(drawn)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _gradients() -> str:
    """Where the roads part and where they meet, each takes on the other colour step by step."""

    def fade(name: str, start: str, end: str, y1: int, y2: int) -> str:
        return (
            f'<linearGradient id="{name}" gradientUnits="userSpaceOnUse" x1="0" y1="{y1}" x2="0" y2="{y2}">'
            f'<stop stop-color="{start}"/><stop offset="1" stop-color="{end}"/></linearGradient>'
        )

    return (
        "<defs>"
        + fade("one-begins", style.INK, ONE, 52, 100)
        + fade("two-begins", style.INK, TWO, 52, 100)
        + fade("one-ends", ONE, BOTH, 276, 336)
        + fade("two-ends", TWO, BOTH, 276, 336)
        + "</defs>"
    )


def _bend(x1: int, y1: int, x2: int, y2: int) -> str:
    """A road from one point to another that leaves and arrives going straight down."""
    middle = (y1 + y2) / 2
    return f"M{x1} {y1}C{x1} {middle:g} {x2} {middle:g} {x2} {y2}"


def _roads() -> str:
    pieces = (
        ("url(#one-begins)", _bend(MIDDLE, 44, LEFT, 118)),
        ("url(#two-begins)", _bend(MIDDLE, 44, RIGHT, 118)),
        (ONE, f"M{LEFT} 118V276"),
        (TWO, f"M{RIGHT} 118V276"),
        ("url(#one-ends)", _bend(LEFT, 276, MIDDLE, 336)),
        ("url(#two-ends)", _bend(RIGHT, 276, MIDDLE, 336)),
        (BOTH, f"M{MIDDLE} 336V398"),
        (BOTH, _bend(MIDDLE, 398, LEFT, 464)),
        (BOTH, _bend(MIDDLE, 398, RIGHT, 464)),
        (BOTH, _bend(LEFT, 464, MIDDLE, 530)),
        (BOTH, _bend(RIGHT, 464, MIDDLE, 530)),
    )
    lines = "".join(f'<path d="{path}" stroke="{colour}"/>' for colour, path in pieces)
    return f'<g fill="none" stroke-width="7" stroke-linecap="round">{lines}</g>'


def _signs() -> str:
    """What each road does with the codes, at its beginning."""

    def sign(x: int, colour: str, title: str, text: str) -> str:
        return (
            f'<text x="{x + 22}" y="108" font-size="11.5" fill="{colour}">'
            f'<tspan font-weight="700">{title}</tspan> {text}</text>'
        )

    return sign(LEFT, ONE, "Road one:", "shape the codes") + sign(
        RIGHT, "#ad4c00", "Road two:", "model the codes"
    )


def _stop(stop: Stop, is_here: bool) -> str:
    x, y, colour = stop.x, stop.y, stop.colour
    fill, ink = (colour, "#ffffff") if is_here else ("#ffffff", style.INK)
    return (
        f"{_here(stop) if is_here else ''}"
        f'<circle cx="{x}" cy="{y}" r="13.5" fill="{fill}" stroke="{colour}" stroke-width="3.5"/>'
        f'<text x="{x}" y="{y + 4.8:g}" font-size="13.5" font-weight="700" text-anchor="middle" fill="{ink}">'
        f"{stop.number}</text>"
        f'<text x="{x + 22}" y="{y - 1.5:g}" font-size="14.5" font-weight="700" fill="{style.INK}">'
        f"{escape(stop.name)}</text>"
        f'<text x="{x + 22}" y="{y + 13.5:g}" font-size="11.5" fill="{style.MUTED}">'
        f"{escape(stop.idea)}</text>"
    )


def _here(stop: Stop) -> str:
    """The reader's place: a yellow card behind the stop, with a tab."""
    accent = style.COLOURS["accent"]
    right = stop.x + 30 + max(len(stop.name) * 8.2, len(stop.idea) * 5.9)  # letters are about that wide
    right = min(right, WIDTH - 6)
    left, top = stop.x - 20, stop.y - 22
    return (
        f'<rect x="{left}" y="{top}" width="{right - left:g}" height="44" rx="22" fill="#fff3d0" '
        f'stroke="{accent}" stroke-width="2"/>'
        f'<rect x="{right - 104:g}" y="{top - 11}" width="84" height="18" rx="9" fill="{accent}"/>'
        f'<text x="{right - 62:g}" y="{top + 2}" font-size="11.5" font-weight="700" text-anchor="middle" '
        f'fill="{style.INK}">you are here</text>'
    )


def _tile(x: float, y: float, side: float, rows: tuple[str, ...]) -> str:
    """A little picture: one letter a pixel, each letter a colour; one path for all pixels of a colour."""
    size = side / len(rows)
    paths = dict.fromkeys("".join(rows), "")
    for row, line in enumerate(rows):
        for run in re.finditer(r"(.)\1*", line):  # neighbours of one colour are one rectangle
            start, wide = x + run.start() * size, len(run[0]) * size
            paths[run[1]] += f"M{start:g} {y + row * size:g}h{wide:g}v{size:g}h-{wide:g}z"
    drawn = "".join(f'<path fill="{TONES[tone]}" d="{path}"/>' for tone, path in sorted(paths.items()))
    return f'<g shape-rendering="crispEdges">{drawn}</g>'


DISC = (
    "..........",
    "...oooo...",
    "..oooooo..",
    ".oooooooo.",
    ".oooooooo.",
    ".oooooooo.",
    ".oooooooo.",
    "..oooooo..",
    "...oooo...",
    "..........",
)
TONES = {".": "#d9e2e8", "o": TWO, "a": "#9fb3c1", "b": "#5d7485", "c": "#e8b48c", "d": "#c98a5e"}


def _noisy(share: float) -> tuple[str, ...]:
    """The disc with this share of its pixels replaced at random, the same ones every time."""
    state, rows = 7, []
    for line in DISC:
        tones = []
        for tone in line:
            state = (state * 1103515245 + 12345) % 2**31  # the C standard's example generator
            tones.append(".abcdo"[state // 2**16 % 6] if state / 2**31 < share else tone)
        rows.append("".join(tones))
    return tuple(rows)


def _drawings() -> str:
    """Three small drawings: a picture through its bottleneck, noise that becomes a picture, a film."""
    # Chapter 1: picture, narrowing, code of two numbers, widening, picture.
    y, wedge = 44, "#d3ccbc"
    bottleneck = (
        _tile(316, y - 12.5, 25, DISC)
        + f'<path d="M345 {y - 12.5}l11 7v11l-11 7z" fill="{wedge}"/>'
        + f'<path d="M359 {y - 6}h5v5h-5zM359 {y + 1}h5v5h-5z" fill="{style.INK}"/>'
        + f'<path d="M378 {y - 12.5}l-11 7v11l11 7z" fill="{wedge}"/>'
        + _tile(382, y - 12.5, 25, DISC)
    )
    # Chapter 7: three stages of denoising.
    y = 342
    denoising = "".join(
        _tile(316 + 33 * step, y - 12.5, 25, _noisy(share)) for step, share in enumerate((1.0, 0.35, 0.0))
    ) + "".join(f'<path d="M{x} {y - 3}l4 3l-4 3z" fill="{style.MUTED}"/>' for x in (343, 376))
    # Chapter 11: a film in which the disc climbs.
    y = 530
    holes = "".join(
        f'<rect x="{321.4 + 9.5 * hole:g}" y="{y + edge:g}" width="4.6" height="3.4" rx="1"/>'
        for hole in range(9)
        for edge in (-17.2, 13.8)
    )
    holes = f'<g fill="{style.PAPER}">{holes}</g>'
    frames = "".join(
        f'<rect x="{319 + 28.7 * frame:g}" y="{y - 11.5}" width="26" height="23" fill="{TONES["."]}"/>'
        f'<circle cx="{326 + 35 * frame:g}" cy="{y + 5 - 5 * frame}" r="5" fill="{TWO}"/>'
        for frame in range(3)
    )
    film = f'<rect x="316" y="{y - 19}" width="91" height="38" rx="3" fill="{style.INK}"/>{holes}{frames}'
    return bottleneck + denoising + film

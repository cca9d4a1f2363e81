"""The book's one table of results: every chapter adds its models, so that chapters can be compared.

The numbers come from the metadata of the shipped weights, where the training run left them; nothing is typed
by hand but the order and the titles in `MODELS`.  `write` renders them into book/ and `check` tells whether
it still has to.
"""

from __future__ import annotations

import hashlib
import json
import math
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Shipped weights -> chapter and title, in the order of the table. A chapter that ships a model adds its line
# here.
MODELS: dict[str, tuple[int, str]] = {
    "autoencoder_2": (1, "Autoencoder, 2 numbers"),
    "autoencoder": (1, "Autoencoder, 16 numbers"),
    "vae_2": (2, "VAE, 2 numbers"),
    "vae": (2, "VAE, 16 numbers"),
    "ddpm": (3, "Diffusion model"),
    "ddpm_classes": (3, "Diffusion model, class given"),
    "ddpm_shapes": (3, "Diffusion model of shapes, kind and colour given"),
    "vqvae": (5, "VQ-VAE, 49 codes of 7 bits"),
    "pixelcnn": (5, "PixelCNN on its codes, class given"),
    "gpt_digits": (6, "GPT on the digits' codes of chapter 5, class given"),
    "gpt_classes": (6, "GPT on the VQGAN's codes of shapes, kind and colour given"),
    "gpt_masks": (6, "GPT on the VQGAN's codes of shapes, map given"),
    "ldm": (7, "Latent diffusion of shapes, caption given"),
    "ldm_low": (7, "Latent diffusion of shapes, small picture given"),
    "ldm_map": (7, "Latent diffusion of shapes, map given"),
    "ldm_hole": (7, "Latent diffusion of shapes, picture with a hole given"),
}

BOOK = Path(__file__).parents[3] / "book"
START = "% results: start (the lines up to the end mark are written by `course results`)"
END = "% results: end"
LETTERS = string.ascii_uppercase + string.ascii_lowercase
MARKERS = "osD^vP"  # one for each data set, beside its colour


def rows() -> list[dict[str, Any]]:
    """The table's rows: the shipped models of `MODELS`, with what their metadata tells.

    Keys: letter (which marks the row in the figure), name, chapter, title, dataset, parameters, seconds (of
    training), hardware, commit, and the metrics psnr (dB), frechet, floor (real against real for the same number
    of samples) and ms_per_image; a metric that was not taken is None.
    """
    from course.train import weights

    shipped = set(weights.names())
    table = []
    for name, (chapter, title) in MODELS.items():
        if name in shipped:
            info = weights.info(name)
            metrics = info["metrics"]
            row = {"letter": LETTERS[len(table)], "name": name, "chapter": chapter, "title": title}
            row |= {key: info.get(key) for key in ("dataset", "parameters", "seconds", "hardware", "commit")}
            row |= {"floor": metrics.get("frechet_floor")}
            table.append(row | {key: metrics.get(key) for key in ("psnr", "frechet", "ms_per_image")})
    return table


def write(book: Path | str = BOOK) -> list[Path]:
    """Write results.json, the table in results.md and _static/results.png; returns their paths.

    book: the book's folder, in a clone of the repository. results.md must be there with its two mark lines:
    the prose around them is kept.
    Raises UserError when it is not, or when a file cannot be written.
    """
    from course.show import style

    table = rows()
    data, page, picture = _paths(book)
    text = _page(page, table)
    try:
        data.write_text(_json(table), encoding="utf-8")
        page.write_text(text, encoding="utf-8")
        picture.parent.mkdir(exist_ok=True)
        # the digest in the picture's own metadata tells what it shows; its bytes change with matplotlib's
        # version
        figure(table).savefig(
            picture, dpi=style.DPI, metadata={"Description": _digest(table), "Software": None}
        )
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    return [data, page, picture]


def check(book: Path | str = BOOK) -> list[str]:
    """What is out of date, one line each; an empty list when the book shows what the shipped weights say."""
    from course.train import weights

    table, shipped = rows(), set(weights.names())
    data, page, picture = _paths(book)
    lines = [
        f"{name} is in MODELS but not among the shipped weights" for name in MODELS if name not in shipped
    ]
    for name in sorted(shipped - set(MODELS)):
        if "frechet" in weights.info(name)["metrics"]:
            lines.append(f"{name} has a Frechet distance but no line in MODELS (course/measure/results.py)")
    if not data.exists() or data.read_text(encoding="utf-8") != _json(table):
        lines.append(f"{data.name} differs from the weights: run `course results`")
    if page.read_text(encoding="utf-8") != _page(page, table):
        lines.append(f"{page.name} differs from the weights: run `course results`")
    if _shown(picture) != _digest(table):
        lines.append(f"{picture.name} differs from the weights: run `course results`")
    return lines


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a MyST table."""
    lines = [
        "| | Chapter | Model | Data | PSNR (dB) | Fréchet | Floor | Times floor "
        "| Weights | Training | ms per image |",
        "|:-:|:-:|:--|:--|--:|--:|--:|--:|--:|:--|--:|",
    ]
    for row in table:
        cells = (
            row["letter"],
            _chapter(row["chapter"]),
            row["title"],
            row["dataset"],
            _number(row["psnr"], 3),
            _number(row["frechet"], 3),
            _number(row["floor"], 2),
            _number(_ratio(row), 2),
            _count(row["parameters"]),
            f"{_duration(row['seconds'])}, {row['hardware']}",
            _number(row["ms_per_image"], 2),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def figure(table: list[dict[str, Any]]) -> Figure:
    """Frechet distance over floor against milliseconds per image, for each model that has both, under its letter."""
    from matplotlib.ticker import NullFormatter

    from course.show import style

    points = [row | {"ratio": _ratio(row)} for row in table if _ratio(row) and row["ms_per_image"]]
    with style.context():
        canvas, axis = style.axes(height=4.2)
        x, y = [row["ms_per_image"] for row in points], [row["ratio"] for row in points]
        axis.set(xscale="log", yscale="log", xlabel="milliseconds per image", ylabel="Fréchet distance / floor")
        # whole decades, so that each axis has at least two numbers
        low, high = math.log10(min(x, default=0.1)), math.log10(max(x, default=10))
        axis.set_xlim(10 ** math.floor(low - 0.3), 10 ** math.ceil(high + 0.3))
        axis.set_ylim(min([0.7, *y]) * 0.6, max([10, *y]) * 2)
        axis.axhline(1, color=style.INK, linewidth=1.2, linestyle="--")
        axis.annotate(
            "real pictures",
            (1, 1),
            (-4, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
        )
        for axis_ in (axis.xaxis, axis.yaxis):
            axis_.set_major_formatter(lambda value, _: f"{value:g}")  # 100, not 10^2
            axis_.set_minor_formatter(NullFormatter())
        colours = [style.COLOURS[role] for role in ("model", "rival", "third", "fourth", "accent", "faint")]
        for n, dataset in enumerate(sorted({row["dataset"] for row in points})):
            own = [row for row in points if row["dataset"] == dataset]
            axis.scatter(
                [row["ms_per_image"] for row in own],
                [row["ratio"] for row in own],
                s=240,
                color=colours[n % len(colours)],
                marker=MARKERS[n % len(MARKERS)],
                label=dataset,
                zorder=3,
            )
        for row in points:
            place = (row["ms_per_image"], row["ratio"])
            axis.annotate(row["letter"], place, color="white", weight="bold", ha="center", va="center", zorder=4)
        if points:
            canvas.legend(loc="outside upper right", ncols=4, markerscale=0.6)
    return canvas


def _paths(book: Path | str) -> tuple[Path, Path, Path]:
    book = Path(book)
    if not (book / "results.md").exists():
        raise UserError(f"no results.md in {book}: the results table is written in a clone of the repository")
    return book / "results.json", book / "results.md", book / "_static" / "results.png"


def _page(page: Path, table: list[dict[str, Any]]) -> str:
    """results.md as it should be: its own prose, this table between the marks."""
    before, start, rest = page.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise UserError(f"{page} must hold the lines {START!r} and {END!r}")
    return f"{before}{START}\n\n{markdown(table)}\n\n{END}{after}"


def _json(table: list[dict[str, Any]]) -> str:
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"


def _digest(table: list[dict[str, Any]]) -> str:
    return hashlib.sha256(_json(table).encode()).hexdigest()


def _shown(picture: Path) -> str | None:
    """The digest of the rows that a picture was drawn from."""
    from PIL import Image

    if not picture.exists():
        return None
    with Image.open(picture) as image:
        return image.info.get("Description")


def _ratio(row: dict[str, Any]) -> float | None:
    return row["frechet"] / row["floor"] if row["frechet"] and row["floor"] else None


def _chapter(number: int) -> str:
    """The chapter's number, as a link where there is a notebook."""
    notebooks = sorted((BOOK.parent / "notebooks").glob(f"{number:02d}_*.ipynb"))
    return f"[{number}](../notebooks/{notebooks[0].name})" if notebooks else str(number)


def _number(value: float | None, digits: int) -> str:
    """Rounded to so many significant digits, 1234 as 1200 and not as 1.2e+03; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:#.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text else text.rstrip(".")


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

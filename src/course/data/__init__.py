"""What we learn from: `load` gives any data set by name, `batches` walks through it.

shapes, shapes_video   coloured shapes drawn on the fly, with factors, captions, masks and motion
glyphs                 digits drawn from matplotlib's fonts, deformed; grey, like MNIST
digits                 scikit-learn's real handwritten digits, 8 x 8
mnist, fashion_mnist, celeba   torchvision's sets (downloaded once, or placed by hand)
folder                 any folder of pictures
captioned              a folder of pictures with a caption for each, in metadata.jsonl
"""

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from course import UserError

if TYPE_CHECKING:
    from course.data.base import DataSet

__all__ = ["NAMES", "DataSet", "batches", "in_turn", "load"]

# name -> where its class lives; imported when asked for, so that nobody waits for what they do not use
_HOMES = {
    "shapes": ("shapes", "Shapes"),
    "shapes_video": ("shapes_video", "ShapesVideo"),
    "glyphs": ("glyphs", "Glyphs"),
    "digits": ("real", "Digits"),
    "mnist": ("real", "MNIST"),
    "fashion_mnist": ("real", "FashionMNIST"),
    "celeba": ("real", "CelebA"),
    "folder": ("real", "Folder"),
    "captioned": ("captioned", "Captioned"),
}
NAMES = tuple(_HOMES)
_COMMON = ("size", "seed", "root", "count")


def load(
    name: str,
    split: str = "train",
    *,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    root: str | None = None,
    count: int | None = None,
    **options: Any,
) -> "DataSet":
    """A data set by name.

    name: one of NAMES. split: "train" or "test" (shapes also "composition"). size: pixels, a number or (H,
    W); None is the set's own. seed: which world the drawn sets draw; sets of real pictures are what they are
    and take any. root: folder of the files, for the sets that read files. count: number of items; None is the
    set's own. options: what the one set offers beyond that (shapes: styles, grounds, shapes, detail, ...;
    folder: channels). Raises UserError, one line, for anything that does not exist or does not fit.
    """
    if name not in NAMES:
        raise UserError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")
    module, member = _HOMES[name]
    home = getattr(import_module(f"course.data.{module}"), member)
    known = [key for key in inspect.signature(home).parameters if key != "split"]
    arguments = {"size": size, "seed": seed, "root": root, "count": count}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    if "seed" not in known:
        del arguments["seed"]
    if "root" in arguments and "root" not in known:
        raise UserError(f"{name} reads no files: leave root out")
    for key in (*arguments, *options):
        if key not in known:
            own = [key for key in known if key not in _COMMON]
            extra = f"its own options are {', '.join(own)}" if own else "it has none of its own"
            raise UserError(f"{name} has no option {key!r}; {extra}")
    return home(split, **arguments, **options)


def __getattr__(name: str) -> Any:
    if name in ("DataSet", "batches", "in_turn"):  # base imports torch, which takes a while
        return getattr(import_module("course.data.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

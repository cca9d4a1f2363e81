"""Pictures that were not drawn for the book: scikit-learn's digits, torchvision's sets, your own folders.

Files live in `root`, by default the folder named by the environment variable COURSE_DATA, else
~/.cache/course, in torchvision's layout: MNIST/raw/train-images-idx3-ubyte (or ....gz), FashionMNIST/raw/...,
celeba/....
"""

import gzip
import os
import socket
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from course import UserError
from course.data.base import DataSet, check_count, check_size, check_split

SMALLEST, LARGEST = 8, 1024
FIVES = 5  # digits: every fifth of a class is for testing
TENTHS = 10  # folder: about one picture in ten is for testing
KEEP = 2**28  # bytes of decoded pictures that a folder keeps in memory
PATIENCE = 5  # seconds that a server has to answer before a download is tried
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm")


def data_root(root: str | Path | None = None) -> Path:
    """The folder of downloaded files: root, else $COURSE_DATA, else ~/.cache/course."""
    return Path(root or os.environ.get("COURSE_DATA") or "~/.cache/course").expanduser()


class Table(DataSet):
    """A grey set in memory: levels (N, H, W) uint8 with `white` as the brightest, labels (N,) int64.

    size None keeps the pictures' own; other sizes are made by (antialiased) bilinear interpolation.
    """

    def __init__(
        self,
        name: str,
        split: str,
        levels: np.ndarray,
        labels: np.ndarray,
        *,
        white: int,
        classes: Sequence[str],
        size: int | tuple[int, int] | None,
        count: int | None,
    ) -> None:
        self.own = tuple(levels.shape[1:])
        super().__init__(
            name,
            split,
            channels=1,
            size=self.own if size is None else check_size(name, size, SMALLEST, LARGEST),
            count=check_count(name, count, len(levels), len(levels)),
            classes=classes,
        )
        self.levels, self.labels, self.white = levels, labels, white

    def batch(self, indices: Iterable[int]) -> dict[str, torch.Tensor]:
        """-> "image" (B, 1, H, W) float32 in [-1, 1], "label" (B,) int64."""
        items = self.numbers(indices)
        image = torch.from_numpy(self.levels[items])[:, None].float() / (self.white / 2) - 1
        if self.size != self.own:
            image = F.interpolate(image, self.size, mode="bilinear", antialias=True).clamp(-1, 1)
        return {"image": image, "label": torch.from_numpy(self.labels[items])}


class Digits(Table):
    """scikit-learn's 1,797 handwritten digits (from the UCI set of Alpaydin and Kaynak), 8 x 8, 17 levels.

    The split is fixed: within each class every fifth is a test item.
    """

    def __init__(
        self, split: str = "train", *, size: int | tuple[int, int] | None = None, count: int | None = None
    ) -> None:
        check_split("digits", split)
        from sklearn.datasets import load_digits

        found = load_digits()
        rank = np.zeros(len(found.target), np.int64)  # the how-manieth of its class
        for label in range(10):
            members = found.target == label
            rank[members] = np.arange(members.sum())
        part = (rank % FIVES == FIVES - 1) == (split == "test")
        levels, labels = found.images[part].astype(np.uint8), found.target[part].astype(np.int64)
        super().__init__(
            "digits", split, levels, labels, white=16, classes=tuple("0123456789"), size=size, count=count
        )


class MNIST(Table):
    """MNIST (LeCun, Cortes, Burges): 60,000 train and 10,000 test digits of 28 x 28, downloaded when missing.

    Files in MNIST's idx format that were put in root/MNIST/raw by hand are used as they are, whatever their
    size.
    """

    name = "mnist"
    member = "MNIST"  # torchvision's class, and the name of its folder
    CLASSES = tuple("0123456789")

    def __init__(
        self,
        split: str = "train",
        *,
        size: int | tuple[int, int] | None = None,
        root: str | Path | None = None,
        count: int | None = None,
    ) -> None:
        check_split(self.name, split)
        root = data_root(root)
        raw = root / self.member / "raw"
        prefix = "train" if split == "train" else "t10k"
        wanted = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        files = [_plain_or_packed(raw / each) for each in wanted]
        if None in files:
            self._download(root, f"put {wanted[0]}.gz and {wanted[1]}.gz into {raw}")
            files = [_plain_or_packed(raw / each) for each in wanted]
        levels, labels = read_idx(files[0], 3), read_idx(files[1], 1).astype(np.int64)
        if len(levels) != len(labels):
            raise UserError(
                f"{self.name}: {files[0]} holds {len(levels)} pictures, "
                f"but {files[1].name} {len(labels)} labels; each picture needs one"
            )
        if labels.max() >= len(self.CLASSES):
            raise UserError(f"{self.name}: {files[1]} holds the label {labels.max()}; labels are 0 to 9")
        super().__init__(
            self.name, split, levels, labels, white=255, classes=self.CLASSES, size=size, count=count
        )

    def _download(self, root: Path, by_hand: str) -> None:
        from torchvision import datasets

        source = getattr(datasets, self.member)
        download(
            self.name,
            root,
            source.mirrors,
            lambda: source(root, download=True),
            f"{by_hand}, or use the data set glyphs, which needs no files",
        )


class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): clothes in MNIST's format, in root/FashionMNIST/raw."""

    name = "fashion_mnist"
    member = "FashionMNIST"
    CLASSES = (
        "t-shirt",
        "trousers",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )


def _plain_or_packed(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Read a file of bytes in MNIST's idx format, gzipped or not -> uint8 array with `rank` axes.

    The format: two zero bytes, the type (8 = unsigned byte), the number of axes, each axis' length as a
    big-endian 32-bit number, the values. Raises UserError when the file is not that.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({_line(error)}): delete it or put a whole file there") from None
    start = 4 + 4 * rank
    if data[:4] != bytes((0, 0, 8, rank)) or len(data) < start:
        raise UserError(f"{path} is not in MNIST's idx format with {rank} axes of bytes")
    shape = tuple(np.frombuffer(data, ">u4", rank, 4).tolist())
    length = int(np.prod(shape, dtype=object))
    if len(data) != start + length or not length:
        raise UserError(
            f"{path} should hold {length} values by its header (at least 1), but holds {len(data) - start}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def download(
    name: str, root: Path, servers: Sequence[str], fetch: Callable[[], object], otherwise: str
) -> None:
    """Run fetch() when a server answers; else, or when it fails, a UserError that ends in `otherwise`.

    servers: addresses, asked all at once; after PATIENCE seconds without an answer there is no network.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name}: cannot write in {root} ({_line(error)}); choose another root") from None
    if not _answers(servers):
        raise UserError(f"{name} is not in {root} and no server answers (no network?): {otherwise}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(6 * PATIENCE)  # torchvision sets none: a dead connection would hang for ever
    try:
        fetch()
    except Exception as error:  # whatever torchvision and gdown raise, the remedy is the same
        raise UserError(f"{name} could not be downloaded ({_line(error)}): {otherwise}") from None
    finally:
        socket.setdefaulttimeout(before)


def _answers(servers: Sequence[str]) -> bool:
    lock = threading.Condition()
    replies: list[bool] = []

    def ask(server: str) -> None:
        reached = False
        try:
            request = urllib.request.Request(server, method="HEAD")
            with urllib.request.urlopen(request, timeout=PATIENCE):
                reached = True
        except urllib.error.HTTPError:
            reached = True  # "forbidden" or "not found" is an answer too
        except (OSError, ValueError):
            pass
        with lock:
            replies.append(reached)
            lock.notify()

    # looking up a name has no timeout of its own, so the asking happens in threads that may be left behind
    for server in servers:
        threading.Thread(target=ask, args=(server,), daemon=True).start()
    with lock:
        lock.wait_for(lambda: any(replies) or len(replies) == len(servers), timeout=PATIENCE)
        return any(replies)


class Files(DataSet):
    """Pictures in files: centre-cropped to the shape of `size`, resized, kept in memory if they are few."""

    def __init__(
        self,
        name: str,
        split: str,
        files: Sequence[Path],
        *,
        channels: int,
        size: tuple[int, int],
        count: int | None,
    ) -> None:
        count = check_count(name, count, len(files), len(files))
        super().__init__(name, split, channels=channels, size=size, count=count)
        self.files = list(files[:count])
        shape = (count, *size, channels)
        keep = np.prod(shape, dtype=np.int64) <= KEEP
        self._kept = np.empty(shape, np.uint8) if keep else None
        self._known = np.zeros(count, bool)

    def batch(self, indices: Iterable[int]) -> dict[str, torch.Tensor]:
        """-> "image" (B, C, H, W) float32 in [-1, 1]; UserError that names a file which cannot be decoded."""
        items = self.numbers(indices)
        if self._kept is None:
            levels = [read_picture(self.files[item], self.channels, self.size) for item in items]
            levels = np.stack(levels) if levels else np.empty((0, *self.size, self.channels), np.uint8)
        else:
            for item in items[~self._known[items]]:
                self._kept[item] = read_picture(self.files[item], self.channels, self.size)
                self._known[item] = True
            levels = self._kept[items]
        image = torch.from_numpy(levels).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1
        return {"image": image}


class CelebA(Files):
    """CelebA (Liu, Luo, Wang, Tang 2015): 162,770 train, 19,962 test faces; the download needs gdown.

    size: 64 by default; the middle of each picture is cut out and resized.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        size: int | tuple[int, int] = 64,
        root: str | Path | None = None,
        count: int | None = None,
    ) -> None:
        check_split("celeba", split)
        size = check_size("celeba", size, SMALLEST, LARGEST)
        root = data_root(root)
        found = self._find(root, split)
        if found is None:
            from torchvision import datasets

            place = root / datasets.CelebA.base_folder
            lists = ", ".join(name for *_, name in datasets.CelebA.file_list if name.endswith(".txt"))
            download(
                "celeba",
                root,
                ("https://drive.google.com", "https://docs.google.com"),
                lambda: datasets.CelebA(root, download=True),
                f"put the original {lists} and the folder img_align_celeba into {place}, "
                f"or use the data set shapes, which needs no files",
            )
            found = self._find(root, split)
        super().__init__("celeba", split, found, channels=3, size=size, count=count)

    @staticmethod
    def _find(root: Path, split: str) -> list[Path] | None:
        from torchvision import datasets

        try:
            found = datasets.CelebA(root, split)
        except RuntimeError:  # torchvision's "not found or corrupted"
            return None
        return [root / found.base_folder / "img_align_celeba" / name for name in found.filename]


class Folder(Files):
    """Every picture under a folder, in the order of the names; hidden files and folders are passed over.

    root: the folder. size: None keeps the pictures' size, which must then be one and the same; otherwise 8 to
    1024, a number or (H, W): the middle of each picture is cut out and resized. channels: 1 or 3 makes all
    grey or all colour; None keeps what they are, which must then be the same for all. About a tenth of the
    pictures, chosen by a hash of the path below root, are for testing, so adding files moves no other file to
    the other side. Transparent pixels become white. Raises UserError for a folder without pictures and files
    that are none.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | Path | None = None,
        size: int | tuple[int, int] | None = None,
        count: int | None = None,
        channels: int | None = None,
    ) -> None:
        check_split("folder", split)
        if size is not None:
            size = check_size("folder", size, SMALLEST, LARGEST)
        if channels not in (None, 1, 3):
            raise UserError(f"folder: channels must be 1 (grey) or 3 (colour), got {channels!r}")
        if root is None:
            raise UserError("folder: say which folder, by root=")
        top = Path(root).expanduser()
        if not top.is_dir():
            raise UserError(f"folder: {top} is not a folder")
        found = (path for path in top.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        names = sorted(path.relative_to(top).as_posix() for path in found)
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        if not names:
            raise UserError(f"folder: no pictures in {top} (looked for {', '.join(ENDINGS)})")
        grey, shape = _same({name: read_head(top / name) for name in names}, channels, size)
        chosen = [name for name in names if (zlib.crc32(name.encode()) % TENTHS == 0) == (split == "test")]
        if not chosen:
            raise UserError(
                f"folder: none of the {len(names)} pictures in {top} falls into {split!r} "
                f"(about one in {TENTHS} is for testing); add pictures"
            )
        super().__init__(
            "folder",
            split,
            [top / name for name in chosen],
            channels=channels or (1 if grey else 3),
            size=size or shape,
            count=count,
        )


def _same(
    heads: dict[str, tuple[bool, tuple[int, int]]], channels: int | None, size: tuple[int, int] | None
) -> tuple[bool, tuple[int, int]]:
    """(grey, (H, W)) of all pictures, or UserError when they differ in what was not settled by the caller."""
    first, (grey, shape) = next(iter(heads.items()))
    for name, (other_grey, other) in heads.items():
        if channels is None and other_grey != grey:
            pair = (first, name) if grey else (name, first)
            raise UserError(
                f"folder: grey and colour mixed ({pair[0]} is grey, {pair[1]} in colour); "
                f"choose channels=1 (all grey) or channels=3 (all colour)"
            )
        if size is None and other != shape:
            raise UserError(
                f"folder: pictures of different sizes ({first} is {shape[1]} x {shape[0]}, "
                f"{name} {other[1]} x {other[0]}); choose one, such as size=64: "
                f"the middle is cut out and resized"
            )
    return grey, shape


def read_head(path: Path) -> tuple[bool, tuple[int, int]]:
    """(is it grey?, (H, W)) from a picture's first bytes; UserError when it is not a picture."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if picture.getexif().get(0x0112, 1) >= 5:  # a camera held upright: turned by a quarter
                width, height = height, width
            return picture.mode.startswith(("1", "L", "I")), (height, width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(_broken(path, error)) from None


def read_picture(path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    """Decode, cut out the middle in the shape of size, resize -> (H, W, channels) uint8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip at 255
                levels = np.asarray(picture).astype(np.float64) / 257
                picture = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
            if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(_broken(path, error)) from None
    height, width = size
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(height, width, channels)


def _broken(path: Path, error: Exception) -> str:
    return f"cannot read the picture {path} ({_line(error)}): mend or remove it"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."

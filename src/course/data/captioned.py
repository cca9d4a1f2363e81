"""A folder of pictures with a sentence for each: what text-to-image models are fine-tuned on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from course import UserError
from course.data.base import check_count, check_size, check_split
from course.data.real import LARGEST, SMALLEST, Files

METADATA = "metadata.jsonl"


class Captioned(Files):
    """Pictures in colour and their captions, in the form of Hugging Face's image folders.

    The folder has the file metadata.jsonl: a JSON object on each line, with the picture's "file_name", relative to the
    folder, and its "text".  Further entries are passed over.

    root: the folder. size: pixels, 8 to 1024, a number or (H, W): the middle of each picture is cut out and resized.
    Raises UserError for a missing or empty folder and for the first line that is wrong, by its number.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | Path | None = None,
        size: int | tuple[int, int] = 64,
        count: int | None = None,
    ) -> None:
        check_split("captioned", split, ("train",))
        size = check_size("captioned", size, SMALLEST, LARGEST)
        if root is None:
            raise UserError("captioned: say which folder, by root=")
        entries = read_metadata(Path(root).expanduser())
        count = check_count("captioned", count, len(entries), len(entries))
        self.captions = [caption for _, caption in entries[:count]]
        super().__init__("captioned", split, [path for path, _ in entries], channels=3, size=size, count=count)

    def batch(self, indices: Iterable[int]) -> dict:
        """Items by number.

        "image": (B, 3, H, W) float32 in [-1, 1]; "caption": list of B sentences.
        """
        items = self.numbers(indices)
        return super().batch(items) | {"caption": [self.captions[item] for item in items]}


def read_metadata(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of a folder and their captions, in the order of the lines."""
    path = folder / METADATA
    if not folder.is_dir():
        raise UserError(f"captioned: {folder} is not a folder")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        wanted = 'a line {"file_name": "one.png", "text": "large red circle top left"} for each picture'
        raise UserError(f"captioned: {folder} has no readable {METADATA}, with {wanted}") from None
    entries = [_entry(folder, line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise UserError(f"captioned: {path} is empty: there is nothing to learn from")
    return entries


def _entry(folder: Path, line: str, where: str) -> tuple[Path, str]:
    try:
        entry = json.loads(line)
    except ValueError:
        raise UserError(f"captioned: {where} is not JSON: {line.strip()[:60]!r}") from None
    for key in ("file_name", "text"):
        if not isinstance(entry, dict) or not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f'captioned: {where} needs "file_name" and "text", each a text; {key} is missing')
    path = folder / entry["file_name"]
    if not path.is_file():
        raise UserError(f"captioned: {where} names the picture {entry['file_name']!r}, which is not in the folder")
    return path, entry["text"]


def write(folder: str | Path, images: Tensor, captions: Sequence[str]) -> Path:
    """Write pictures and captions as such a folder. Returns the folder.

    Args:
        folder: a new one, or one with nothing in it.
        images: (N, 3, H, W) in [-1, 1].
        captions: N sentences.

    Raises:
        UserError: another number of captions, or a folder that holds something or cannot be written.
    """
    from PIL import Image

    if len(images) != len(captions):
        raise UserError(f"{len(images)} pictures need {len(images)} captions, not {len(captions)}")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: name a new folder")
        levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
        lines = []
        for number, (level, caption) in enumerate(zip(levels, captions)):
            Image.fromarray(level).save(folder / f"{number:05}.png")
            lines.append(json.dumps({"file_name": f"{number:05}.png", "text": caption}))
        # last: a folder that was written halfway has no list of pictures and is refused
        (folder / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from None
    return folder

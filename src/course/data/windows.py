"""Windows: pieces of one size cut out of the pictures of another data set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from course import UserError
from course.data.base import DataSet
from course.data.counter import uniform


class Windows(DataSet):
    """Each item is one piece of the item with the same number, cut at a place that depends on the number alone.

    source: a set of pictures, with masks or without. size: (H, W) of the pieces. Only what can be cut is kept: "image"
    and "mask". Raises UserError when the pieces are empty or larger than the pictures, or the source has no pictures.
    """

    def __init__(self, source: DataSet, size: tuple[int, int]) -> None:
        if min(size) < 1:
            raise UserError(f"a window has at least 1x1 pixels, not {size[0]}x{size[1]}")
        if "image" not in source.batch([0]):
            raise UserError(f"windows are cut out of pictures; {source.name} has none")
        if size[0] > source.size[0] or size[1] > source.size[1]:
            whole = f"{source.size[0]}x{source.size[1]}"
            raise UserError(f"a window of {size[0]}x{size[1]} is larger than the pictures of {source.name}, {whole}")
        super().__init__(source.name, source.split, channels=source.channels, size=tuple(size), count=len(source))
        self.source = source

    def batch(self, indices: Iterable[int]) -> dict:
        """Pieces by number: "image" (B, C, H, W), and "mask" (B, H, W) where the source has it."""
        index = self.numbers(indices)
        whole = self.source.batch(index)
        rooms = [large - small + 1 for large, small in zip(self.source.size, self.size)]
        tops, lefts = ((uniform(axis, index) * room).astype(np.int64) for axis, room in enumerate(rooms))
        return {
            key: torch.stack([
                picture[..., top : top + self.size[0], left : left + self.size[1]]
                for picture, top, left in zip(whole[key], tops, lefts)
            ])
            for key in ("image", "mask")
            if key in whole
        }  # fmt: skip

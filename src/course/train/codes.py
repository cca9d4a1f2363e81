"""Stage two learns from codes: a stage-one model, and the codes of many pictures computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course import UserError
from course.data.base import DataSet, check_count
from course.models.autoencoder import Autoencoder
from course.models.quantise import GreyLevels
from course.train import weights
from course.train.recipes import vqvae
from course.train.settings import restored

BATCH = 250  # pictures encoded at once


@dataclass(frozen=True)
class StageOne:
    """A trained autoencoder with a codebook, and what stage two needs to know of it.

    Attributes:
        model: in evaluation mode, without gradients.
        settings: of its recipe (`vqvae`, `vqgan`).
        size: (H, W) of its pictures.
    """

    model: nn.Module
    settings: vqvae.Settings
    size: tuple[int, int]

    @property
    def entries(self) -> int:
        """K, of the codebook."""
        return self.settings.entries

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the map of codes of one picture."""
        return tuple(side // 2**self.settings.halvings for side in self.size)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Pictures (N, C, H, W) -> codes (N, h, w) int64.

        Raises:
            UserError: a height or width that does not divide by f.
        """
        unit = 2**self.settings.halvings
        if any(side % unit for side in x.shape[2:]):
            raise UserError(f"height and width must be multiples of f = {unit}, not {tuple(x.shape[2:])}")
        return torch.cat([self.model.encode(part).codes for part in x.split(BATCH)])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N, h, w) of any size -> pictures (N, C, h f, w f) in [-1, 1]; of maps, the labels (N, h f, w f)."""
        look = self.model.bottleneck.lookup
        decoded = torch.cat([self.model.decode(look(part)) for part in codes.split(BATCH)])
        return decoded.argmax(1) if self.settings.content == "mask" else decoded.clamp(-1, 1)


def stage_one(name: str) -> StageOne:
    """A stage-one model by the name of shipped weights, or by the path of a result of `course train`.

    "pixels" is no model: each pixel of a digit is a code, one of sixteen grey levels.

    Raises:
        UserError: there is none, or it has no codebook.
    """
    if name == "pixels":
        model = Autoencoder(nn.Identity(), GreyLevels(16), nn.Identity())
        return StageOne(model, vqvae.Settings(entries=16, halvings=0), (28, 28))
    path, meta = weights.locate(name)
    if meta.get("recipe") not in ("vqvae", "vqgan"):
        raise UserError(f"{name} has no codebook: it was made by the recipe {meta.get('recipe')!r}, not vqvae or vqgan")
    from course.train import recipes

    settings = restored(recipes.get(meta["recipe"]).Settings, meta["settings"])
    return StageOne(weights.read(path), settings, vqvae.load(settings, "test")[0].size)


class Stored(DataSet):
    """Items that are tensors in memory, one row each.

    like: the data set that they were made from. tensors: name -> (N, ...), equally many rows.
    """

    def __init__(self, like: DataSet, tensors: Mapping[str, Tensor]) -> None:
        count = len(next(iter(tensors.values())))
        super().__init__(
            like.name, like.split, channels=like.channels, size=like.size, count=count, classes=like.classes
        )
        self.tensors = dict(tensors)

    def batch(self, indices: Iterable[int]) -> dict:
        """Rows by number."""
        rows = torch.from_numpy(self.numbers(indices))
        return {key: value[rows].float() if value.is_floating_point() else value[rows].long()
                for key, value in self.tensors.items()}  # fmt: skip


def stored(source: DataSet, count: int, columns: Mapping[str, object]) -> Stored:
    """Compute what is wanted of the first ``count`` items once, and keep it.

    source: the pictures. count: how many, at most len(source). columns: name -> function of a batch of the source that
    gives numbers (B, ...), whole or not; they are kept as 16 bits each.
    """
    count = check_count(source.name, count, len(source), len(source))
    parts: dict[str, list[Tensor]] = {name: [] for name in columns}
    for start in range(0, count, BATCH):
        batch = source.batch(range(start, min(start + BATCH, count)))
        for name, column in columns.items():
            value = column(batch)
            parts[name].append(value.to(torch.float16 if value.is_floating_point() else torch.int16))
    return Stored(source, {name: torch.cat(part) for name, part in parts.items()})

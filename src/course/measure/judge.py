"""What the judges say of pictures, in the words of the data sets, and how often they are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

PLACES = 9
BATCH = 500  # pictures judged at once, to bound memory
FACTORS = ("kind", "colour", "size", "style")  # of each shape


@torch.no_grad()
def read(judge: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """A scene in the shapes world's words, as the judge sees it.

    Args:
        judge: a :class:`course.models.judge.ShapeJudge`.
        images: (B, 3, H, W) in [-1, 1], any canvas.

    Returns:
        kind, colour, size, style: (B, 9) int64, one column a place in reading order, -1 where no shape is seen; at
        least one is seen in every picture.  x, y: (B, 9) float32, centres as fractions of width and height, -1
        likewise.  ground: (B,) int64.  mask: (B, h, w) int64 at the judge's own resolution, 0 or 1 + kind.
    """
    from course.models.judge import PLACE_MIDDLES

    parts = [judge(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    answers = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    score = answers["present"][..., 0]
    present = score > 0
    present[torch.arange(len(score), device=score.device), score.argmax(1)] = True
    found = {name: answers[name].argmax(-1).where(present, -1) for name in FACTORS}
    centre = torch.tensor(PLACE_MIDDLES, device=score.device) + answers["offset"]
    found |= {"x": centre[..., 0].where(present, -1.0), "y": centre[..., 1].where(present, -1.0)}
    return {**found, "ground": answers["ground"].argmax(1), "mask": answers["mask"].argmax(1)}


def by_place(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors of a batch of scenes, slot by slot (B, 3), rearranged place by place as :func:`read` gives them."""
    place = factors["place"]
    slots = torch.where(place >= 0, place, PLACES)  # empty slots go to a tenth column, which is cut off
    table = {}
    for name in (*FACTORS, "x", "y"):
        blank = torch.full((len(place), PLACES + 1), -1, dtype=factors[name].dtype)
        table[name] = blank.scatter(1, slots, factors[name])[:, :PLACES]
    return {**table, "ground": factors["ground"]}


def agreement(
    seen: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    size: tuple[int, int],
    said: Sequence[str] = ("place", *FACTORS, "ground"),
) -> dict[str, float]:
    """Share of scenes in which the judge's reading agrees with what was asked for, factor by factor.

    Args:
        seen: from :func:`read`.
        wanted: from :func:`by_place`.
        size: height and width of the pictures, to measure distances in pixels.
        said: what has to be right for "everything", such as the words of a short caption.

    Returns:
        place: the right places hold shapes; kind, colour, size, style: all of them right; ground; position: every
        centre within one pixel; everything: all that is said right together (position left out).
    """
    shapes = wanted["kind"] >= 0
    right = {"place": ((seen["kind"] >= 0) == shapes).all(1)}
    right |= {name: ((seen[name] == wanted[name]) | ~shapes).all(1) for name in FACTORS}
    right["ground"] = seen["ground"] == wanted["ground"]
    right["everything"] = torch.stack([right[name] for name in said]).all(0)
    far = torch.hypot((seen["x"] - wanted["x"]) * size[1], (seen["y"] - wanted["y"]) * size[0]) > 1
    right["position"] = ~(far & shapes).any(1)
    return {name: value.double().mean().item() for name, value in right.items()}

"""The judges: small classifiers that name what is in a picture.

They serve twice: as independent eyes (did the model draw what it was asked for?) and, through ``features``, as the
network in whose feature space Frechet distances are taken.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from course.models.layers import ResBlock, coordinates, norm


class GlyphJudge(nn.Module):
    """Names the digit in a grey picture.

    Args:
        classes: how many digits there are.
        width: channels at the first resolution.
        size: side to which every picture is resized first, so that 16x16 and 28x28 are judged alike.
    """

    channels = 1

    def __init__(self, classes: int = 10, width: int = 32, size: int = 28):
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            ResBlock(width),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            ResBlock(2 * width),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            ResBlock(2 * width),
            norm(2 * width),
            nn.SiLU(),
        )
        self.head = nn.Linear(2 * width, classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """What it sees on the way, after each residual block: for a perceptual loss."""
        return _after_blocks(self.layers, resized(x, self.size))

    def features(self, x: Tensor) -> Tensor:  # (B, 1, H, W) in [-1, 1] -> (B, 2 * width)
        return self.layers(resized(x, self.size)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:  # -> (B, classes), logits
        return self.head(self.features(x))


class ShapeJudge(nn.Module):
    """Reads a scene: in each of nine places whether a shape is there, which, how coloured, how large, how drawn.

    The places are the cells of a 3x3 grid over the canvas, whatever its shape.  Each place looks at the feature map
    through a soft window around its cell, so the network does not care how large or wide the canvas is.

    Args:
        kinds, colours, sizes, styles, grounds: how many values each factor has.
        width: channels at the first resolution.
        size: the shorter side to which every picture is resized first.
    """

    channels = 3

    def __init__(
        self,
        kinds: int,
        colours: int,
        sizes: int,
        styles: int,
        grounds: int,
        *,
        width: int = 48,
        size: int = 32,
    ):
        super().__init__()
        self.size = size
        self.heads = {
            "present": 1,
            "kind": kinds,
            "colour": colours,
            "size": sizes,
            "style": styles,
            "offset": 2,
        }
        self.fine = nn.Sequential(  # half the resolution
            nn.Conv2d(3 + 2, width, 4, stride=2, padding=1), ResBlock(width), ResBlock(width)
        )
        self.coarse = nn.Sequential(  # a quarter of it
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            *[ResBlock(2 * width) for _ in range(3)],
            norm(2 * width),
            nn.SiLU(),
        )
        self.place = nn.Sequential(
            nn.Linear(2 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, sum(self.heads.values()))
        )
        self.ground = nn.Linear(2 * width, grounds)
        self.join = nn.Conv2d(2 * width, 4 * width, 1)
        self.segment = nn.Conv2d(width, 4 * (1 + kinds), 3, padding=1)

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = resized(x, self.size)
        fine = self.fine(torch.cat([x, coordinates(x)], 1))
        return fine, self.coarse(fine)  # (B, width, h/2, w/2), (B, 2 width, h/4, w/4)

    def stages(self, x: Tensor) -> list[Tensor]:
        """What it sees on the way, after each residual block: for a perceptual loss."""
        x = resized(x, self.size)
        return _after_blocks([*self.fine, *self.coarse], torch.cat([x, coordinates(x)], 1))

    def features(self, x: Tensor) -> Tensor:  # (B, 3, H, W) in [-1, 1] -> (B, 2 * width)
        return self.trunk(x)[1].mean((2, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits for each factor at each place: (B, 9, values); ``ground`` (B, grounds); ``mask`` (B, 1 + kinds, h, w).

        ``offset`` holds the centre's column and row as fractions of the canvas, relative to the middle of the place.
        """
        fine, coarse = self.trunk(x)
        window = windows(coarse)  # (9, h/4 * w/4)
        seen = torch.einsum("pn,bcn->bpc", window, coarse.flatten(2))  # each place's view of the scene
        answers = self.place(seen).split(list(self.heads.values()), dim=-1)
        fine = fine + functional.pixel_shuffle(self.join(coarse), 2)
        mask = functional.pixel_shuffle(self.segment(functional.silu(fine)), 2)
        return {**dict(zip(self.heads, answers)), "ground": self.ground(coarse.mean((2, 3))), "mask": mask}


class MotionJudge(nn.Module):
    """Names the motion in a clip by 3-D convolutions over frames, rows and columns.

    Args:
        motions: how many motions there are.
        width: channels of the first layer.
        size: the shorter side to which every frame is resized first.
        frames: length to which every clip is resampled, so that short and long clips are judged alike.
    """

    channels = 3

    def __init__(self, motions: int, width: int = 32, size: int = 32, frames: int = 16):
        super().__init__()
        self.size, self.frames = size, frames
        self.layers = nn.Sequential(
            nn.Conv3d(3 + 2 + 3, width, (3, 4, 4), stride=(1, 2, 2), padding=1),
            nn.SiLU(),
            nn.Conv3d(width, 2 * width, 4, stride=2, padding=1),
            norm(2 * width, groups=8),
            nn.SiLU(),
            nn.Conv3d(2 * width, 4 * width, 4, stride=2, padding=1),
            norm(4 * width, groups=8),
            nn.SiLU(),
            nn.Conv3d(4 * width, 4 * width, 3, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Linear(4 * width, motions)

    def features(self, video: Tensor) -> Tensor:  # (B, T, 3, H, W) in [-1, 1] -> (B, 4 * width)
        b, t = video.shape[:2]
        x = resized(video.flatten(0, 1), self.size)
        x = torch.cat([x, coordinates(x)], 1).unflatten(0, (b, t)).transpose(1, 2)  # (B, 5, T, h, w)
        if t != self.frames:
            x = functional.interpolate(x, (self.frames, *x.shape[3:]), mode="trilinear", align_corners=True)
        # What changed since the frame before: a slow rotation is hard to see in the frames themselves.
        change = x[:, :3].diff(dim=2, prepend=x[:, :3, :1])
        return self.layers(torch.cat([x, change], 1)).mean((2, 3, 4))

    def forward(self, video: Tensor) -> Tensor:  # -> (B, motions), logits
        return self.head(self.features(video))


def _after_blocks(layers: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    found = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, ResBlock):
            found.append(x)
    return found


def resized(x: Tensor, side: int) -> Tensor:
    """Pictures (B, C, H, W) resized so that the shorter side has this length and the other is a multiple of four.

    Args:
        side: a multiple of four.
    """
    h, w = x.shape[2:]
    target = tuple(max(4 * round(length * side / min(h, w) / 4), side) for length in (h, w))
    if target == (h, w):
        return x
    return functional.interpolate(x, target, mode="bilinear", antialias=True)


def windows(features: Tensor) -> Tensor:
    """Soft windows around the nine places, round in fractions of the canvas: weights over a feature map's positions.

    Args:
        features: (B, C, h, w).

    Returns:
        (9, h * w), each row non-negative with sum one.
    """
    column, row = coordinates(features[:1])[0]  # each (h, w), in [-1, 1]
    middles = torch.tensor(PLACE_MIDDLES, device=features.device, dtype=features.dtype) * 2 - 1
    squared = (column - middles[:, 0, None, None]) ** 2 + (row - middles[:, 1, None, None]) ** 2
    return torch.softmax(-squared.flatten(1) / (2 * 0.3**2), dim=1)


# Column and row of each place's middle as fractions of the canvas, in reading order.
PLACE_MIDDLES = [(x, y) for y in (0.28, 0.5, 0.72) for x in (0.28, 0.5, 0.72)]

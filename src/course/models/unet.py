"""The U-Net that predicts the noise (Ronneberger et al. 2015, in the form of Ho et al. 2020, appendix B).

Its parts stand in the order of Diffusers' classes, so that weights move there by renaming keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from course import UserError
from course.models.attention import SelfAttention2d, SpatialTransformer
from course.models.layers import norm, zeroed


def sinusoids(t: Tensor, channels: int) -> Tensor:
    """Times as waves of many lengths, cosines first (Vaswani et al. 2017, section 3.5).

    Args:
        t: (B,), whole numbers or not.
        channels: an even number.

    Returns:
        (B, channels) float32 in [-1, 1].
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimedResBlock(nn.Module):
    """A residual block that is told the time: each channel is shifted by an amount that depends on it.

    The second convolution starts at zero, so at first the block hands on its input.
    """

    def __init__(self, before: int, after: int, time_channels: int, groups: int = 32):
        super().__init__()
        self.norm1, self.conv1 = norm(before, groups), nn.Conv2d(before, after, 3, padding=1)
        self.time = nn.Linear(time_channels, after)
        self.norm2, self.conv2 = norm(after, groups), zeroed(nn.Conv2d(after, after, 3, padding=1))
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # (B, before, H, W), (B, time) -> (B, after, H, W)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time(functional.silu(time))[:, :, None, None]  # one number a channel: (B, after, 1, 1)
        return self.shortcut(x) + self.conv2(functional.silu(self.norm2(h)))


class Level(nn.Module):
    """What happens at one resolution: residual blocks, each with attention after it or not, then a change of size."""

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module], resize: nn.Module | None):
        super().__init__()
        self.blocks, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resize = resize


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, 2 H, 2 W)
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """A denoiser: (x (B, C, H, W), t (B,), condition or None) -> (B, C, H, W).

    With ``context`` it is Stable Diffusion's network (Rombach et al. 2022, section 3.3).

    Args:
        channels: of the pictures or latents.
        widths: channels at each resolution, from the full one down; each further one has half the height and width.
        depth: residual blocks at each resolution.
        attention: resolutions (0 is the full one) with self-attention; if there are any, the middle has it too.
        classes: how many classes there are for conditions (B,); 0 for none.
        heads: of each attention.
        patch: side of the squares of pixels that become the channels of one position (space to depth): with 2 the full
            resolution has half the height and width, which on a CPU buys three to four times the speed.
        context: channels of the tokens of conditions (B, M, context), such as the M words of a text; each attention
            then looks at them too, and the middle has one in any case.  0 for none.
        groups: of each group norm, at most (fewer where a group would have less than eight channels).
        out_channels: of the answer, if they are not those of the input.

    Raises:
        UserError: attention at a resolution that there is not, or classes and context at once.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (64, 128, 128),
        depth: int = 2,
        attention: Sequence[int] = (1, 2),
        classes: int = 0,
        heads: int = 4,
        patch: int = 1,
        context: int = 0,
        groups: int = 32,
        out_channels: int | None = None,
    ):
        super().__init__()
        if not widths or any(not 0 <= level < len(widths) for level in attention):
            raise UserError(f"attention levels must lie in 0 .. {len(widths) - 1}, not {tuple(attention)}")
        if classes and context:
            raise UserError("a U-Net is conditioned on classes or on context, not on both: leave one of them at 0")
        self.channels, self.out_channels = channels, channels if out_channels is None else out_channels
        self.widths, self.depth, self.attention, self.halvings = tuple(widths), depth, tuple(attention), len(widths) - 1
        self.heads, self.patch, self.context, self.groups = heads, patch, context, groups
        time = 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], time), nn.SiLU(), nn.Linear(time, time))
        self.classes = nn.Embedding(classes, time) if classes else None
        self.conv_in = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)

        def attend(width: int) -> nn.Module:
            if context:
                return SpatialTransformer(width, heads, context, groups)
            return SelfAttention2d(width, heads, groups)

        def level(shapes: list[tuple[int, int]], which: int, resize: nn.Module | None) -> Level:
            blocks = [TimedResBlock(before, after, time, groups) for before, after in shapes]
            return Level(blocks, [attend(after) for _, after in shapes] if which in attention else [], resize)

        # Down: remember what each block and each halving gave
        self.down = nn.ModuleList()
        skips, now = [widths[0]], widths[0]
        for which, width in enumerate(widths):
            shapes = [(now if block == 0 else width, width) for block in range(depth)]
            halve = nn.Conv2d(width, width, 3, stride=2, padding=1) if which < self.halvings else None
            self.down.append(level(shapes, which, halve))
            skips += [width] * (depth + (halve is not None))
            now = width
        middle = [attend(now)] if attention or context else []
        self.middle = Level([TimedResBlock(now, now, time, groups) for _ in range(2)], middle, None)
        # Up: each block takes one memory back, the last one first
        self.up = nn.ModuleList()
        for which, width in reversed(list(enumerate(widths))):
            shapes = []
            for _ in range(depth + 1):
                shapes.append((now + skips.pop(), width))
                now = width
            self.up.append(level(shapes, which, Upsample(width) if which > 0 else None))
        self.norm_out = norm(now, groups)
        self.conv_out = zeroed(nn.Conv2d(now, self.out_channels * patch**2, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The noise in x.

        Raises:
            UserError: a size that cannot be halved often enough, or a condition that is missing, of another shape, or
                given where there should be none.
        """
        self._check(x, cond)
        time = self.time(sinusoids(t, self.widths[0]).to(x.dtype))  # (B, 4 width)
        if self.classes is not None:
            time = time + self.classes(cond)
        h = self.conv_in(functional.pixel_unshuffle(x, self.patch))  # (B, width, H / patch, W / patch)
        skips = [h]
        for level in self.down:
            for index, block in enumerate(level.blocks):
                h = block(h, time)
                h = level.attentions[index](h, cond) if level.attentions else h
                skips.append(h)
            if level.resize is not None:
                h = level.resize(h)
                skips.append(h)
        h = self.middle.blocks[0](h, time)
        h = self.middle.attentions[0](h, cond) if self.middle.attentions else h
        h = self.middle.blocks[1](h, time)
        for level in self.up:
            for index, block in enumerate(level.blocks):
                h = block(torch.cat([h, skips.pop()], 1), time)
                h = level.attentions[index](h, cond) if level.attentions else h
            h = level.resize(h) if level.resize is not None else h
        return functional.pixel_shuffle(self.conv_out(functional.silu(self.norm_out(h))), self.patch)

    def _check(self, x: Tensor, cond: Tensor | None) -> None:
        unit = self.patch * 2**self.halvings
        if any(side % unit for side in x.shape[2:]):
            raise UserError(f"height and width must be multiples of {unit}, not {tuple(x.shape[2:])}")
        if self.context:
            shape = tuple(cond.shape) if isinstance(cond, Tensor) else ()
            if len(shape) != 3 or (shape[0], shape[2]) != (len(x), self.context):
                wanted = f"({len(x)}, M, {self.context}), M tokens a picture"
                raise UserError(f"this U-Net needs a condition {wanted}, not {shape or type(cond).__name__}")
        elif (cond is None) != (self.classes is None):
            without = "this U-Net was built without classes or context: it takes no condition"
            raise UserError("this U-Net needs a class" if cond is None else without)

"""A spacetime autoencoder: causal convolutions over time, so that an image is a one-frame video (Yu et al. 2023).

The paper is "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (MAGVIT-v2), section 3.  Frame k
influences nothing before it: padding in time lies in the past alone, and norms look at one frame at a time.  So the
first frame is coded as if it were alone, and a video of any length can be worked through in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from course import UserError
from course.models.autoencoder import Autoencoder, Encoded, Gaussian
from course.models.layers import norm, zeroed

# What each causal layer has seen last, when a video comes in pieces; empty at its beginning.
Memory = dict[nn.Module, Tensor]


class CausalConv3d(nn.Conv3d):
    """A convolution over time, rows and columns whose output at a time has seen nothing later.

    Before the first frame there are zeros, so the first frame meets the last slice of the kernel alone: a 2-D
    convolution.  With a stride of s in time, 1 + s k frames become 1 + k.

    Args:
        before, after: channels.
        kernel: in time, and in rows and columns (odd there).
        stride: in time, and in rows and columns.
    """

    def __init__(self, before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)):
        (t, s), (step_t, step_s) = kernel, stride
        super().__init__(before, after, (t, s, s), (step_t, step_s, step_s), (0, s // 2, s // 2))
        self.past, self.overlap = t - 1, t - step_t  # frames seen before the first one, and before a later piece

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:  # (B, C, T, H, W) -> (B, after, T', H', W')
        if memory and self in memory:
            x = torch.cat([memory[self], x], 2)
        elif self.past:
            x = functional.pad(x, (0, 0, 0, 0, self.past, 0))
        if memory is not None and self.overlap > 0:
            memory[self] = x[:, :, -self.overlap :].clone()  # a copy: a view would keep the whole piece alive
        return super().forward(x)


def each_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer for pictures on every frame of (B, C, T, H, W) by itself."""
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


class CausalBlock(nn.Module):
    """A residual block: a causal 3-D convolution, then one within each frame; norms see one frame at a time.

    Args:
        channels: of input and output.
        reach: of the kernel in time; 1 leaves every frame alone.
    """

    def __init__(self, channels: int, reach: int):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), CausalConv3d(channels, channels, (reach, 3))
        self.norm2, self.conv2 = norm(channels), zeroed(CausalConv3d(channels, channels, (1, 3)))

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:  # (B, C, T, H, W) -> the same
        h = self.conv1(functional.silu(each_frame(self.norm1, x)), memory)
        return x + self.conv2(functional.silu(each_frame(self.norm2, h)), memory)


class Unfold(nn.Module):
    """More frames and pixels: channels become places (Shi et al. 2016, here in time too).

    Each frame becomes ``times`` frames; of the first one only the last is kept, since the first is alone:
    1 + k frames become 1 + times k.

    Args:
        before, after: channels.
        times: in time, and in rows and columns.
    """

    def __init__(self, before: int, after: int, times: tuple[int, int]):
        super().__init__()
        self.times, (t, s) = times, times
        self.conv = CausalConv3d(before, after * t * s * s, (1, 1))

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        (t, s), begins = self.times, memory is None or self not in memory
        if memory is not None:
            memory[self] = x.new_zeros(0)  # a mark: the first frame has passed
        x = rearrange(self.conv(x), "b (c t p q) n h w -> b c (n t) (h p) (w q)", t=t, p=s, q=s)
        return x[:, :, t - 1 :] if begins else x


class VideoEncoder(nn.Module):
    """Videos to what the bottleneck needs: (B, 1 + c k, channels, H, W) -> (B, out_channels, 1 + k, H / f, W / f).

    Args: as for :func:`video_autoencoder`; strides: in time and space, from each width to the next.
    """

    def __init__(self, channels: int, out_channels: int, widths: Sequence[int], depth: int, strides: Sequence):
        super().__init__()
        self.c, self.f = (_product(strides, axis) for axis in (0, 1))
        self.f *= 2  # the stem folds two by two pixels into channels
        reach = 3 if self.c > 1 else 1
        self.stem = CausalConv3d(4 * channels, widths[0], (reach, 3))
        self.layers = nn.ModuleList(CausalBlock(widths[0], reach) for _ in range(depth))
        for before, after, stride in zip(widths, widths[1:], strides):
            self.layers.append(CausalConv3d(before, after, (reach, 3), stride))
            self.layers.extend(CausalBlock(after, reach) for _ in range(depth))
        self.norm_out, self.conv_out = norm(widths[-1]), CausalConv3d(widths[-1], out_channels, (1, 3))

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """What the bottleneck needs; with a memory, of a piece that follows the ones before.

        Raises:
            UserError: a height or width that f does not divide, no frames, or other than 1 + c k (in a later piece,
                c k) of them.
        """
        if any(side % self.f or not side for side in x.shape[3:]):
            raise UserError(f"height and width must be multiples of f = {self.f}, not {tuple(x.shape[3:])}")
        frames, first = x.shape[1], 0 if memory else 1
        if frames < 1 or (frames - first) % self.c:
            allowed = ", ".join(str(first + self.c * k) for k in range(1 - first, 4 - first))
            raise UserError(f"a video must have {'1 + ' * first}{self.c} k frames ({allowed}, ...), not {frames}")
        h = self.stem(rearrange(x, "b t c (h p) (w q) -> b (c p q) t h w", p=2, q=2), memory)
        for layer in self.layers:
            h = layer(h, memory)
        return self.conv_out(functional.silu(each_frame(self.norm_out, h)), memory)


class VideoDecoder(nn.Module):
    """The encoder's mirror image: (B, 1 + k, latent, h, w) -> (B, 1 + c k, channels, h f, w f).

    Args: as for :class:`VideoEncoder`.
    """

    def __init__(self, channels: int, latent: int, widths: Sequence[int], depth: int, strides: Sequence):
        super().__init__()
        reach = 3 if _product(strides, 0) > 1 else 1
        self.conv_in = CausalConv3d(latent, widths[-1], (reach, 3))
        self.layers = nn.ModuleList(CausalBlock(widths[-1], reach) for _ in range(depth + 1))
        for before, after, times in reversed(list(zip(widths[1:], widths, strides))):
            self.layers.append(Unfold(before, after, times))
            self.layers.extend(CausalBlock(after, reach) for _ in range(depth))
        self.norm_out, self.conv_out = norm(widths[0]), CausalConv3d(widths[0], 4 * channels, (1, 3))

    def forward(self, z: Tensor, memory: Memory | None = None) -> Tensor:
        h = self.conv_in(z.transpose(1, 2), memory)
        for layer in self.layers:
            h = layer(h, memory)
        h = self.conv_out(functional.silu(each_frame(self.norm_out, h)), memory)
        return rearrange(h, "b (c p q) t h w -> b t c (h p) (w q)", p=2, q=2)


class VideoAutoencoder(Autoencoder):
    """An autoencoder of videos (B, T, C, H, W), whole or in pieces that share a memory."""

    def encode(self, x: Tensor, memory: Memory | None = None) -> Encoded:  # in [-1, 1] -> z: (B, T', latent, h, w)
        encoded = self.bottleneck(self.encoder(x, memory))
        return encoded._replace(z=encoded.z.transpose(1, 2))

    def decode(self, z: Tensor, memory: Memory | None = None) -> Tensor:  # -> (B, T, C, H, W), about [-1, 1]
        return self.decoder(z, memory)

    def encode_pieces(self, x: Tensor, piece: int = 4) -> Iterator[Tensor]:
        """The latents of a long video, up to ``piece`` frames of them at a time; together those of ``encode``.

        The memory that it takes beside the video itself does not depend on the length.
        """
        memory: Memory = {}
        first = 1 + self.encoder.c * (piece - 1)
        for part in (x[:, :first], *x[:, first:].split(self.encoder.c * piece, 1)):
            if part.shape[1] or not memory:
                yield self.encode(part, memory).z

    def decode_pieces(self, z: Tensor, piece: int = 4) -> Iterator[Tensor]:
        """The frames of a long video from ``piece`` frames of latents at a time; together those of ``decode``."""
        memory: Memory = {}
        for part in z.split(piece, 1):
            yield self.decode(part, memory)


def video_autoencoder(
    channels: int = 3,
    latent: int = 8,
    widths: Sequence[int] = (64, 96, 96),
    depth: int = 1,
    f: int = 4,
    c: int = 4,
    bottleneck: nn.Module | None = None,
) -> VideoAutoencoder:
    """A causal autoencoder that makes videos f times smaller on each side and c times shorter after the first frame.

    Args:
        channels: of the frames.
        latent: numbers at each place of the code.
        widths: channels at each resolution, from half the full one down.
        depth: residual blocks of the encoder at each resolution.
        f: 2, 4, 8, ...: compression of each side.
        c: 1, 2, 4, ...: compression of time.  With 1 every frame is coded alone, and no kernel reaches beyond it.
        bottleneck: :class:`Gaussian` by default.

    Raises:
        UserError: f or c is no such power of two, or there are too few widths to reach it.
    """
    halvings_s, halvings_t = f.bit_length() - 2, c.bit_length() - 1
    if f < 2 or c < 1 or f.bit_count() > 1 or c.bit_count() > 1:
        raise UserError(f"f must be 2, 4, 8, ... and c 1, 2, 4, ..., not {f} and {c}")
    if len(widths) <= max(halvings_s, halvings_t):
        raise UserError(f"f = {f} and c = {c} need {max(halvings_s, halvings_t) + 1} widths, not {tuple(widths)}")
    strides = [(1 + (n < halvings_t), 1 + (n < halvings_s)) for n in range(len(widths) - 1)]
    bottleneck = Gaussian() if bottleneck is None else bottleneck
    return VideoAutoencoder(
        VideoEncoder(channels, bottleneck.width * latent, widths, depth, strides),
        bottleneck,
        VideoDecoder(channels, latent, widths, depth, strides),
    )


def _product(strides: Sequence, axis: int) -> int:
    product = 1
    for stride in strides:
        product *= stride[axis]
    return product

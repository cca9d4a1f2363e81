"""Stable Diffusion's autoencoder: a small picture as code, with a Gaussian bottleneck (Rombach et al. 2022).

Its parts stand in the order of Diffusers' AutoencoderKL, so that weights move there by renaming keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from course import UserError
from course.models.attention import SelfAttention2d
from course.models.autoencoder import Autoencoder, Gaussian
from course.models.layers import ResBlock, norm
from course.models.unet import Upsample

EPS = 1e-6  # of the norms


class Downsample(nn.Module):
    """Half the size by a convolution that visits every second pixel, padded on the right and at the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H / 2, W / 2)
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


def _level(before: int, after: int, depth: int, groups: int, resize: type[nn.Module] | None) -> nn.Sequential:
    """What happens at one resolution: residual blocks, then a change of size or none."""
    blocks = [ResBlock(after if block else before, after, groups, EPS) for block in range(depth)]
    return nn.Sequential(*blocks, *([] if resize is None else [resize(after)]))


def _middle(channels: int, groups: int) -> nn.Sequential:
    """What happens at the code's resolution, where all positions see each other."""
    attention = SelfAttention2d(channels, 1, groups, EPS)
    before, after = (ResBlock(channels, groups=groups, eps=EPS) for _ in range(2))
    return nn.Sequential(before, attention, after)


class KLEncoder(nn.Module):
    """Pictures to what the bottleneck needs: (B, channels, H, W) -> (B, out_channels, H / f, W / f).

    Args: as for :func:`kl_autoencoder`; out_channels: ``bottleneck.width`` numbers for each number of the code.
    """

    def __init__(self, channels: int, out_channels: int, widths: Sequence[int], depth: int, groups: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        halvings = len(widths) - 1
        self.down = nn.Sequential()
        for which, (before, after) in enumerate(zip([widths[0], *widths], widths)):
            self.down.append(_level(before, after, depth, groups, Downsample if which < halvings else None))
        self.middle = _middle(widths[-1], groups)
        self.norm_out, self.conv_out = norm(widths[-1], groups, EPS), nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.quant = nn.Conv2d(out_channels, out_channels, 1)
        self.factor = 2**halvings

    def forward(self, x: Tensor) -> Tensor:
        """What the bottleneck needs.

        Raises:
            UserError: a height or width that f does not divide.
        """
        if any(side % self.factor for side in x.shape[2:]):
            raise UserError(f"height and width must be multiples of f = {self.factor}, not {tuple(x.shape[2:])}")
        h = self.middle(self.down(self.conv_in(x)))  # (B, widths[-1], H / f, W / f)
        return self.quant(self.conv_out(functional.silu(self.norm_out(h))))


class KLDecoder(nn.Module):
    """The encoder's mirror image: (B, latent, h, w) -> (B, channels, h f, w f).

    Each resolution has one block more than the encoder's.

    Args: as for :func:`kl_autoencoder`.
    """

    def __init__(self, channels: int, latent: int, widths: Sequence[int], depth: int, groups: int):
        super().__init__()
        self.post_quant = nn.Conv2d(latent, latent, 1)
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1], groups)
        mirrored = list(reversed(widths))
        self.up = nn.Sequential()
        for which, (before, after) in enumerate(zip([mirrored[0], *mirrored], mirrored)):
            self.up.append(_level(before, after, depth + 1, groups, Upsample if which < len(widths) - 1 else None))
        self.norm_out, self.conv_out = norm(widths[0], groups, EPS), nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.up(self.middle(self.conv_in(self.post_quant(z))))  # (B, widths[0], h f, w f)
        return self.conv_out(functional.silu(self.norm_out(h)))


def kl_autoencoder(
    channels: int = 3,
    latent: int = 4,
    widths: Sequence[int] = (32, 64, 128, 128),
    depth: int = 1,
    groups: int = 4,
    bottleneck: nn.Module | None = None,
) -> Autoencoder:
    """Stable Diffusion's first stage (Rombach et al. 2022, section 3.1 and appendix G), in any size.

    The code is a small picture, f = 2^(len(widths) - 1) times smaller on each side.  Stable Diffusion has the widths
    (128, 256, 512, 512), depth 2 and 32 groups.

    Args:
        channels: of the pictures.
        latent: numbers at each position of the code.
        widths: channels at each resolution, from the full one down; each further one has half the height and width.
        depth: residual blocks of the encoder at each resolution.
        groups: of every norm.
        bottleneck: :class:`Gaussian` by default.

    Raises:
        UserError: no widths, depth or groups, or a width whose channels do not make so many groups of eight or more.
    """
    if not widths or depth < 1 or groups < 1:
        raise UserError(f"widths, depth and groups must be 1 or more, not {tuple(widths)}, {depth} and {groups}")
    for width in widths:
        if width % groups or width < 8 * groups:
            allowed = f"multiples of {groups}, at least {8 * groups}"
            raise UserError(f"a width of {width} does not make {groups} groups: use {allowed}, or fewer groups")
    bottleneck = Gaussian() if bottleneck is None else bottleneck
    return Autoencoder(
        KLEncoder(channels, bottleneck.width * latent, widths, depth, groups),
        bottleneck,
        KLDecoder(channels, latent, widths, depth, groups),
    )

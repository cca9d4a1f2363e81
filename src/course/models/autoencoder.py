"""Autoencoders: an encoder, a bottleneck that says what kind of code passes, and a decoder.

Every autoencoder of the book has the same two methods, ``encode(x) -> Encoded`` and ``decode(z)``.  What makes it an
AE or a VAE is the bottleneck alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from course import UserError
from course.models.layers import ResBlock, norm


class Encoded(NamedTuple):
    """What an encoder hands over: the code, what the bottleneck charges for it, and its indices if it is discrete."""

    z: Tensor  # (B, D) or (B, C, h, w)
    loss: Tensor  # (B,): the bottleneck's own loss, one number an image
    codes: Tensor | None = None  # (B, h, w) int64 for a quantised code


class Point(nn.Module):
    """The plain autoencoder's bottleneck: the code is a point and costs nothing."""

    width = 1  # numbers that the encoder gives for each number of the code

    def forward(self, h: Tensor) -> Encoded:
        return Encoded(h, h.new_zeros(len(h)))


class Gaussian(nn.Module):
    """The VAE's bottleneck: the encoder names a normal distribution, the code is drawn from it (Kingma & Welling 2013).

    The code is drawn in training mode and is the mean in evaluation mode, as dropout acts in training alone.
    """

    width = 2  # a mean and a log-variance for each number of the code

    def forward(self, h: Tensor) -> Encoded:  # (B, 2D, ...) -> z: (B, D, ...)
        # in float32 also under bfloat16 autocast: eight bits of mantissa are too few for a KL term near zero
        mean, log_variance = h.float().chunk(2, dim=1)
        z = reparameterise(mean, log_variance) if self.training else mean
        return Encoded(z, kl_to_standard_normal(mean, log_variance))


def reparameterise(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A draw from N(mean, variance) through which gradients reach both (Kingma & Welling 2013, section 2.4).

    The randomness stands apart in eps; the draw is then an ordinary function of mean and variance.
    """
    eps = torch.randn_like(mean)
    return mean + torch.exp(0.5 * log_variance) * eps


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, I)) in nats, one number an image (Kingma & Welling 2013, appendix B).

    Args:
        mean, log_variance: (B, ...), the parameters of a normal distribution with independent components.

    Returns:
        (B,), zero where mean = 0 and log_variance = 0, positive everywhere else (up to rounding).
    """
    # expm1(v) is exp(v) - 1 without the cancellation that could make a tiny KL negative
    return 0.5 * (mean**2 + torch.expm1(log_variance) - log_variance).flatten(1).sum(1)


class Encoder(nn.Module):
    """A convolutional encoder that halves the picture several times and widens as it goes.

    Args:
        channels: of the picture, 1 or 3.
        width: channels at the first resolution; doubled at each further halving.
        halvings: how often height and width are halved.
    """

    def __init__(self, channels: int, width: int, halvings: int):
        super().__init__()
        widths = [channels] + [width * 2**level for level in range(halvings)]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), ResBlock(after)]
        self.layers = nn.Sequential(*layers, norm(widths[-1]), nn.SiLU())
        self.out_channels = widths[-1]

    def forward(
        self, x: Tensor
    ) -> Tensor:  # (B, C, H, W) -> (B, out_channels, H / 2^halvings, W / 2^halvings)
        return self.layers(x)


class Decoder(nn.Module):
    """The encoder's mirror image: each doubling computes four pixels as channels and unfolds them (Shi et al. 2016).

    Args: as for :class:`Encoder`.
    """

    def __init__(self, channels: int, width: int, halvings: int):
        super().__init__()
        widths = [width * 2**level for level in reversed(range(halvings))] + [channels]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:]):
            layers += [ResBlock(before), norm(before), nn.SiLU()]
            layers += [nn.Conv2d(before, 4 * after, 3, padding=1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)
        self.in_channels = widths[0]

    def forward(
        self, h: Tensor
    ) -> Tensor:  # (B, in_channels, h, w) -> (B, C, h * 2^halvings, w * 2^halvings)
        return self.layers(h)


class Autoencoder(nn.Module):
    """Two maps and what passes between them.

    Args:
        encoder: pictures (B, C, H, W) to ``bottleneck.width`` numbers for each number of the code.
        bottleneck: :class:`Point` or :class:`Gaussian`.
        decoder: codes back to pictures.
    """

    def __init__(self, encoder: nn.Module, bottleneck: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder

    def encode(self, x: Tensor) -> Encoded:  # (B, C, H, W) in [-1, 1]
        return self.bottleneck(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:  # -> (B, C, H, W), about [-1, 1]
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Encoded]:
        encoded = self.encode(x)
        return self.decode(encoded.z), encoded


def vector_autoencoder(
    size: tuple[int, int],
    channels: int,
    dim: int,
    *,
    width: int = 32,
    halvings: int = 2,
    bottleneck: nn.Module,
) -> Autoencoder:
    """An autoencoder whose code is one vector: convolutions, then one linear layer on each side of the bottleneck.

    Args:
        size: height and width of the pictures, divisible by 2^halvings.
        channels: 1 or 3.
        dim: how many numbers the code has.

    Raises:
        UserError: a size that cannot be halved that often.
    """
    h, w = (side // 2**halvings for side in size)
    if (h * 2**halvings, w * 2**halvings) != tuple(size) or min(h, w) < 1:
        raise UserError(
            f"size {size[0]}x{size[1]} cannot be halved {halvings} times; use multiples of {2**halvings}"
        )
    encoder, decoder = Encoder(channels, width, halvings), Decoder(channels, width, halvings)
    inner = encoder.out_channels * h * w
    return Autoencoder(
        nn.Sequential(encoder, nn.Flatten(), nn.Linear(inner, bottleneck.width * dim)),
        bottleneck,
        nn.Sequential(nn.Linear(dim, inner), nn.Unflatten(1, (decoder.in_channels, h, w)), decoder),
    )


def grid_autoencoder(
    channels: int,
    dim: int,
    *,
    width: int = 32,
    halvings: int = 2,
    depth: int = 1,
    bottleneck: nn.Module,
    out_channels: int | None = None,
) -> Autoencoder:
    """An autoencoder whose code is a small picture: f = 2^halvings times smaller on each side, ``dim`` numbers deep.

    Everything is a convolution, so one network takes pictures of any size that divides by f.

    Args:
        channels: of the pictures; of one-hot maps, how many values they have.
        dim: numbers at each position of the code.
        width: channels at the first resolution, doubled at each further halving.
        depth: residual blocks at the code's resolution, on each side: they let a position see its neighbours.
        out_channels: of what is decoded, if it differs.
    """
    encoder = Encoder(channels, width, halvings)
    decoder = Decoder(channels if out_channels is None else out_channels, width, halvings)
    inner = encoder.out_channels
    return Autoencoder(
        nn.Sequential(encoder, *[ResBlock(inner) for _ in range(depth)], nn.Conv2d(inner, bottleneck.width * dim, 1)),
        bottleneck,
        nn.Sequential(nn.Conv2d(dim, inner, 3, padding=1), *[ResBlock(inner) for _ in range(depth)], decoder),
    )


class Shift(nn.Module):
    """Adds a fixed vector (D,), which is not trained, to every vector of a batch."""

    def __init__(self, by: Tensor):
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, x: Tensor) -> Tensor:  # (B, D) -> (B, D)
        return x + self.by


def linear_autoencoder(mean: Tensor, dim: int) -> Autoencoder:
    """One matrix each way and nothing else: the autoencoder that PCA solves in closed form.

    Args:
        mean: (C, H, W), the mean training picture.  It is taken away before the first matrix and added after the
            second; left inside, it would be the only thing that the first thousand updates learn.
        dim: how many numbers the code has.
    """
    flat = mean.flatten()
    return Autoencoder(
        nn.Sequential(nn.Flatten(), Shift(-flat), nn.Linear(len(flat), dim, bias=False)),
        Point(),
        nn.Sequential(nn.Linear(dim, len(flat), bias=False), Shift(flat), nn.Unflatten(1, mean.shape)),
    )

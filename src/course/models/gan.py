"""The adversary of the VQGAN: many local verdicts, and how much they weigh (Esser et al. 2021, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from course import UserError
from course.models.layers import norm


class PatchDiscriminator(nn.Module):
    """Judges each patch of a picture by itself (PatchGAN, Isola et al. 2017, section 3.2.2).

    Args:
        channels: of the pictures.
        width: channels of the first layer; the further ones have twice as many.
        halvings: layers with stride 2, at least 1; 2 of them give each verdict a view of 34x34 pixels.

    Raises:
        UserError: fewer halvings.
    """

    def __init__(self, channels: int = 3, width: int = 32, halvings: int = 2):
        super().__init__()
        if halvings < 1:
            raise UserError(f"a patch discriminator halves the picture at least once, not {halvings} times")
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, halvings + 1):
            stride, before = 2 if level < halvings else 1, width if level == 1 else 2 * width
            layers += [nn.Conv2d(before, 2 * width, 4, stride, padding=1, bias=False), norm(2 * width)]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(2 * width, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, 1, h, w), above zero where it looks real
        return self.layers(x)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss: verdicts on real pictures should exceed 1, those on made ones stay below -1.

    Beyond these margins a verdict has no gradient, so easy patches are left alone (Lim & Ye 2017).
    """
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """The generator's side: raise the verdicts on what it makes."""
    return -fake.mean()


def slope_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """How steeply the mean verdict on a real picture changes with the picture: the squared norm of its gradient.

    A discriminator that is ahead grows ever steeper, and what it tells the generator ever wilder.  This holds it back
    (R1, Mescheder et al. 2018, section 4.1, there with the factor gamma / 2).

    Args:
        discriminator: pictures to verdicts.
        real: (B, C, H, W).

    Returns:
        A scalar with a graph to the discriminator's parameters: the mean over the pictures.
    """
    with torch.autocast(real.device.type, enabled=False):  # eight bits are too few for a gradient's gradient
        x = real.detach().float().clone().requires_grad_(True)
        verdicts = discriminator(x).mean((1, 2, 3)).sum()
        return torch.autograd.grad(verdicts, x, create_graph=True)[0].square().sum((1, 2, 3)).mean()


def adaptive_weight(
    reconstruction: Tensor, adversary: Tensor, layer: Tensor, least: float = 0.0, most: float = 1e4
) -> Tensor:
    """How much the adversary's loss counts: as much as moves the last layer as far as the reconstruction loss does.

    Args:
        reconstruction, adversary: the two losses, scalars with a graph.
        layer: weight of the decoder's last layer.
        least, most: bounds.  A good reconstruction has hardly a gradient, and would silence the adversary; an
            adversary that knows nothing yet has none either, and would get all the weight.

    Returns:
        |d reconstruction / d layer| / (|d adversary / d layer| + 1e-6), a number without gradient (Esser et al. 2021,
        eq. 7).
    """
    one, two = (torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversary))
    return (one / (two + 1e-6)).clamp(least, most).detach()

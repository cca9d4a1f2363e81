"""A text encoder and the U-Net that listens to it, trained together (Rombach et al. 2022, section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from course.models.text import TextEncoder
from course.models.unet import UNet


class TextToImage(nn.Module):
    """A predictor for latents: (z (B, C, h, w), t (B,), tokens (B, M)) -> (B, C, h, w).

    Sampling asks the U-Net many times about the same captions: call ``text`` once and ``unet`` with what it gives.

    Args:
        unet: with ``context`` equal to the text encoder's width.
        text: the encoder of captions.
    """

    def __init__(self, unet: UNet, text: TextEncoder):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(z, t, self.text(tokens))

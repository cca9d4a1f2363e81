"""Perceptual distance: two pictures are alike when a network sees the same in them, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from course import UserError

VGG_FILES = ("weights-vgg16-lpips.pth", "vgg16-397923af.pth")  # LPIPS's weights of channels, and the network's own


class Perceptual(nn.Module):
    """Distance in the feature maps of a network that is not trained any more (LPIPS, Zhang et al. 2018, eq. 1).

    Args:
        network: with ``stages(x)``, a list of feature maps (B, C, h, w); a judge, for example.
        weights: for each stage how much each of its channels counts, (C,); by default all alike, 1 / C.
    """

    def __init__(self, network: nn.Module, weights: Sequence[Tensor] | None = None):
        super().__init__()
        self.network, self.weights = network.eval().requires_grad_(False), weights

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of y from the originals x, both (B, C, H, W): (B,), 0 if they are equal; no gradient for x."""
        distance = 0.0
        with torch.no_grad():  # x is the original: no gradient is asked for
            original = self.network.stages(x)
        for stage, (one, two) in enumerate(zip(original, self.network.stages(y))):
            # At each position the channels form a vector; its length is divided out, so that no layer drowns another
            squared = (unit(one.float()) - unit(two.float())) ** 2  # (B, C, h, w)
            if self.weights is None:
                each = squared.mean(1)
            else:
                each = (squared * self.weights[stage].to(y.device).view(1, -1, 1, 1)).sum(1)
            distance = distance + each.mean((1, 2))
        return distance


def unit(features: Tensor) -> Tensor:
    """Feature maps (B, C, h, w) with the vector at each position scaled to length 1."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


class _Staged(nn.Module):
    def __init__(self, layers: nn.Module, normalise: Callable[[Tensor], Tensor]):
        super().__init__()
        self.layers, self.normalise = layers, normalise

    def stages(self, x: Tensor) -> list[Tensor]:
        return list(self.layers(self.normalise((x.expand(-1, 3, -1, -1) + 1) * 127.5)))


def vgg() -> Perceptual:
    """LPIPS as published, on VGG-16, through torch-fidelity's copy of the weights.

    Raises:
        UserError: its two files are not in torch's cache; they are named.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    missing = [name for name in VGG_FILES if not (folder / name).exists()]
    if missing:
        raise UserError(f"LPIPS on VGG needs {' and '.join(missing)} in {folder}; without them use a judge's features")

    from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS

    published = SampleSimilarityLPIPS("lpips")
    weights = [getattr(published, f"lin{stage}").model[-1].weight.flatten() for stage in range(published.L)]
    return Perceptual(_Staged(published.net, published.normalize), weights)

"""Frechet distance, precision and recall between two sets of pictures, in a judge's feature space.

Both come from torch-fidelity, to which the judge is registered as a feature extractor.  torch-fidelity has no
opinion about the type of the pictures, so ours go in as floats; only its own Inception network wants bytes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from course import UserError

if TYPE_CHECKING:
    from course.data import DataSet

JUDGES = ("glyphs", "shapes", "inception")
BATCH = 256  # pictures, or rows of a distance matrix, handled at once
NEIGHBOURS = 3  # of the k-nearest-neighbour balls, as in the paper
INCEPTION_URL = (  # torch-fidelity's conversion of the original network; the name ends with its SHA-256
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
_numbers = itertools.count()


def frechet(real: Tensor, fake: Tensor, judge: nn.Module | str) -> float:
    """Frechet distance between two sets of pictures: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) over
    features.

    m and S are the mean and the covariance of the judge's features over a set (Heusel et al. 2017, equation
    6; with Inception as the judge it is the published FID).  Zero for identical sets, larger for less alike
    ones.  With few samples the estimate comes out too high, so compare numbers of the same sample size, and
    with `floor`.

    real, fake: (N, C, H, W) in [-1, 1]; N may differ, at least 2 (more than the features are many for a
    covariance of full rank).
    judge: a network with ``features((B, C, H, W)) -> (B, D)``, or "glyphs", "shapes" (the shipped judges) or
    "inception" (torch-fidelity's; rounds the pictures to 8 bits, as published FIDs do, and downloads 91 MB
    once). Grey pictures are repeated to three channels for a judge of colours.
    Raises UserError for pictures of a wrong shape, type or range, colours before a grey judge, an unknown
    judge or weights that cannot be loaded.
    """
    answer = _fidelity(real, fake, judge, least=2, fid=True)
    return max(answer["frechet_inception_distance"], 0.0)  # rounding can leave identical sets just below zero


def precision_recall(real: Tensor, fake: Tensor, judge: nn.Module | str) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equation 2) in the judge's feature space.

    Each set's region is the union of balls around its samples, each reaching to the third nearest neighbour.
    Precision is the share of fake pictures inside the real region (are they good?), recall the share of real
    pictures inside the fake region (is nothing missing?).  Arguments and errors as for `frechet`, with at
    least 4 pictures in each set.
    """
    answer = _fidelity(
        real, fake, judge, least=NEIGHBOURS + 1, prc=True, prc_neighborhood=NEIGHBOURS, prc_batch_size=BATCH
    )
    return answer["precision"], answer["recall"]


def floor(reference: Tensor, pool: DataSet, judge: nn.Module | str, *, draws: int = 4, seed: int = 0) -> float:
    """What a perfect generator is expected to reach: real pictures drawn at random against the reference.

    A generator draws its classes at random, and so do we here; that alone keeps the distance above zero.  The
    distance of a single draw scatters by about half of its size, hence the mean of several.

    reference: (N, C, H, W) in [-1, 1], the real pictures that generated ones are compared with.
    pool: a set of other real pictures of the same kind, at least N; each draw takes N of them.
    draws: 1 or more. seed: which pictures are drawn.
    Raises UserError when the pool is too small or holds no images, and as `frechet`.
    """
    n = len(reference)
    if n > len(pool):
        raise UserError(f"floor draws {n} pictures from {pool.name}, which has {len(pool)}: take a smaller reference")
    if draws < 1:
        raise UserError(f"floor needs at least 1 draw, not {draws}")
    if "image" not in pool.batch([0]):
        raise UserError(f"floor needs a data set of images; {pool.name} has none")
    numbers = random.Random(seed)
    distances = []
    for _ in range(draws):
        items = numbers.sample(range(len(pool)), n)  # never builds the whole range
        images = [pool.batch(items[start : start + BATCH])["image"] for start in range(0, n, BATCH)]
        distances.append(frechet(reference, torch.cat(images), judge))
    return sum(distances) / draws


def _fidelity(
    real: Tensor, fake: Tensor, judge: nn.Module | str, least: int, **metrics: object
) -> dict[str, float]:
    """Ask torch-fidelity, with the judge registered for the time of the call."""
    real, fake = _checked(real, "real", least), _checked(fake, "fake", least)
    if real.shape[2:] != fake.shape[2:]:
        raise UserError(
            f"real and fake pictures differ in size: {tuple(real.shape[2:])} and {tuple(fake.shape[2:])}"
        )
    network = _network(judge)
    channels = getattr(network, "channels", None)
    if channels is None and real.shape[1] != fake.shape[1]:
        raise UserError(f"real pictures have {real.shape[1]} channels, fake ones {fake.shape[1]}")
    real, fake = _matched(real, channels), _matched(fake, channels)

    from torch_fidelity import calculate_metrics

    # fork_rng: a DataLoader draws a seed from the global generator, and measuring must not change what
    # follows
    with _registered(network) as name, torch.random.fork_rng(devices=[]):
        return calculate_metrics(
            input1=_Pictures(fake),  # torch-fidelity's precision is about its first input
            input2=_Pictures(real),
            feature_extractor=name,
            batch_size=BATCH,
            save_cpu_ram=True,  # no worker processes, and distance matrices a part at a time
            cuda=False,  # the judge stays where it is; see _registered
            cache=False,
            verbose=False,
            **metrics,
        )


class _Pictures(Dataset):
    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@contextmanager
def _registered(network: nn.Module) -> Iterator[str]:
    """Register the network's features with torch-fidelity under a new name; forget them afterwards."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    place = next(network.parameters(), torch.empty(0)).device

    class Features(FeatureExtractorBase):
        # The network is reached through the closure, not held as a submodule: torch-fidelity would switch off
        # its gradients for good.
        def __init__(self, name: str, layers: list[str], **options: object):
            super().__init__(name, layers)

        def forward(self, images: Tensor) -> tuple[Tensor]:
            features = network.features(images.to(place))
            if features.ndim != 2 or len(features) != len(images):
                raise UserError(f"a judge's features must be (B, D), got {tuple(features.shape)}")
            if not features.isfinite().all():
                raise UserError("the judge's features are not finite: are its weights sound?")
            return (features.cpu().double(),)  # double: means and distances then lose nothing

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

    name = f"course-{next(_numbers)}"
    modes = [(module, module.training) for module in network.modules()]
    register_feature_extractor(name, Features)
    network.eval()
    try:
        yield name
    finally:
        FEATURE_EXTRACTORS_REGISTRY.pop(name)
        for module, training in modes:
            module.training = training


def _checked(images: Tensor, which: str, least: int) -> Tensor:
    """The pictures, on the CPU, or UserError."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"{which} pictures must be a tensor (N, C, H, W), got {shape}")
    if len(images) < least:
        why = "a covariance" if least == 2 else f"balls that reach to neighbour {least - 1}"
        raise UserError(f"{why} needs at least {least} pictures, got {len(images)} {which} ones")
    if images.shape[1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{which} pictures must have 1 or 3 channels and some pixels, got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise UserError(f"{which} pictures must be floats in [-1, 1], got {images.dtype}")
    images = images.detach().float().cpu()
    low, high = images.min().item(), images.max().item()  # NaN wins both
    if not -1.001 <= low <= high <= 1.001:
        raise UserError(
            f"{which} pictures must lie in [-1, 1], got {low:.3g} to {high:.3g}; clamp(-1, 1) samples first"
        )
    return images


def _matched(images: Tensor, channels: int | None) -> Tensor:
    """The pictures with as many channels as the judge sees; None takes them as they are."""
    if channels in (None, images.shape[1]):
        return images
    if images.shape[1] == 3:
        raise UserError("the judge sees grey pictures only: choose the judge 'shapes' for colours")
    return images.expand(-1, channels, -1, -1)


def _network(judge: nn.Module | str) -> nn.Module:
    if isinstance(judge, str):
        if judge not in JUDGES:
            raise UserError(f"unknown judge {judge!r}; choose one of {', '.join(JUDGES)}")
        if judge == "inception":
            return _inception()
        from course.train import weights

        return weights.load(f"judge_{judge}")
    if not isinstance(judge, nn.Module) or not isinstance(getattr(judge, "features", None), Callable):
        raise UserError(
            f"a judge is one of {', '.join(JUDGES)} or a module with features(images), got {judge!r:.60}"
        )
    return judge


@lru_cache(maxsize=1)
def _inception() -> nn.Module:
    from torch_fidelity import FeatureExtractorInceptionV3

    path = _inception_weights()
    try:
        layers = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise UserError(
            f"{path} is no Inception network ({type(error).__name__}): delete it to load it anew"
        ) from None

    class Inception(nn.Module):
        channels = 3

        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def features(self, images: Tensor) -> Tensor:  # (B, 3, H, W) in [-1, 1] -> (B, 2048)
            return self.layers((images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8))[0]

    return Inception().eval()


def _inception_weights() -> Path:
    """The file of Inception's weights in torch's cache; downloaded and checked when it is not there."""
    from urllib.request import urlopen

    path = Path(torch.hub.get_dir(), "checkpoints", INCEPTION_URL.rsplit("/", 1)[1])
    if path.exists():
        return path
    try:
        urlopen(INCEPTION_URL, timeout=10).close()  # torch's downloader would wait for ever
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=path.stem[-8:], progress=False)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the Inception weights could not be downloaded ({reason}): "
            f"use the judge 'glyphs' or 'shapes', or place {path.name} in {path.parent}"
        ) from None
    return path

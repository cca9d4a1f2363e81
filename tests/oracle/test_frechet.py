"""Frechet distance, precision and recall (torch-fidelity behind a judge) against formulas written here."""

import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from course.measure import frechet, precision_recall

D = 6


class Flat(nn.Module):
    """Features are the pixels, so that the test decides the distribution of the features."""

    def features(self, images):
        return images.flatten(1)


class Filters(nn.Module):
    """A small network as the judge."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(D, 1, 3, 3, generator=generator))

    def features(self, images):
        return torch.tanh(torch.conv2d(images, self.weight)).mean((2, 3))


def as_pictures(features):
    """(N, D) -> (N, 1, 2, D / 2), inside [-1, 1]."""
    assert np.abs(features).max() <= 1
    return torch.from_numpy(features.reshape(len(features), 1, 2, -1).astype(np.float32))


def gaussian(rng, scale=0.1):
    mean = 0.1 * rng.standard_normal(D)
    root = scale * rng.standard_normal((D, D)) / np.sqrt(D)
    return mean, root @ root.T + 0.01 * scale * np.eye(D)


def samples(rng, n, mean, covariance):
    return mean + rng.standard_normal((n, D)) @ np.linalg.cholesky(covariance).T


def with_exact_moments(x, mean, covariance):
    """Samples moved and mixed so that their own mean and covariance are the ones asked for."""
    x = x - x.mean(0)
    own = np.linalg.cholesky(np.cov(x, rowvar=False))
    return x @ np.linalg.inv(own).T @ np.linalg.cholesky(covariance).T + mean


def by_sqrtm(m1, s1, m2, s2):
    """The definition, with scipy's matrix square root."""
    return np.sum((m1 - m2) ** 2) + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2)))


def by_eigh(x, y):
    """Not torch-fidelity's route: tr (S1 S2)^(1/2) = tr (R S2 R)^(1/2), R the symmetric root of S1."""
    m1, m2 = x.mean(0), y.mean(0)
    s1 = (x - m1).T @ (x - m1) / (len(x) - 1)
    s2 = (y - m2).T @ (y - m2) / (len(y) - 1)
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    return np.sum((m1 - m2) ** 2) + np.trace(s1) + np.trace(s2) - 2 * cross


@pytest.mark.parametrize("seed", range(4))
def test_closed_form_for_gaussians(seed):
    rng = np.random.default_rng(seed)
    (m1, s1), (m2, s2) = gaussian(rng), gaussian(rng)
    x = with_exact_moments(samples(rng, 500, m1, s1), m1, s1)
    y = with_exact_moments(samples(rng, 700, m2, s2), m2, s2)
    closed = by_sqrtm(m1, s1, m2, s2)
    assert frechet(as_pictures(x), as_pictures(y), Flat()) == pytest.approx(closed, rel=1e-5)


def test_closed_form_when_covariances_commute():
    rng = np.random.default_rng(9)
    a, b = rng.uniform(0.01, 0.04, D), rng.uniform(0.01, 0.04, D)
    m1, m2 = np.zeros(D), np.linspace(0, 0.2, D)
    x = with_exact_moments(rng.standard_normal((400, D)), m1, np.diag(a))
    y = with_exact_moments(rng.standard_normal((400, D)), m2, np.diag(b))
    expected = np.sum((m1 - m2) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet(as_pictures(x), as_pictures(y), Flat()) == pytest.approx(expected, rel=1e-5)


def test_random_samples_approach_the_closed_form_from_above():
    rng = np.random.default_rng(2)
    (m1, s1), (m2, s2) = gaussian(rng), gaussian(rng)
    closed = by_sqrtm(m1, s1, m2, s2)
    few, many = (
        np.mean(
            [
                frechet(as_pictures(samples(rng, n, m1, s1)), as_pictures(samples(rng, n, m2, s2)), Flat())
                for _ in range(repeats)
            ]
        )
        for n, repeats in ((30, 40), (20000, 1))
    )
    assert many == pytest.approx(closed, rel=0.05)
    assert few > many


@pytest.mark.parametrize("counts", [(300, 300), (50, 400), (4, 5)])  # the last: fewer samples than features
def test_same_as_an_independent_formula_behind_a_network(counts):
    generator = torch.Generator().manual_seed(3)
    real = torch.rand(counts[0], 1, 8, 8, generator=generator) * 2 - 1
    fake = (torch.rand(counts[1], 1, 8, 8, generator=generator) * 2 - 1) ** 3
    judge = Filters()
    with torch.no_grad():
        x, y = (judge.features(images).double().numpy() for images in (real, fake))
    assert frechet(real, fake, judge) == pytest.approx(by_eigh(x, y), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    "counts, spread", [((120, 120), 1.0), ((90, 600), 0.7), ((300, 40), 1.3), ((4, 9), 1.0)]
)
def test_precision_and_recall_by_brute_force(counts, spread):
    rng = np.random.default_rng(sum(counts))
    x = 0.1 * rng.standard_normal((counts[0], D))
    y = 0.1 * spread * rng.standard_normal((counts[1], D))
    real, fake = as_pictures(x), as_pictures(y)
    x, y = (images.flatten(1).double().numpy() for images in (real, fake))

    def radius(points, i):  # distance to the third nearest other point
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[2]

    def inside(query, points, radii):
        return any(np.linalg.norm(query - point) <= r for point, r in zip(points, radii))

    real_radii = [radius(x, i) for i in range(len(x))]
    fake_radii = [radius(y, i) for i in range(len(y))]
    precision = np.mean([inside(query, x, real_radii) for query in y])
    recall = np.mean([inside(query, y, fake_radii) for query in x])
    assert 0 < min(precision, recall) and (precision, recall) != (1, 1)
    assert precision_recall(real, fake, Flat()) == pytest.approx((precision, recall), abs=1e-6)


def test_inception_gives_what_torch_fidelity_gives_for_bytes(tmp_path, monkeypatch):
    """With random weights in place of the published ones, which would have to be downloaded."""
    from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics, feature_extractor_inceptionv3

    module = sys.modules["course.measure.frechet"]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / module.INCEPTION_URL.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *args, **options: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)

    generator = torch.Generator().manual_seed(1)
    real, fake = (torch.randint(0, 256, (3, 3, 8, 8), generator=generator).byte() for _ in range(2))
    fake = fake // 2
    module._inception.cache_clear()
    try:
        ours = frechet(real / 127.5 - 1, fake / 127.5 - 1, "inception")
    finally:
        module._inception.cache_clear()
    theirs = calculate_metrics(
        input1=Bytes(fake),
        input2=Bytes(real),
        fid=True,
        feature_extractor_weights_path=str(path),
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3) and ours > 0


class Bytes(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

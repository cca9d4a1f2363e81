"""PSNR, Frechet distance, precision, recall, expect and timing: what they return, refuse and leave behind."""

import math
import os
import random
import time
import urllib.request
from urllib.error import URLError

import pytest
import torch
from torch import nn

from course import UserError, measure
from course.measure import expect, floor, frechet, milliseconds_per_image, precision_recall, psnr


class Mean(nn.Module):
    """A judge with parameters and a mode: a few fixed filters, averaged over the picture."""

    def __init__(self, channels: int | None = None, width: int = 6):
        super().__init__()
        if channels is not None:
            self.channels = channels
        self.layers = nn.Sequential(nn.Conv2d(channels or 1, width, 3), nn.Tanh(), nn.Dropout(0.5))
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def features(self, images):
        return self.layers(images).mean((2, 3))


class Noise:
    """The part of a data set that floor uses."""

    name = "noise"

    def __init__(self, count: int):
        self.count = count
        self.asked = []

    def __len__(self):
        return self.count

    def batch(self, indices):
        self.asked.extend(indices)
        items = [torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(i)) for i in indices]
        return {"image": torch.stack(items) * 2 - 1}


def pictures(n=40, channels=1, seed=0, side=8, scale=1.0):
    values = torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return (values * 2 - 1) * scale


# PSNR


def test_psnr_of_a_known_error():
    x = torch.zeros(3, 1, 4, 4)
    assert psnr(x, x + 0.2) == pytest.approx(20.0, abs=1e-5)  # a tenth of the range
    assert psnr(x, x + 0.02) == pytest.approx(40.0, abs=1e-4)
    assert psnr(x, x) == math.inf


def test_psnr_is_the_mean_of_the_pictures_not_of_the_errors():
    x = torch.zeros(2, 3, 4, 4)
    y = x.clone()
    y[0] += 0.2
    y[1] += 0.02
    assert psnr(x, y) == pytest.approx(30.0, abs=1e-4)


def test_psnr_takes_videos_and_unclamped_reconstructions():
    video = torch.zeros(2, 5, 3, 4, 4)
    assert psnr(video, video + 2) == pytest.approx(0.0)


@pytest.mark.parametrize(
    "x, y, words",
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5), "equal shapes"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4), "at least one"),
        (torch.zeros(2, 4), torch.full((2, 4), math.nan), "NaN"),
        (torch.full((2, 4), 255.0), torch.zeros(2, 4), "[-1, 1]"),
    ],
)
def test_psnr_refuses(x, y, words):
    with pytest.raises(UserError) as error:
        psnr(x, y)
    assert words in str(error.value) and "\n" not in str(error.value)


# Frechet distance, precision and recall


def test_identical_sets():
    x = pictures()
    assert frechet(x, x, Mean()) == pytest.approx(0, abs=1e-9)
    assert precision_recall(x, x, Mean()) == (1.0, 1.0)


def test_frechet_grows_with_the_difference_and_is_symmetric():
    x, judge = pictures(), Mean()
    near, far = frechet(x, x * 0.9, judge), frechet(x, x * 0.3, judge)
    assert 0 < near < far
    assert frechet(x * 0.3, x, judge) == pytest.approx(far, rel=1e-9)


def test_pictures_are_not_quantised():
    x = pictures()
    assert frechet(x, x * 0.999, Mean()) > 0  # less than half a grey level of 8 bits for most pixels
    assert frechet(x, x * 0.999, Mean()) < frechet(x, x * 0.998, Mean())


def test_precision_falls_with_bad_samples_and_recall_with_missing_ones():
    class Pixels(nn.Module):
        def features(self, images):
            return images.flatten(1)[:, :2]

    real = pictures(200, side=2)
    dropped = real.clamp(min=0)[(real.flatten(1)[:, 0] > 0)]
    precision, recall = precision_recall(real, dropped, Pixels())
    assert recall < 0.6
    bad = real.clone()
    bad[:100] = -1.0  # half the fakes in a corner, tight together
    bad[:100] += 0.001 * torch.rand(100, 1, 2, 2)
    precision_bad, recall_bad = precision_recall(real * 0.5, bad, Pixels())
    assert precision_bad < 0.5 < recall_bad


def test_measuring_leaves_no_trace(capfd, tmp_path, monkeypatch):
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    judge = Mean(channels=1).train()
    judge.layers[0].eval()
    names = set(FEATURE_EXTRACTORS_REGISTRY)
    state, numbers = torch.get_rng_state(), random.getstate()
    x = pictures().requires_grad_()
    first = frechet(x, pictures(seed=2), judge)
    precision_recall(x, pictures(seed=2), judge)
    assert frechet(x, pictures(seed=2), judge) == first  # dropout was off
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == numbers
    assert judge.training and judge.layers[2].training and not judge.layers[0].training
    assert all(parameter.requires_grad for parameter in judge.parameters())
    assert set(FEATURE_EXTRACTORS_REGISTRY) == names
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path) == []


def test_registration_is_undone_after_an_error_and_names_never_clash():
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Failing(Mean):
        def features(self, images):
            return frechet(pictures(), pictures(seed=1), Mean()) + super().features(images) * math.nan

    names = set(FEATURE_EXTRACTORS_REGISTRY)
    with pytest.raises(UserError, match="not finite"):  # and a judge inside a judge finds its own network
        frechet(pictures(), pictures(), Failing())
    assert set(FEATURE_EXTRACTORS_REGISTRY) == names


def test_grey_pictures_before_a_colour_judge():
    judge = Mean(channels=3)
    grey, colour = pictures(), pictures(channels=3, seed=3)
    assert frechet(grey, colour, judge) == frechet(grey.expand(-1, 3, -1, -1), colour, judge)


def test_named_judges_come_from_the_shipped_weights(monkeypatch):
    from course.train import weights

    monkeypatch.setattr(weights, "load", {"judge_glyphs": Mean(1), "judge_shapes": Mean(3)}.__getitem__)
    assert frechet(pictures(), pictures(seed=1), "glyphs") == frechet(pictures(), pictures(seed=1), Mean(1))
    assert frechet(pictures(), pictures(seed=1), "shapes") > 0
    with pytest.raises(UserError, match="grey"):
        frechet(pictures(channels=3), pictures(), "glyphs")


X = pictures()


@pytest.mark.parametrize(
    "real, fake, judge, words",
    [
        (X[:1], X, Mean(), "at least 2"),
        (X, X[:0], Mean(), "at least 2"),
        (X[0], X, Mean(), "(N, C, H, W)"),
        ([1, 2], X, Mean(), "(N, C, H, W)"),
        (X, X * 2, Mean(), "[-1, 1]"),
        (X, X * math.nan, Mean(), "[-1, 1]"),
        (X, torch.where(X > 0.99, torch.inf, X), Mean(), "[-1, 1]"),
        ((X * 127 + 128).byte(), X, Mean(), "floats"),
        (X, pictures(side=9), Mean(), "size"),
        (X, pictures(channels=2), Mean(), "1 or 3 channels"),
        (X, pictures(channels=3), Mean(), "channels"),
        (X, pictures(channels=3), Mean(1), "grey"),
        (X, X, "digits", "glyphs, shapes, inception"),
        (X, X, nn.Identity(), "features"),
        (X, X, None, "features"),
    ],
)
def test_frechet_refuses(real, fake, judge, words):
    with pytest.raises(UserError) as error:
        frechet(real, fake, judge)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_precision_recall_needs_more_pictures_than_neighbours():
    with pytest.raises(UserError, match="at least 4"):
        precision_recall(X, X[:3], Mean())
    precision_recall(X[:4], X[:4], Mean())


def test_a_judge_with_maps_instead_of_vectors_is_refused():
    class Maps(nn.Module):
        def features(self, images):
            return images

    with pytest.raises(UserError, match=r"\(B, D\)"):
        frechet(X, X, Maps())


# Inception


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


def test_inception_without_network(torch_home, monkeypatch, capfd):
    def no_network(*args, **options):
        assert options["timeout"] <= 10
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    start = time.perf_counter()
    with pytest.raises(UserError, match="glyphs") as error:
        frechet(pictures(channels=3), pictures(channels=3), "inception")
    assert time.perf_counter() - start < 5
    assert "no route to host" in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert not torch_home.exists()


def test_damaged_inception_weights(torch_home):
    path = torch_home / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no network")
    with pytest.raises(UserError, match="delete it") as error:
        frechet(pictures(channels=3), pictures(channels=3), "inception")
    assert "\n" not in str(error.value)


# floor


def test_floor_draws_at_random_without_repeats_and_the_same_each_time():
    reference, pool = Noise(100).batch(range(100))["image"], Noise(300)
    value = floor(reference, pool, Mean(), draws=2)
    items = pool.asked[1:]  # the first is the look at what a batch holds
    first, second = items[:100], items[100:]
    assert len(set(first)) == len(set(second)) == 100 and first != second
    assert set(items) <= set(range(300)) and first != sorted(first)
    assert floor(reference, Noise(300), Mean(), draws=2) == value > 0
    assert floor(reference, Noise(300), Mean(), draws=2, seed=1) != value


def test_floor_is_the_mean_over_its_draws():
    reference, pool = Noise(100).batch(range(100))["image"], Noise(300)
    value = floor(reference, pool, Mean(), draws=3)
    items = pool.asked[1:]
    single = [
        frechet(reference, Noise(300).batch(items[start : start + 100])["image"], Mean()) for start in (0, 100, 200)
    ]
    assert value == pytest.approx(sum(single) / 3)


def test_floor_refuses():
    reference = Noise(30).batch(range(30))["image"]
    with pytest.raises(UserError, match="draws 30 pictures from .*, which has 20"):
        floor(reference, Noise(20), Mean())
    with pytest.raises(UserError, match="at least 1 draw"):
        floor(reference, Noise(40), Mean(), draws=0)
    videos = Noise(40)
    videos.batch = lambda indices: {"video": torch.zeros(1, 2, 1, 6, 6)}
    with pytest.raises(UserError, match="images"):
        floor(reference, videos, Mean())


# expect


@pytest.mark.parametrize(
    "bounds, unit, line",
    [
        ((21.5, 23.5), "dB", "PSNR: within 21.5 .. 23.5 dB"),
        ((21.5, 23.5), "", "PSNR: within 21.5 .. 23.5"),
        ((None, 23.5), "dB", "PSNR: at most 23.5 dB"),
        ((20, None), "dB", "PSNR: at least 20 dB"),
    ],
)
def test_expect_prints_the_same_for_every_passing_value(capsys, bounds, unit, line):
    for value in (21.5, 22.1234, torch.tensor(23.5)):
        assert expect("PSNR", value, *bounds, unit=unit) == float(value)
        assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize(
    "value, low, high",
    [
        (21.4, 21.5, 23.5),
        (23.6, 21.5, 23.5),
        (math.nan, 21.5, 23.5),
        (math.nan, None, 3),
        (math.nan, 3, None),
    ],
)
def test_expect_fails_outside(capsys, value, low, high):
    with pytest.raises(AssertionError, match=f"PSNR: {value:.6g} dB, expected"):
        expect("PSNR", value, low, high, "dB")
    assert capsys.readouterr().out == ""


def test_expect_refuses_bounds_that_are_no_range():
    for low, high in ((None, None), (2, 1), (math.nan, 1)):
        with pytest.raises(UserError, match="PSNR"):
            expect("PSNR", 1, low, high)


def test_a_notebook_does_not_echo_the_value(capsys):
    from IPython.core.formatters import DisplayFormatter

    assert DisplayFormatter().format(expect("PSNR", 22.0, 21, None)) == ({}, {})


# speed


def test_milliseconds_per_image(monkeypatch):
    clock, calls = [0.0], []

    def sample(count):
        calls.append(count)
        clock[0] += 0.05 if len(calls) in (1, 3) else 0.01  # a slow first call and one disturbed call
        return torch.zeros(count, 1)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert milliseconds_per_image(sample, 5, repeats=3) == pytest.approx(2.0)
    assert calls == [5] * 4


@pytest.mark.parametrize("count, repeats", [(0, 5), (-2, 5), (3, 0)])
def test_nothing_cannot_be_timed(count, repeats):
    with pytest.raises(UserError, match=f"must be at least 1, not {count} and {repeats}$"):
        milliseconds_per_image(torch.zeros, count, repeats=repeats)


def test_the_functions_stand_before_their_files():
    import course.measure.frechet  # noqa: F401  would put the module in the function's place if it came late

    for name in ("psnr", "frechet", "precision_recall", "floor", "expect", "milliseconds_per_image"):
        assert callable(getattr(measure, name))

"""Stable Diffusion's autoencoder and its recipe: shapes, loss, statistics of the codes, and bad input."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from course import UserError, data, measure
from course.data.captions import SIZES, STYLES
from course.models.autoencoder import Autoencoder, Encoded, Point
from course.models.kl import Downsample, kl_autoencoder
from course.models.quantise import VectorQuantiser
from course.train import weights
from course.train.fit import fit
from course.train.recipes import kl
from course.train.run import run

SMOKE = kl.PROFILES["smoke"]
WIDTHS = {1: (8,), 2: (8, 16), 4: (8, 16, 16), 8: (8, 16, 16, 24)}


def refused(message, call, *arguments):
    with pytest.raises(UserError, match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("f", WIDTHS)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_picture_comes_back_with_its_shape_from_a_code_f_times_smaller(f, depth):
    model = kl_autoencoder(1, 5, WIDTHS[f], depth, groups=1)
    made, encoded = model(torch.rand(2, 1, 16, 24) * 2 - 1)
    assert made.shape == (2, 1, 16, 24)
    assert encoded.z.shape == (2, 5, 16 // f, 24 // f) and encoded.loss.shape == (2,)


def test_the_quantised_one_has_codes():
    model = kl_autoencoder(3, 4, WIDTHS[4], groups=1, bottleneck=VectorQuantiser(16, 4))
    made, encoded = model(torch.rand(2, 3, 16, 24))
    assert made.shape == (2, 3, 16, 24) and encoded.codes.shape == (2, 4, 6)


@pytest.mark.parametrize("f, size", [(2, (7, 8)), (4, (16, 18)), (8, (12, 16))])
def test_a_size_that_f_does_not_divide_is_refused(f, size):
    model = kl_autoencoder(widths=WIDTHS[f], groups=1)
    refused(f"multiples of f = {f}, not \\({size[0]}, {size[1]}\\)", model.encode, torch.zeros(1, 3, *size))


def test_structures_that_cannot_be():
    build = lambda **changes: kl_autoencoder(**{"widths": (32, 64), **changes})
    refused("must be 1 or more", lambda: build(widths=()))
    refused("must be 1 or more", lambda: build(depth=0))
    refused("must be 1 or more", lambda: build(groups=0))
    refused("a width of 16 does not make 4 groups", lambda: build(widths=(16, 32)))
    refused("a width of 33 does not make 4 groups", lambda: build(widths=(32, 33)))


@pytest.mark.parametrize("groups, widths", [(4, (32, 64, 36)), (2, (16, 18)), (1, (9, 8))])
def test_every_norm_has_the_groups_asked_for_and_the_eps_of_stable_diffusion(groups, widths):
    norms = [m for m in kl_autoencoder(widths=widths, groups=groups).modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_groups, m.eps) for m in norms} == {(groups, 1e-6)}


def test_halving_looks_right_and_down():
    halve = Downsample(1)
    nn.init.zeros_(halve.conv.bias)
    nn.init.ones_(halve.conv.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # sums of 3x3 windows that begin at every second pixel; beyond the edge there is nothing
    above = [0 + 1 + 2 + 4 + 5 + 6 + 8 + 9 + 10, 2 + 3 + 6 + 7 + 10 + 11]
    below = [8 + 9 + 10 + 12 + 13 + 14, 10 + 11 + 14 + 15]
    expected = torch.tensor([above, below]).float()
    assert torch.equal(halve(x)[0, 0], expected)


# The recipe


def test_shapes_come_one_and_two_at_a_time_in_all_sizes_and_styles_of_the_training():
    one, two = kl.load(kl.PROFILES["full"], "train")
    assert one.size == two.size == (64, 64)
    for source, count, sizes in ((one, 1, SIZES), (two, 2, SIZES[:2])):
        factors = source.factors(range(3000))
        assert ((factors["kind"] >= 0).sum(1) == count).all()
        size, style = (set(factors[name][factors[name] >= 0]) for name in ("size", "style"))
        assert size == set(range(len(sizes))) and style == set(range(len(STYLES[:4])))
    batches = kl.batches(replace(SMOKE, size=32), 0)
    first, second = next(batches)["image"], next(batches)["image"]
    assert first.shape == second.shape == (8, 3, 32, 32)
    default = data.load("shapes", "train", size=32)
    assert torch.equal(first, next(data.batches(default, 8))["image"]) and not torch.equal(first, second)


def test_the_loss_is_the_error_of_a_pixel_and_the_weighted_divergence_of_a_number_of_the_code():
    settings = replace(SMOKE, weight=0.3)
    torch.manual_seed(0)
    model = kl.model(settings).train()
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    torch.manual_seed(5)
    total, parts = kl.loss(settings, model, {"image": x})
    torch.manual_seed(5)
    mean, log_variance = model.encoder(x).chunk(2, 1)
    q = Normal(mean, (0.5 * log_variance).exp())
    decoded = model.decode(mean + q.stddev * torch.randn_like(mean))
    # means over everything: pictures, channels, rows and columns
    error, pull = (decoded - x).square().mean(), kl_divergence(q, Normal(0.0, 1.0)).mean()
    assert parts["error"].item() == pytest.approx(error.item(), rel=1e-5)  # float32 sums of some thousand terms
    assert parts["bottleneck"].item() == pytest.approx(0.3 * pull.item(), rel=1e-5)
    assert total.item() == pytest.approx((error + 0.3 * pull).item(), rel=1e-5)
    assert pull > 0.01  # else the weight proves nothing


def test_the_quantised_loss_is_the_codebook_s_own():
    settings = replace(SMOKE, bottleneck="vq", weight=100.0)
    model = kl.model(settings).eval()
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    total, parts = kl.loss(settings, model, {"image": x})
    decoded, encoded = model(x)
    assert total.item() == pytest.approx(((decoded - x).square().mean() + encoded.loss.mean()).item(), rel=1e-6)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_few_updates_lower_the_error_of_pictures_never_seen(bottleneck):
    settings = replace(SMOKE, bottleneck=bottleneck, steps=40)
    torch.manual_seed(0)
    model = kl.model(settings)
    x = kl.load(settings, "test")[0].batch(range(64))["image"]
    error = lambda: (model.eval()(x)[0] - x).square().mean().item()
    before, task = error(), kl.build(settings, model)
    for _ in fit(task.players, task.batches, settings.steps, precision=settings.precision):
        pass
    assert error() < 0.5 * before


def test_moments_of_the_codes_are_those_of_the_training_pictures():
    """An encoder by hand: the code is the mean of three times the picture plus one, over squares of two by two."""

    class Squares(nn.Module):
        def forward(self, x):
            return nn.functional.avg_pool2d(3 * x + 1, 2)

    model = Autoencoder(Squares(), Point(), nn.Identity()).eval()
    mean, std = kl.latent_moments(SMOKE, model, 300)
    images = [data.load("shapes", "train", size=16, shapes=n).batch(range(150))["image"].double() for n in (1, 2)]
    squares = 3 * torch.cat(images).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) + 1
    assert mean == pytest.approx(squares.mean().item(), rel=1e-5)  # the pictures are float32
    assert std == pytest.approx(squares.std().item(), rel=1e-5)


def test_moments_leave_the_noise_of_the_code_out_and_take_what_pictures_there_are():
    settings = replace(SMOKE, dataset="digits", size=8)
    model = kl.model(settings).eval()
    found = kl.latent_moments(settings, model, 10**6)
    train_set = kl.load(settings, "train")[0]
    with torch.no_grad():
        z = model.encoder(train_set.batch(range(len(train_set)))["image"])[:, : settings.latent]
    # one pass over all pictures and passes over parts of them round differently
    assert found == pytest.approx((z.mean().item(), z.std().item()), rel=1e-4, abs=1e-6)


def test_metrics_of_a_model_that_copies():
    class Copier(nn.Module):
        def encode(self, x):
            return Encoded(x[:, :1], torch.zeros(len(x)))

        def forward(self, x):
            return x * 1.0, self.encode(x)

    settings = replace(SMOKE, size=32)
    found = kl.metrics(settings, Copier(), 200)
    measured = {"psnr", "frechet_reconstruction", "frechet_floor", "sharpness", "latent_mean", "latent_std"}
    assert set(found) == measured
    assert found["psnr"] == float("inf") and found["sharpness"] == pytest.approx(1.0)
    assert found["frechet_reconstruction"] < 2 * found["frechet_floor"]


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_result_can_be_used_and_a_training_resumed(tmp_path, bottleneck, monkeypatch):
    monkeypatch.setattr(kl, "metrics", lambda settings, model: {"psnr": 0.0})  # two thousand pictures take a while
    setting = f"bottleneck={bottleneck}"
    whole = run("kl", "smoke", out=tmp_path / "whole", overrides=[setting])
    run("kl", "smoke", out=tmp_path / "parts", overrides=[setting, "steps=3"])
    resumed = run("kl", "smoke", out=tmp_path / "parts", overrides=[setting], resume=True)
    one, other = (weights.read(path) for path in (whole, resumed))
    x = kl.load(SMOKE, "test")[0].batch(range(3))["image"]
    assert one(x)[0].shape == other(x)[0].shape == x.shape
    assert measure.psnr(x, one(x)[0]) > 0


def test_a_decoder_that_learns_on_leaves_the_latents_as_they_were():
    one, other = weights.load("kl"), weights.load("kl_styles")
    x = data.load("shapes", "test", size=64, styles=STYLES).batch(range(2))["image"]
    with torch.no_grad():
        z = one.encode(x).z
        assert torch.equal(other.encode(x).z, z)
        assert not torch.equal(other.decode(z), one.decode(z))
    network = kl.model(replace(weights.settings("kl"), start="kl"))
    assert not any(parameter.requires_grad for parameter in network.encoder.parameters())
    assert all(parameter.requires_grad for parameter in network.decoder.parameters())
    assert torch.equal(network.eval().encode(x).z, z)

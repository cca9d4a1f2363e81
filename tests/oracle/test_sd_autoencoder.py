"""Stable Diffusion's autoencoder against Diffusers' AutoencoderKL on the same weights, moved there by renaming keys."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from course import UserError
from course.export.autoencoder import autoencoder
from course.models.autoencoder import Gaussian, Point, grid_autoencoder
from course.models.kl import kl_autoencoder
from course.models.quantise import VectorQuantiser

# f = 1, 2, 4 and 8; every other setting takes several values
STRUCTURES = {
    1: dict(channels=1, latent=2, widths=(16,), depth=2, groups=2),
    2: dict(channels=3, latent=4, widths=(16, 8), depth=1, groups=1),
    4: dict(channels=3, latent=3, widths=(16, 32, 32), depth=2, groups=2),
    8: dict(channels=3, latent=4, widths=(32, 64, 96, 96), depth=1, groups=4),
}
SIZES = [(8, 8), (16, 32), (40, 24)]  # of pictures: (H, W)


def pair(f, dtype=torch.float32):
    """Ours with random weights, none of them zero, and theirs with the same."""
    torch.manual_seed(f)
    ours = kl_autoencoder(**STRUCTURES[f]).to(dtype).eval()
    for name, parameter in ours.named_parameters():
        # norms near one, so that the signal stays as large as in a trained network
        nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)
    theirs = autoencoder(ours, 0.2, 32)
    assert type(theirs) is AutoencoderKL and not theirs.training and theirs.dtype == dtype
    return ours, theirs


def apart(mine, reference):
    assert mine.shape == reference.shape
    return ((mine - reference).abs().max() / reference.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("f", STRUCTURES)
@pytest.mark.parametrize("size", SIZES)
# some thirty layers of rounding, 2^-24 and 2^-53 each, with a wide margin
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_same_weights_give_the_same_codes_and_pictures(f, size, dtype, tolerance):
    ours, theirs = pair(f, dtype)
    x = torch.rand(2, STRUCTURES[f]["channels"], *size, dtype=dtype) * 2 - 1
    mean, log_variance = ours.encoder(x).chunk(2, 1)
    reference = theirs.encode(x).latent_dist
    assert mean.shape == (2, STRUCTURES[f]["latent"], size[0] // f, size[1] // f)
    assert log_variance.abs().max() < 20  # theirs is clamped there: below, it is what the encoder says
    assert apart(mean, reference.mean) <= tolerance
    assert apart(log_variance, reference.logvar) <= tolerance
    z = torch.randn_like(mean)
    assert apart(ours.decode(z), theirs.decode(z).sample) <= tolerance
    # the whole way, with what the bottleneck hands on (in float32, whatever comes)
    code = ours.encode(x).z
    assert apart(code.double(), reference.mode().double()) <= 1e-5
    assert apart(ours.decode(code.to(dtype)), theirs(x).sample) <= 1e-5


@torch.no_grad()
def test_the_pull_is_theirs():
    ours, theirs = pair(4)
    x = torch.rand(3, 3, 16, 24) * 2 - 1
    # both sum in float32 some hundred positive terms
    assert apart(ours.encode(x).loss, theirs.encode(x).latent_dist.kl()) <= 1e-5


def test_every_weight_of_theirs_is_one_of_ours_or_a_zero_bias():
    ours, theirs = pair(8)
    zeros = {name for name, p in theirs.named_parameters() if p.abs().max() == 0}
    parts = [f"{half}.mid_block.attentions.0.to_{which}.bias" for half in ("encoder", "decoder") for which in "qkv"]
    assert zeros == set(parts)
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(theirs) - count(ours) == 6 * 96
    before = theirs.encoder.conv_in.weight.clone()
    nn.init.zeros_(ours.encoder.conv_in.weight)
    assert torch.equal(theirs.encoder.conv_in.weight, before)  # a copy


def test_the_configuration_is_complete():
    config = pair(8)[1].config
    assert config.scaling_factor == 0.2 and config.sample_size == 32 and config.latent_channels == 4
    assert list(config.block_out_channels) == [32, 64, 96, 96]
    assert config.layers_per_block == 1 and config.norm_num_groups == 4


def test_diffusers_can_save_it_and_read_it_again(tmp_path):
    _, theirs = pair(4)
    theirs.save_pretrained(tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x).sample, theirs(x).sample)
    assert again.config.scaling_factor == 0.2


@pytest.mark.parametrize(
    "model, words",
    [
        (kl_autoencoder(widths=(8,), groups=1, bottleneck=VectorQuantiser(4, 4)), "VectorQuantiser"),
        (kl_autoencoder(widths=(8,), groups=1, bottleneck=Point()), "Point"),
        (grid_autoencoder(3, 4, width=8, bottleneck=Gaussian()), "Sequential, Gaussian, Sequential"),
        (nn.Linear(2, 2), "NoneType"),
    ],
)
def test_other_structures_are_refused_in_one_line(model, words):
    with pytest.raises(UserError, match=words) as error:
        autoencoder(model, 1.0, 32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_above_zero(scale):
    with pytest.raises(UserError, match="scale must be"):
        autoencoder(kl_autoencoder(widths=(8,), groups=1), scale, 32)

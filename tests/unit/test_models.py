"""Autoencoders and judges: shapes, the properties that the chapters claim, and bad input."""

import pytest
import torch
from torch import nn

from course import UserError
from course.models.attention import SelfAttention2d
from course.models.autoencoder import (
    Gaussian,
    Point,
    kl_to_standard_normal,
    linear_autoencoder,
    reparameterise,
    vector_autoencoder,
)
from course.models.judge import PLACE_MIDDLES, GlyphJudge, MotionJudge, ShapeJudge, resized, windows
from course.models.layers import ResBlock, coordinates, norm
from course.models.stack import Stack, Timeless


@pytest.mark.parametrize("size, channels, halvings", [((8, 8), 1, 2), ((28, 28), 1, 2), ((32, 16), 3, 3)])
@pytest.mark.parametrize("bottleneck", [Point, Gaussian])
def test_a_picture_comes_back_with_its_shape(size, channels, halvings, bottleneck):
    model = vector_autoencoder(size, channels, 5, width=8, halvings=halvings, bottleneck=bottleneck())
    x = torch.rand(3, channels, *size) * 2 - 1
    reconstruction, encoded = model(x)
    assert reconstruction.shape == x.shape
    assert encoded.z.shape == (3, 5) and encoded.loss.shape == (3,) and encoded.codes is None


@pytest.mark.parametrize("size, halvings", [((28, 28), 3), ((2, 2), 2), ((28, 30), 2)])
def test_a_size_that_cannot_be_halved_is_refused(size, halvings):
    with pytest.raises(UserError, match=f"cannot be halved {halvings} times"):
        vector_autoencoder(size, 1, 2, halvings=halvings, bottleneck=Point())


def test_the_plain_bottleneck_is_free_and_deterministic():
    model = vector_autoencoder((8, 8), 1, 4, width=8, bottleneck=Point())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.encode(x).z, model.encode(x).z)
    assert model.encode(x).loss.abs().sum() == 0


def test_the_vae_draws_in_training_and_gives_the_mean_in_evaluation():
    model = vector_autoencoder((8, 8), 1, 4, width=8, bottleneck=Gaussian())
    x = torch.rand(2, 1, 8, 8)
    assert not torch.equal(model.encode(x).z, model.encode(x).z)
    model.eval()
    mean = model.encoder(x)[:, :4]
    assert torch.equal(model.encode(x).z, mean)


def test_draws_have_the_mean_and_the_deviation_asked_for():
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]).square().log()
    z = reparameterise(mean.expand(200_000, 2), log_variance.expand(200_000, 2))
    # standard errors: 3 / sqrt(200000) = 0.007 for a mean, 3 / sqrt(400000) = 0.005 for a deviation; 5 of them
    assert torch.allclose(z.mean(0), mean, atol=0.035)
    assert torch.allclose(z.std(0), torch.tensor([0.5, 3.0]), atol=0.025)


def test_gradients_pass_through_the_draw():
    """The trap of chapter 2: a plain sample has no gradient. d E[z^2] = 2 mu d mu + s^2 d log s^2."""
    torch.manual_seed(0)
    mean = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    z = reparameterise(mean.expand(400_000), log_variance.expand(400_000))
    by_mean, by_log_variance = torch.autograd.grad((z**2).mean(), [mean, log_variance])
    assert by_mean.item() == pytest.approx(2 * 0.8, abs=0.01)  # standard error 2 s / sqrt(n) = 0.002
    assert by_log_variance.item() == pytest.approx(torch.tensor(-1.0).exp().item(), abs=0.01)


def test_the_pull_is_zero_at_the_prior_and_positive_elsewhere():
    zero = torch.zeros(1, 3)
    assert kl_to_standard_normal(zero, zero).item() == 0
    for mean, log_variance in ((0.1, 0.0), (0.0, 0.1), (0.0, -0.1), (-2.0, 1.0)):
        assert kl_to_standard_normal(zero + mean, zero + log_variance).item() > 0


def test_the_pull_is_not_negative_however_small_it_is():
    tiny = torch.linspace(-3e-3, 3e-3, 1001)[:, None]
    assert (kl_to_standard_normal(torch.zeros_like(tiny), tiny) >= 0).all()


def test_the_bottleneck_computes_in_float32_under_bfloat16_autocast():
    model = vector_autoencoder((8, 8), 1, 4, width=8, bottleneck=Gaussian())
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(torch.rand(2, 1, 8, 8))
    assert encoded.loss.dtype == encoded.z.dtype == torch.float32


def test_the_vae_draws_by_reparameterisation():
    torch.manual_seed(0)
    h = torch.randn(3, 8)
    torch.manual_seed(7)
    z = Gaussian()(h).z
    torch.manual_seed(7)
    assert torch.equal(z, reparameterise(h[:, :4], h[:, 4:]))


def test_the_pull_adds_over_code_numbers_and_not_over_pictures():
    mean, log_variance = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    whole = kl_to_standard_normal(mean, log_variance)
    parts = sum(kl_to_standard_normal(mean[:, i], log_variance[:, i]) for i in range(5))
    assert whole.shape == (2,) and torch.allclose(whole, parts, rtol=1e-5)


def test_the_linear_autoencoder_is_affine_and_starts_at_the_mean():
    mean = torch.rand(1, 4, 6)
    model = linear_autoencoder(mean, 3)
    x, y = torch.rand(2, 1, 4, 6), torch.rand(2, 1, 4, 6)
    middle = model(0.5 * (x + y))[0]
    assert torch.allclose(middle, 0.5 * (model(x)[0] + model(y)[0]), atol=1e-6)
    assert torch.allclose(model.encode(mean[None]).z, torch.zeros(1, 3), atol=1e-6)
    assert torch.allclose(model.decode(torch.zeros(1, 3)), mean[None])
    assert {name for name, _ in model.named_parameters()} == {"encoder.2.weight", "decoder.0.weight"}


def test_a_residual_block_starts_as_the_identity():
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(ResBlock(16)(x), x)


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 0.25])
def test_attention_over_a_map_adds_the_eps_asked_for_to_the_variance(eps):
    """A map of -0.5 and 0.5 has the variance 0.25: with an eps of as much it is divided by the root of a half."""
    attention = SelfAttention2d(16, 1, groups=2, eps=eps)
    x = (torch.arange(16 * 4 * 4).view(1, 16, 4, 4) % 2).float() - 0.5
    seen = attention.norm(x)
    assert attention.norm.num_groups == 2 and torch.equal(attention(x), x)
    assert torch.allclose(seen, x / (0.25 + eps) ** 0.5, rtol=1e-6)  # float32


def test_coordinates_mean_the_same_place_at_every_resolution():
    small, large = coordinates(torch.zeros(1, 1, 2, 4)), coordinates(torch.zeros(1, 1, 4, 8))
    assert torch.allclose(nn.functional.avg_pool2d(large, 2), small)
    assert small[0, 0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]  # columns first
    assert small[0, 1, :, 0].tolist() == [-0.5, 0.5]


# Judges


def test_judges_take_every_canvas():
    glyphs, shapes, motion = GlyphJudge(width=8), ShapeJudge(6, 8, 3, 6, 4, width=16), MotionJudge(17, width=8)
    for size in ((16, 16), (28, 28), (32, 64), (48, 32)):
        assert glyphs(torch.zeros(2, 1, *size)).shape == (2, 10)
        answers = shapes(torch.zeros(2, 3, *size))
        assert answers["kind"].shape == (2, 9, 6) and answers["ground"].shape == (2, 4)
        assert shapes.features(torch.zeros(2, 3, *size)).shape == (2, 32)
    for frames in (1, 8, 16, 24):
        assert motion(torch.zeros(2, frames, 3, 32, 48)).shape == (2, 17)


def test_resizing_keeps_the_aspect_and_leaves_a_fitting_picture_alone():
    x = torch.rand(1, 3, 32, 48)
    assert resized(x, 32) is x
    assert resized(torch.rand(1, 3, 64, 128), 32).shape == (1, 3, 32, 64)
    assert resized(torch.rand(1, 3, 16, 16), 32).shape == (1, 3, 32, 32)


def test_each_place_looks_at_its_own_part_of_the_canvas():
    weights = windows(torch.zeros(1, 1, 8, 16))
    assert torch.allclose(weights.sum(1), torch.ones(9)) and (weights >= 0).all()
    column, row = coordinates(torch.zeros(1, 1, 8, 16))[0].flatten(1)
    for place, (x, y) in enumerate(PLACE_MIDDLES):
        centre = torch.stack([weights[place] @ column, weights[place] @ row])
        # the canvas cuts windows near its edge, which draws their centre inwards a little
        assert torch.allclose(centre, torch.tensor([x, y]) * 2 - 1, atol=0.1)


def test_the_motion_judge_is_given_what_changes_between_frames():
    judge, video = MotionJudge(17, width=8), torch.rand(2, 16, 3, 32, 32)
    seen = []
    judge.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    judge(video)
    frames, change = seen[0][:, :3], seen[0][:, 5:]
    assert torch.equal(frames, video.transpose(1, 2))
    assert change[:, :, 0].abs().max() == 0
    assert torch.allclose(change[:, :, 1:], frames[:, :, 1:] - frames[:, :, :-1])


@pytest.mark.parametrize("width", [8, 9, 28, 33, 44, 264])
def test_every_allowed_width_builds(width):
    norm(width)(torch.rand(1, width, 2, 2))
    GlyphJudge(width=width)


# Denoisers without the U-Net's shape


def test_a_residual_stack_keeps_its_input_and_a_plain_one_loses_it():
    torch.manual_seed(0)
    x, t, feature = torch.randn(2, 1, 8, 8), torch.tensor([1, 900]), torch.randn(2, 16, 4, 4)
    for residual in (True, False):
        stack = Stack(1, 16, blocks=6, residual=residual, patch=2)
        assert stack(x, t).shape == x.shape and stack(x, t).abs().max() == 0
        h, time = feature, torch.randn(2, 64)
        for block in stack.blocks:
            h = block(h, time)
        likeness = torch.corrcoef(torch.stack([h.flatten(), feature.flatten()]))[0, 1]
        assert torch.equal(h, feature) if residual else abs(likeness) < 0.3


@pytest.mark.parametrize("residual", [True, False])
def test_the_time_reaches_every_block_of_a_stack_unless_it_is_timeless(residual):
    torch.manual_seed(0)
    stack = Stack(1, 16, blocks=3, residual=residual)
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, early, late = torch.randn(1, 1, 8, 8), torch.tensor([3]), torch.tensor([800])
    assert not torch.allclose(stack(x, early), stack(x, late))
    timeless = Timeless(stack)
    assert torch.equal(timeless(x, early), timeless(x, late)) and torch.equal(timeless(x, late), stack(x, 0 * late))
    stack(x, late).square().sum().backward()
    for block in stack.blocks:
        assert block.time.weight.grad.abs().sum() > 0

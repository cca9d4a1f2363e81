"""The VQGAN's parts: verdicts, their losses and weight, the perceptual distance; and the recipe that joins them."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from torch import nn

from course import UserError
from course.models.gan import PatchDiscriminator, adaptive_weight, hinge_discriminator, hinge_generator, slope_penalty
from course.models.judge import GlyphJudge
from course.models.perceptual import VGG_FILES, Perceptual, unit, vgg
from course.train import checkpoint
from course.train.fit import fit
from course.train.recipes import vqgan

# Losses


def test_the_discriminator_s_hinge_loss_asks_for_a_margin_of_one():
    verdicts = torch.tensor([2.0, 1.0, 0.0, -1.0]).view(2, 1, 1, 2)
    # real: max(0, 1 - v) = 0, 0, 1, 2; made: max(0, 1 + v) = 3, 2, 1, 0
    assert hinge_discriminator(verdicts, verdicts).item() == 0.5 * (3 / 4 + 6 / 4)
    assert hinge_discriminator(verdicts[:1], verdicts[1:]).item() == 0.5 * (0 + 0.5)


def test_verdicts_beyond_the_margin_have_no_gradient():
    real = torch.tensor([3.0, 0.5, -4.0], requires_grad=True)
    made = torch.tensor([-3.0, 0.5, 4.0], requires_grad=True)
    hinge_discriminator(real, made).backward()
    assert real.grad.tolist() == pytest.approx([0, -1 / 6, -1 / 6])  # half of a mean of three
    assert made.grad.tolist() == pytest.approx([0, 1 / 6, 1 / 6])


def test_the_generator_raises_every_verdict():
    made = torch.tensor([2.0, -6.0], requires_grad=True)
    loss = hinge_generator(made)
    loss.backward()
    assert loss.item() == 2 and made.grad.tolist() == [-0.5, -0.5]


# The adaptive weight


def decoder():
    torch.manual_seed(0)
    layers, h = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.Conv2d(8, 3, 3)), torch.randn(2, 4, 9, 9)
    return layers, layers(h)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_after_weighting_both_losses_move_the_last_layer_equally_far(scale):
    layers, made = decoder()
    reconstruction, adversary = (made - 1).pow(2).mean(), scale * made.sin().mean()
    weight = adaptive_weight(reconstruction, adversary, layers[2].weight)
    assert weight.shape == () and not weight.requires_grad
    one, two = (
        torch.autograd.grad(loss, layers[2].weight, retain_graph=True)[0].flatten().double().pow(2).sum().sqrt()
        for loss in (reconstruction, weight * adversary)
    )
    small = torch.autograd.grad(adversary, layers[2].weight, retain_graph=True)[0].norm().item()
    # 1e-6 is added to a gradient of at least 1e-4 or so; the rest is rounding
    assert two.item() == pytest.approx(one.item(), rel=1e-6 / small + 1e-5)
    (reconstruction + weight * adversary).backward()  # the graph is still there


def test_the_adaptive_weight_is_bounded():
    layers, made = decoder()
    reconstruction = (made - 1).pow(2).mean()
    assert adaptive_weight(reconstruction, 0 * made.mean(), layers[2].weight).item() == 1e4
    assert adaptive_weight(reconstruction, 0 * made.mean(), layers[2].weight, most=7.0).item() == 7
    assert adaptive_weight(0 * made.mean(), made.mean(), layers[2].weight).item() == 0
    assert adaptive_weight(0 * made.mean(), made.mean(), layers[2].weight, least=0.25).item() == 0.25


# The penalty


def test_the_penalty_is_the_squared_slope_of_the_mean_verdict():
    """Of a linear map the slope is known: two verdicts, each the sum of half a picture times a weight."""
    network = nn.Conv2d(1, 1, (1, 3), stride=(1, 3), bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, -2.0, 3.0]).view(1, 1, 1, 3))
    real = torch.randn(5, 1, 1, 6)
    penalty = slope_penalty(network, real)
    assert penalty.item() == pytest.approx(2 * (1 + 4 + 9) / 2**2)  # two patches with a share of one half each
    penalty.backward()  # d/dw of w^2 / 2
    assert network.weight.grad.flatten().tolist() == pytest.approx([1.0, -2.0, 3.0])


def test_the_penalty_agrees_with_finite_differences_and_ignores_autocast():
    torch.manual_seed(0)
    network, real = PatchDiscriminator(1, 4).double(), torch.randn(2, 1, 16, 16)
    small = PatchDiscriminator(1, 4)
    small.load_state_dict(network.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        penalty = slope_penalty(small, real).item()
    x, total = real.double(), 0.0
    with torch.no_grad():
        for place in range(256):
            nudge = torch.zeros(2, 1, 256, dtype=torch.float64)
            nudge[:, :, place] = 1e-5
            nudge = nudge.view(2, 1, 16, 16)
            total += ((network(x + nudge) - network(x - nudge)).mean((1, 2, 3)) / 2e-5).square().mean().item()
    assert penalty == pytest.approx(total, rel=1e-4)  # float32 against float64


# Verdicts


def local(halvings=2):
    """A discriminator without its norms, whose statistics are of the whole picture."""
    torch.manual_seed(0)
    model = PatchDiscriminator(3, 8, halvings).eval()
    assert sum(isinstance(layer, nn.GroupNorm) for layer in model.layers) == halvings
    for number, layer in enumerate(model.layers):
        if isinstance(layer, nn.GroupNorm):
            model.layers[number] = nn.Identity()
    return model


def view(model, x, row, column):
    """Rows and columns of the picture that one verdict depends on, as two ranges."""
    gradient = torch.autograd.grad(model(x)[0, 0, row, column], x)[0][0].abs().sum(0)
    rows, columns = (gradient.sum(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1)


@pytest.mark.parametrize("halvings, side", [(1, 16), (2, 34), (3, 70)])
def test_a_verdict_sees_a_patch_of_known_size(halvings, side):
    """Back from one verdict: 4, 7 pixels, then 2 n + 2 with each stride."""
    model, x = local(halvings), torch.randn(1, 3, 128, 128, requires_grad=True)
    middle = model(x).shape[2] // 2
    rows, columns = view(model, x, middle, middle)
    assert len(rows) == len(columns) == side
    rows_next, columns_next = view(model, x, middle, middle + 1)
    assert rows_next == rows and columns_next.start - columns.start == 2**halvings


def test_verdicts_are_local_but_for_the_norms():
    model, x = local(), torch.randn(1, 3, 96, 96, requires_grad=True)
    verdicts = model(x).detach()
    rows, columns = view(model, x, 10, 12)
    other = torch.randn(1, 3, 96, 96)
    other[..., rows.start : rows.stop, columns.start : columns.stop] = x.detach()[
        ..., rows.start : rows.stop, columns.start : columns.stop
    ]
    changed = model(other)
    # the same 34 x 34 numbers, added up by a convolution that may cut the picture in other ways
    assert changed[0, 0, 10, 12].item() == pytest.approx(verdicts[0, 0, 10, 12].item(), abs=1e-6)
    assert (changed - verdicts).abs().amax() > 0.01
    normed = PatchDiscriminator(3, 8)
    assert [len(axis) for axis in view(normed, x, 10, 12)] == [96, 96]


def test_verdicts_of_any_size_and_number_of_channels():
    assert PatchDiscriminator(1, 8)(torch.zeros(2, 1, 28, 28)).shape == (2, 1, 5, 5)
    assert PatchDiscriminator(3, 8)(torch.zeros(2, 3, 32, 64)).shape == (2, 1, 6, 14)


@pytest.mark.parametrize("halvings", [0, -1])
def test_a_discriminator_without_halvings_is_refused(halvings):
    with pytest.raises(UserError, match=f"at least once, not {halvings} times") as error:
        PatchDiscriminator(halvings=halvings)
    assert "\n" not in str(error.value)


# Perceptual distance


def judge():
    torch.manual_seed(0)
    network = GlyphJudge(width=8)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("weighted", [False, True])
def test_the_distance_is_that_of_unit_vectors_position_by_position(weighted):
    network = judge()
    x, y = torch.rand(2, 1, 28, 28) * 2 - 1, torch.rand(2, 1, 28, 28) * 2 - 1
    maps = list(zip(network.stages(x), network.stages(y)))
    torch.manual_seed(1)
    weights = [torch.rand(one.shape[1]) for one, _ in maps] if weighted else None
    expected = torch.zeros(2, dtype=torch.float64)
    for stage, (one, two) in enumerate(maps):
        count, height, width = one.shape[1:]
        share = weights[stage].double() if weighted else torch.full((count,), 1 / count, dtype=torch.float64)
        for b in range(2):
            for i in range(height):
                for j in range(width):
                    u, v = one[b, :, i, j].detach().double(), two[b, :, i, j].detach().double()
                    far = ((u / u.dot(u).sqrt() - v / v.dot(v).sqrt()) ** 2 * share).sum()
                    expected[b] += far / (height * width)
    # float32 against float64, means of hundreds of numbers
    assert torch.allclose(Perceptual(network, weights)(x, y).double(), expected, rtol=1e-4)


def test_equal_pictures_are_at_distance_zero_and_others_are_not():
    perceptual, x = Perceptual(judge()), torch.rand(3, 1, 28, 28)
    assert perceptual(x, x).tolist() == [0, 0, 0]
    assert (perceptual(x, x + 0.1 * torch.randn_like(x)) > 0).all()


def test_the_gradient_reaches_the_reconstruction_alone():
    network = judge().train()
    perceptual, x = Perceptual(network), torch.rand(2, 1, 28, 28, requires_grad=True)
    y = torch.rand(2, 1, 28, 28, requires_grad=True)
    before = [parameter.clone() for parameter in network.parameters()]
    perceptual(x, y).sum().backward()
    assert x.grad is None and y.grad.abs().sum() > 0 and y.grad.isfinite().all()
    assert not network.training and [p for p in perceptual.parameters() if p.requires_grad] == []
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(*both) for both in zip(before, network.parameters()))


def test_flat_features_have_no_direction_and_no_bad_gradient():
    class Dead(nn.Module):
        def stages(self, x):
            return [0 * x]

    y = torch.rand(1, 3, 4, 4, requires_grad=True)
    distance = Perceptual(Dead())(torch.rand(1, 3, 4, 4), y)
    distance.sum().backward()
    assert distance.item() == 0 and y.grad.isfinite().all()
    assert torch.allclose(unit(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten(), torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("there", [(), VGG_FILES[:1], VGG_FILES[1:]])
def test_lpips_without_its_files_names_them(tmp_path, monkeypatch, there):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for name in there:
        (tmp_path / "checkpoints" / name).touch()
    with pytest.raises(UserError, match="without them use a judge") as error:
        vgg()
    said = str(error.value)
    assert "\n" not in said and str(tmp_path) in said
    assert all((name in said) == (name not in there) for name in VGG_FILES)


# The recipe


SMOKE = replace(vqgan.PROFILES["smoke"], steps=6, start=0.5, precision="no")


def task(settings=SMOKE):
    torch.manual_seed(0)
    return vqgan.build(settings, vqgan.model(settings))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bit-by-bit equality is promised there."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    PartialState._reset_state()


def test_the_adversary_waits_and_then_both_learn():
    made = task()
    watched = [next(made.players[0].module.decoder.parameters()), next(made.players[1].module.parameters())]
    before = [weight.detach().clone() for weight in watched]
    moved, verdicts = [], []
    for progress in fit(made.players, made.batches, SMOKE.steps):
        moved.append([not torch.equal(weight, old) for weight, old in zip(watched, before)])
        before = [weight.detach().clone() for weight in watched]
        verdicts.append("autoencoder/verdict" in progress.losses)
        assert ("discriminator/hinge" in progress.losses) == (progress.losses["discriminator"] != 0) == (len(moved) > 3)
    assert moved == [[True, False]] * 3 + [[True, True]] * 3  # of the autoencoder, its decoder
    assert verdicts == [False] * 3 + [True] * 3


def test_with_the_adversary_the_codes_rest_and_the_decoder_learns():
    """Encoder and codebook, with its counts, stay bit by bit; before the start both learn."""
    for start, rests in ((0.0, True), (1.0, False)):
        made = task(replace(SMOKE, start=start, steps=2))
        network = made.players[0].module
        before = {key: value.clone() for key, value in network.state_dict().items()}
        for _ in fit(made.players, made.batches, 2):
            pass
        after = network.state_dict()
        same = {key: torch.equal(value, before[key]) for key, value in after.items()}
        for part in ("encoder", "bottleneck"):
            assert any(key.startswith(part) for key in same)
            assert all(value for key, value in same.items() if key.startswith(part)) == rests
        assert not all(value for key, value in same.items() if key.startswith("decoder"))


def test_every_fifth_update_pays_the_penalty_in_each_data_set():
    made = task(replace(SMOKE, start=0.0, penalty=1e3))
    losses = [p.losses for p in fit(made.players, made.batches, 6)]
    paid = [one["discriminator"] - one["discriminator/hinge"] > 1e-4 for one in losses]
    assert paid == [True, False, False, False, False, True]  # an even and an odd one: the sets take turns


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_the_generator_s_loss_is_the_sum_of_its_parts(start):
    settings = replace(SMOKE, perceptual=0.3, least=0.0, most=1e4, start=start)
    made = task(settings)
    batch = next(made.batches(0))
    torch.manual_seed(0)  # restarts draw
    loss, parts = made.players[0].loss(batch)
    rebuilt = parts["error"] + 0.3 * parts["perceptual"]
    assert parts["error"].item() == pytest.approx((batch["made"] - batch["image"]).pow(2).mean().item(), rel=1e-5)
    if start == 1:
        assert (loss - rebuilt).item() > 0 and "verdict" not in parts  # the bottleneck's
        return
    assert loss.item() == pytest.approx((rebuilt + parts["weight"] * parts["verdict"]).item(), rel=1e-6)
    verdict = -made.players[1].module(batch["made"]).mean().item()
    assert parts["verdict"].item() == pytest.approx(verdict, abs=1e-6)
    # the ratio of the gradients' lengths at the last layer
    layer = vqgan.last_layer(made.players[0].module)
    norms = [torch.autograd.grad(one, layer, retain_graph=True)[0].norm().item() for one in (rebuilt, parts["verdict"])]
    assert parts["weight"].item() == pytest.approx(norms[0] / norms[1], rel=1e-2)  # 1e-6 beside a small norm
    assert layer.shape[0] == 4 * 3 and math.prod(layer.shape[1:]) == 8 * 9  # four pixels of three channels
    made = task(replace(settings, least=7.0, most=7.0))
    assert made.players[0].loss(next(made.batches(0)))[1]["weight"].item() == 7


def test_resume_equals_an_uninterrupted_run(tmp_path):
    """Stopped before the adversary has started, and again after."""
    made = task()
    straight = [p.losses for p in fit(made.players, made.batches, 6, checkpoint=tmp_path / "straight")]
    losses = []
    for stop in (2, 4, 6):
        made = task()
        parts = fit(made.players, made.batches, 6, checkpoint=tmp_path / "parts", resume=stop > 2)
        for progress in parts:
            losses.append(progress.losses)
            if progress.step == stop:
                break
        parts.close()
    assert losses == straight
    (one, _), (two, _) = checkpoint.load(tmp_path / "straight"), checkpoint.load(tmp_path / "parts")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)

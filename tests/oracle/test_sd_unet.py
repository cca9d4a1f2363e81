"""The text-conditioned U-Net and its parts against Diffusers' classes on the same weights."""

import math

import pytest
import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from torch import nn
from torch.nn import functional

from course import UserError
from course.export.unet import renamed, unet
from course.models.attention import Attention, FeedForward, SelfAttention2d, SpatialTransformer, attend
from course.models.concat import Concatenated
from course.models.unet import UNet

CONTEXT = 12
# relative to the largest number; float64 also bounds the share of the times, which are float32 in both
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def shaken(model, seed=0):
    """The same model with random weights, none of them zero, that keep numbers near one."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.1)
    return model


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def small(**options):
    return UNet(4, **({"widths": (16, 32), "attention": (0,), "heads": 4, "context": CONTEXT, "groups": 2} | options))


# Networks: two and three levels, attention nowhere but in the middle, at some levels and at all
NETWORKS = {
    "upper": {},
    "lower": {"attention": (1,), "depth": 1},
    "all": {"attention": (0, 1), "heads": 2},
    "middle": {"attention": ()},
    "three": {"widths": (16, 32, 48), "attention": (1, 0), "depth": 1},
    "three all": {"widths": (32, 16, 32), "attention": (0, 1, 2), "out_channels": 3},
}


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_weights_give_the_same_noise(network, dtype, tolerance):
    ours = shaken(small(**NETWORKS[network])).to(dtype)
    theirs = unet(ours, sample_size=8)
    assert theirs.dtype == dtype and not theirs.training
    x, context = torch.randn(3, 4, 8, 12, dtype=dtype), torch.randn(3, 5, CONTEXT, dtype=dtype)
    with torch.no_grad():
        for t in ([0, 1, 999], [500, 500, 37]):
            t = torch.tensor(t)
            assert relative(ours(x, t, context), theirs(x, t, context).sample) <= tolerance


def test_stable_diffusion_1_is_one_of_these_networks():
    """Its published size and the shape of every tensor; nothing is computed."""
    with torch.device("meta"):
        ours = UNet(4, (320, 640, 1280, 1280), depth=2, attention=(0, 1, 2), context=768, heads=8)
        theirs = UNet2DConditionModel(cross_attention_dim=768)  # its defaults are otherwise those of Stable Diffusion 1
    assert sum(parameter.numel() for parameter in ours.parameters()) == 859_520_964
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in renamed(ours).items()} == shapes
    heads = {module.heads for module in theirs.modules() if hasattr(module, "to_q")}
    assert heads == {module.heads for module in ours.modules() if isinstance(module, Attention)} == {8}


def test_the_exported_network_is_a_copy_that_can_be_saved_and_loaded(tmp_path):
    ours = shaken(small())
    theirs = unet(ours, sample_size=8)
    theirs.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert again.config.sample_size == 8
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, CONTEXT)
    with torch.no_grad():
        expected = theirs(x, t, context).sample
        nn.init.zeros_(ours.conv_in.weight)
        assert torch.equal(theirs(x, t, context).sample, expected)
        assert torch.equal(again(x, t, context).sample, expected)


@pytest.mark.parametrize("options, message", [
    ({"context": 0}, "context=0 and patch=1"),
    ({"patch": 2}, "context=12 and patch=2"),
    ({"groups": 4}, r"4 groups in all its norms.*multiples of 8 \* groups, not \(16, 32\)"),
])  # fmt: skip
def test_another_structure_is_not_exported(options, message):
    with pytest.raises(UserError, match=message):
        unet(small(**options), sample_size=8)


# Parts


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("heads", [1, 4])
def test_a_spatial_transformer_is_that_of_stable_diffusion(heads, dtype, tolerance):
    network = shaken(small(widths=(32,), heads=heads, groups=4)).to(dtype)
    ours, theirs = network.down[0].attentions[1], unet(network, sample_size=8).down_blocks[0].attentions[1]
    assert isinstance(ours, SpatialTransformer) and isinstance(theirs, Transformer2DModel)
    # small numbers on which the norm's epsilon, 1e-6 and not 1e-5, can be seen
    x, context = 0.01 * torch.randn(3, 32, 4, 6, dtype=dtype), torch.randn(3, 7, CONTEXT, dtype=dtype)
    with torch.no_grad():
        assert relative(ours(x, context), theirs(x, context, return_dict=False)[0]) <= tolerance


def test_a_spatial_transformer_starts_as_the_identity():
    x = torch.randn(2, 16, 4, 6)
    assert torch.equal(SpatialTransformer(16, 2, CONTEXT)(x, torch.randn(2, 5, CONTEXT)), x)


def test_the_feed_forward_layer_is_its_formula():
    """(x V + c) * Phi(x W + b) (x W + b), times the second matrix; gelu by the normal distribution."""
    layer = shaken(FeedForward(8)).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    (v, w), (c, b) = layer.to_gated.weight.chunk(2), layer.to_gated.bias.chunk(2)
    gate = x @ w.T + b
    assert gate.shape == (3, 5, 32)
    opened = (x @ v.T + c) * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    assert torch.allclose(layer(x), opened @ layer.to_out.weight.T + layer.to_out.bias, atol=1e-13)  # float64


def test_every_position_can_ask_every_token_and_order_of_tokens_means_nothing():
    layer = shaken(SpatialTransformer(16, 2, CONTEXT)).double()
    x, context = torch.randn(1, 16, 4, 6, dtype=torch.float64), torch.randn(1, 5, CONTEXT, dtype=torch.float64)
    context.requires_grad_()
    for row, column in ((0, 0), (3, 5)):
        (slope,) = torch.autograd.grad(layer(x, context)[0, :, row, column].square().sum(), context)
        assert (slope[0].norm(dim=-1) > 1e-9).all()
    assert torch.allclose(layer(x, context.flip(1)), layer(x, context), atol=1e-12)  # sums in another order


@pytest.mark.parametrize("attention", [(), (0, 1)])
def test_gradients_reach_the_context_and_every_parameter(attention):
    ours = shaken(small(attention=attention))
    context = torch.randn(3, 5, CONTEXT, requires_grad=True)
    ours(torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3]), context).square().sum().backward()
    assert (context.grad.norm(dim=-1) > 0).all()
    assert [name for name, p in ours.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_what_attention_does_can_be_replaced_everywhere():
    ours, seen = shaken(small()), []

    def watch(attention, x, context):
        seen.append(context.shape[1])
        return attend(attention, x, context)

    for module in ours.modules():
        if isinstance(module, Attention):
            module.processor = watch
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, CONTEXT)
    ours(x, t, context)
    # the positions themselves, then the words: two blocks down, one in the middle at half the size, three up
    assert seen == 2 * [64, 3] + [16, 3] + 3 * [64, 3]


def test_a_fresh_network_answers_zero_in_the_channels_asked_for():
    ours = small(out_channels=3, patch=2)
    answer = ours(torch.randn(2, 4, 16, 8), torch.tensor([1, 2]), torch.randn(2, 5, CONTEXT))
    assert answer.shape == (2, 3, 16, 8) and answer.abs().max() == 0


def test_bfloat16_answers_nearly_as_float32():
    ours = shaken(small(attention=(0, 1)))
    x, t, context = torch.randn(4, 4, 8, 8), torch.tensor([3, 777, 0, 999]), torch.randn(4, 5, CONTEXT)
    with torch.no_grad():
        exact = ours(x, t, context)
        with torch.autocast("cpu", torch.bfloat16):
            rough = ours(x, t, context).float()
    # 2^-9 relative a rounding, some sixty of them that add up like a random walk: 1.5 %; twice that
    assert 0 < (rough - exact).square().mean().sqrt() / exact.square().mean().sqrt() <= 0.03


def test_a_groups_number_reaches_every_norm():
    for context in (0, CONTEXT):
        norms = [m for m in small(context=context).modules() if isinstance(m, nn.GroupNorm)]
        assert {m.num_groups for m in norms} == {2}
    assert SelfAttention2d(32).norm.num_groups == 4  # the usual one: eight channels each


def test_bad_conditions_of_the_u_net():
    ours, x, t = small(), torch.zeros(2, 4, 8, 8), torch.tensor([0, 1])
    wanted = r"needs a condition \(2, M, 12\), M tokens a picture, not "
    for cond, told in (
        (None, "NoneType"),
        (["a red circle", "a blue star"], "list"),
        (torch.tensor([1, 2]), r"\(2,\)"),
        (torch.zeros(2, CONTEXT), r"\(2, 12\)"),
        (torch.zeros(2, 5, 13), r"\(2, 5, 13\)"),
        (torch.zeros(1, 5, CONTEXT), r"\(1, 5, 12\)"),
    ):
        with pytest.raises(UserError, match=wanted + told):
            ours(x, t, cond)
    with pytest.raises(UserError, match="not on both"):
        small(classes=3)
    with pytest.raises(UserError, match="without classes or context"):
        small(context=0)(x, t, torch.zeros(2, 5, CONTEXT))


# Conditions beside the picture


def test_a_concatenated_condition_is_more_channels():
    network = shaken(UNet(3, (16, 32), attention=(), out_channels=2))
    ours = Concatenated(network)
    x, t, cond = torch.randn(3, 2, 8, 12), torch.tensor([1, 50, 999]), torch.randn(3, 1, 8, 12)
    with torch.no_grad():
        found = ours(x, t, cond)
        # the first convolution is linear: that of both is the sum of those of each
        weight, bias = network.conv_in.weight, network.conv_in.bias
        first = functional.conv2d(x, weight[:, :2], bias, padding=1) + functional.conv2d(cond, weight[:, 2:], padding=1)
        network.conv_in.register_forward_hook(lambda layer, inputs, out: first)
        expected = network(torch.zeros(3, 3, 8, 12), t)
    assert found.shape == x.shape
    assert relative(found, expected) <= 1e-5  # float32, two sums in another order, about twenty layers


def test_bad_conditions_beside_the_picture():
    ours = Concatenated(UNet(3, (16,), attention=(), out_channels=2))
    x, t = torch.zeros(2, 2, 8, 4), torch.tensor([0, 1])
    wrong = (None, torch.zeros(2), torch.zeros(2, 1, 4, 8), torch.zeros(1, 1, 8, 4), torch.zeros(2, 8, 4))
    for cond, told in zip(wrong, ("NoneType", r"\(2,\)", r"\(2, 1, 4, 8\)", r"\(1, 1, 8, 4\)", r"\(2, 8, 4\)")):
        with pytest.raises(UserError, match=r"must be \(2, C, 8, 4\), as large as x, not " + told):
            ours(x, t, cond)

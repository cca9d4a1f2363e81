"""The U-Net against Diffusers' UNet2DModel on the same weights, moved there by renaming keys."""

import re

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.nn import functional

from course import UserError
from course.models.attention import Attention
from course.models.unet import TimedResBlock, UNet, sinusoids

WIDTHS = (32, 64, 64)
RULES = (
    (r"^time\.0\.", "time_embedding.linear_1."),
    (r"^time\.2\.", "time_embedding.linear_2."),
    (r"^classes\.", "class_embedding."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^(down|up)\.(\d+)\.", r"\1_blocks.\2."),
    (r"^middle\.", "mid_block."),
    (r"\.blocks\.(\d+)\.", r".resnets.\1."),
    (r"\.time\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.attention\.to_out\.", r"\1.to_out.0."),
    (r"(attentions\.\d+)\.attention\.", r"\1."),
    (r"^(down_blocks\.\d+)\.resize\.", r"\1.downsamplers.0.conv."),
    (r"^(up_blocks\.\d+)\.resize\.conv\.", r"\1.upsamplers.0.conv."),
)


def pair(classes=0, patch=1):
    """Our U-Net with random weights, none of them zero, and theirs with the same."""
    torch.manual_seed(0)
    ours = UNet(3, WIDTHS, depth=2, attention=(1, 2), classes=classes, heads=4, patch=patch)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1)
    theirs = UNet2DModel(
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=4,
        num_class_embeds=classes or None,
    )
    renamed = {}
    for key, value in ours.state_dict().items():
        for pattern, replacement in RULES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return ours, theirs, renamed


def theirs_like_ours(theirs):
    """Their group norms in our groups (8 channels each), their heads by number, their queries without bias."""
    for module in theirs.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups, module.eps = max(1, module.num_channels // 8), 1e-5
        if hasattr(module, "to_q"):
            module.heads = 4
            for name in ("to_q", "to_k", "to_v"):
                nn.init.zeros_(getattr(module, name).bias)
            module.rescale_output_factor = 1.0


@pytest.mark.parametrize("classes", [0, 5])
def test_the_same_weights_give_the_same_noise(classes):
    ours, theirs, renamed = pair(classes)
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    assert unexpected == [] and all(re.search(r"\.to_[qkv]\.bias$", key) for key in missing)
    theirs_like_ours(theirs)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 777])
    label = torch.tensor([1, 4]) if classes else None
    with torch.no_grad():
        mine, reference = ours(x, t, label), theirs(x, t, class_labels=label).sample
    assert (mine - reference).abs().max() <= 1e-4 * reference.abs().max()  # float32, about thirty layers


def test_patches_are_a_network_on_unshuffled_pictures():
    ours, theirs, renamed = pair(patch=2)
    theirs.load_state_dict(renamed, strict=False)
    theirs_like_ours(theirs)
    x, t = torch.randn(2, 3, 32, 16), torch.tensor([3, 777])
    ours, theirs, x = ours.double(), theirs.double(), x.double()
    with torch.no_grad():
        reference = theirs(functional.pixel_unshuffle(x, 2), t).sample
        found = ours(x, t)
    assert found.shape == x.shape
    # the sinusoids are float32 in both, written in other ways: 1e-4 in their angles of up to 777
    assert (found - functional.pixel_shuffle(reference, 2)).abs().max() <= 1e-5 * reference.abs().max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention_is_scaled_dot_product_attention(dtype, tolerance):
    torch.manual_seed(0)
    ours = Attention(32, 4).to(dtype)
    x, context = torch.randn(2, 5, 32, dtype=dtype), torch.randn(2, 7, 32, dtype=dtype)
    heads = lambda y: y.unflatten(-1, (4, 8)).transpose(1, 2)
    q, k, v = heads(ours.to_q(x)), heads(ours.to_k(context)), heads(ours.to_v(context))
    expected = ours.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    assert (ours(x, context) - expected).abs().max() <= tolerance


def test_bfloat16_answers_nearly_as_float32():
    ours, _, _ = pair(classes=5)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, t, label = torch.randn(4, 3, 16, 16), torch.tensor([3, 777, 0, 999]), torch.tensor([1, 4, 0, 2])
    with torch.no_grad():
        exact = ours(x, t, label)
        with torch.autocast("cpu", torch.bfloat16):
            rough = ours(x, t, label)
    # 2^-9 relative a rounding, about thirty layers that add up like a random walk: 1 %; three times that
    error = (rough.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error <= 0.03


def test_the_time_reaches_every_block():
    """The trap of chapter 3: a network that is not told the time."""
    ours, _, _ = pair()
    blocks = [m for m in ours.modules() if isinstance(m, TimedResBlock)]
    seen = {}
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda m, inputs, out, number=number: seen.setdefault(number, []).append(inputs[1]))
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        early, late = ours(x, torch.tensor([3])), ours(x, torch.tensor([700]))
        assert not torch.allclose(early, late)
        assert len(seen) == len(blocks) == 2 * 3 + 2 + 3 * 3
        for number, (first, second) in seen.items():
            feature = torch.randn(1, blocks[number].conv1.in_channels, 4, 4)
            assert not torch.allclose(blocks[number](feature, first), blocks[number](feature, second))


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = Attention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.to_q.weight, ours.to_k.weight, ours.to_v.weight]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(ours.to_out.weight)
        theirs.out_proj.bias.copy_(ours.to_out.bias)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    assert torch.allclose(ours(x, context), theirs(x, context, context)[0], atol=1e-6)
    assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)


def test_times_are_distinguished_and_waves_have_unit_length():
    waves = sinusoids(torch.arange(1000), 64)
    assert torch.allclose(waves[:, :32] ** 2 + waves[:, 32:] ** 2, torch.ones(1000, 32), atol=1e-5)
    apart = torch.cdist(waves, waves) + 9 * torch.eye(1000)
    assert apart.min() > 0.1


def test_a_fresh_network_answers_zero_and_every_parameter_learns_later():
    ours = UNet(1, WIDTHS, classes=3)
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])
    assert ours(x, t, label).abs().max() == 0  # the last layer starts at zero
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours(x, t, label).square().sum().backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_bad_input():
    with pytest.raises(UserError, match="multiples of 4"):
        UNet(1, WIDTHS)(torch.zeros(1, 1, 10, 8), torch.tensor([0]))
    with pytest.raises(UserError, match="needs a class"):
        UNet(1, WIDTHS, classes=2)(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    with pytest.raises(UserError, match="without classes"):
        UNet(1, WIDTHS)(torch.zeros(1, 1, 8, 8), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(UserError, match="do not divide by 5 heads"):
        Attention(32, 5)
    with pytest.raises(UserError, match="must lie in 0 .. 2"):
        UNet(1, WIDTHS, attention=(3,))

"""Low-rank changes against peft, and against what they must and must not do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from course import UserError
from course.data.tokens import LENGTH, TOKENS
from course.export import adapter as file
from course.export.pipeline import pipeline
from course.models.ldm import TextToImage
from course.models.lora import ATTENTION, Adapter, LoRA
from course.models.text import TextEncoder
from course.models.unet import UNet
from course.train import checkpoint
from course.train.latents import LatentSpace
from course.train.recipes import kl, ldm


@pytest.fixture
def unet():
    """A small U-Net of Diffusers whose answer is not zero."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=4,
    ).eval()


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(1)
    z, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return z, torch.tensor([3, 700]), text


@torch.no_grad()
def answer(unet, given):
    return unet(*given).sample


def filled(adapter, seed=2):
    """The same adapter with random numbers in B too, small enough that the answers stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for change in adapter.changes().values():
            change.lora_B.weight.normal_(0, 0.2, generator=generator)
    return adapter


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("rank, alpha", [(4, None), (3, 12.0)])
def test_peft_with_the_same_factors_gives_the_same_answers_and_merged_weights(unet, given, rank, alpha):
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    adapter = filled(Adapter(unet, rank, alpha))
    ours, theirs = copy.deepcopy(unet), unet
    adapter.attach(ours)
    theirs.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(ATTENTION)), "ours")
    layers = {name: layer for name, layer in theirs.named_modules() if isinstance(layer, LoraLayer)}
    assert tuple(layers) == adapter.names  # the same layers are chosen
    for name, change in adapter.changes().items():
        layers[name].lora_A["ours"].load_state_dict(change.lora_A.state_dict())
        layers[name].lora_B["ours"].load_state_dict(change.lora_B.state_dict())
    assert relative(answer(ours, given), answer(theirs, given)) <= 1e-6  # the same products in the same order

    adapter.detach()
    adapter.merge(ours)
    theirs.fuse_lora()
    for name, layer in layers.items():
        torch.testing.assert_close(ours.get_submodule(name).weight, layer.base_layer.weight, atol=1e-6, rtol=0)


def test_nothing_changes_at_the_start_and_after_detaching(unet, given):
    before = answer(unet, given)
    adapter = Adapter(unet)
    adapter.attach(unet)
    assert torch.equal(answer(unet, given), before)  # B is zero: exactly nothing is added
    filled(adapter)
    assert relative(answer(unet, given), before) > 0.01
    adapter.scale = 0.0
    assert torch.equal(answer(unet, given), before)
    adapter.scale = 1.0
    adapter.detach()
    assert torch.equal(answer(unet, given), before)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_merged_answers_as_attached_does(unet, given, scale):
    adapter = filled(Adapter(unet))
    adapter.attach(unet)
    adapter.scale = scale
    attached = answer(unet, given)
    adapter.detach()
    adapter.merge(unet, scale)
    assert relative(answer(unet, given), attached) <= 1e-5  # float32 sums in another order


def test_two_adapters_add_up():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5))
    one, two = (filled(Adapter(network, 2, targets=["0"]), seed) for seed in (3, 4))
    x = torch.randn(7, 6)
    alone = network(x)
    one.attach(network)
    with_one = network(x)
    two.attach(network)
    two.scale = 0.5
    both = network(x)
    wanted = with_one + 0.5 * (x @ two.changes()["0"].matrix().T)
    torch.testing.assert_close(both, wanted)
    one.detach()
    torch.testing.assert_close(network(x), alone + 0.5 * (x @ two.changes()["0"].matrix().T))


def test_a_change_has_the_rank_and_the_factor_that_it_is_told():
    change = LoRA(8, 6, rank=2, alpha=6.0)
    with torch.no_grad():
        change.lora_B.weight.normal_()
    assert torch.linalg.matrix_rank(change.matrix()).item() == 2
    plain = LoRA(8, 6, rank=2)
    plain.load_state_dict(change.state_dict())
    torch.testing.assert_close(change.matrix(), 3 * plain.matrix())  # alpha / r = 3
    x = torch.randn(4, 8)
    torch.testing.assert_close(change(x), x @ change.matrix().T)


def test_only_the_adapter_learns(unet, given):
    unet.requires_grad_(False)
    adapter = Adapter(unet)
    adapter.attach(unet)
    unet(*given).sample.square().mean().backward()
    moved = {name for name, parameter in adapter.named_parameters() if parameter.grad.abs().max() > 0}
    # B is zero, so at the first step no gradient reaches A
    assert moved == {f"{name}.lora_B.weight" for name in adapter.names}
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_an_adapter_of_another_network_is_refused(unet):
    adapter = Adapter(unet)
    with pytest.raises(UserError, match="does not exist here"):
        adapter.attach(nn.Sequential(nn.Linear(3, 3)))
    name = adapter.names[0]
    other = copy.deepcopy(unet)
    parent, _, last = name.rpartition(".")
    setattr(other.get_submodule(parent), last, nn.Linear(3, 3))
    for use in (adapter.attach, adapter.merge):
        with pytest.raises(UserError, match="another network.*is 3 x 3 here"):
            use(other)
    adapter.attach(unet)
    with pytest.raises(UserError, match="attached already"):
        adapter.attach(unet)


@pytest.mark.parametrize(
    "arguments, words",
    [((4, 6, 0), "1 to 4, not 0"), ((4, 6, 5), "1 to 4, not 5"), ((4, 6, 2, 0.0), "alpha must be above 0")],
)
def test_ranks_and_alphas_that_make_no_sense(arguments, words):
    with pytest.raises(UserError, match=words):
        LoRA(*arguments)
    with pytest.raises(UserError, match="called nothing"):
        Adapter(nn.Linear(3, 3), targets=["nothing"])


# Files for Diffusers


@pytest.fixture(scope="module")
def pipe():
    """A small pipeline of ours in Diffusers' classes, with random weights."""
    torch.manual_seed(0)
    stage = kl.model(kl.Settings(size=32, latent=4, widths=(16, 16, 32), groups=2)).eval()
    network = TextToImage(UNet(4, (16, 32), 1, range(2), context=16, groups=2), TextEncoder(len(TOKENS), LENGTH, 16, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return pipeline(ldm.Settings(size=32), network.eval(), LatentSpace(stage, 4, 1.0, 4))


@pytest.fixture
def fresh(pipe):
    yield pipe
    pipe.unload_lora_weights()


def drawn(pipe, seed=5):
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent", "generator": generator}
    pipe.set_progress_bar_config(disable=True)
    return pipe(["large red circle top left"], **options).images


@pytest.mark.parametrize("alpha", [None, 9.0])
def test_a_saved_adapter_draws_the_same_in_diffusers(fresh, tmp_path, alpha):
    before = drawn(fresh)
    adapter = filled(Adapter(fresh.unet, 3, alpha))
    adapter.attach(fresh.unet)
    wanted = drawn(fresh)
    adapter.detach()
    file.save(adapter, tmp_path / "one.safetensors")
    fresh.load_lora_weights(tmp_path, weight_name="one.safetensors", adapter_name="plain")
    assert relative(drawn(fresh), wanted) <= 1e-5 and relative(before, wanted) > 1e-3
    fresh.unload_lora_weights()
    file.load(fresh, tmp_path / "one.safetensors", "one")
    assert relative(drawn(fresh), wanted) <= 1e-5


def test_two_files_mix(fresh, tmp_path):
    adapters = [filled(Adapter(fresh.unet, rank), seed=rank) for rank in (2, 4)]
    for number, (adapter, scale) in enumerate(zip(adapters, (0.7, 0.4))):
        file.save(adapter, tmp_path / f"{number}.safetensors")
        adapter.attach(fresh.unet)
        adapter.scale = scale
    wanted = drawn(fresh)
    for number, adapter in enumerate(adapters):
        adapter.detach()
        file.load(fresh, tmp_path / f"{number}.safetensors", f"a{number}")
    fresh.set_adapters(["a0", "a1"], [0.7, 0.4])
    assert relative(drawn(fresh), wanted) <= 1e-5


def test_files_that_do_not_fit_are_refused_in_one_line(fresh, tmp_path):
    before = drawn(fresh)
    path = tmp_path / "a.safetensors"
    good = file.tensors(Adapter(fresh.unet, 3))
    key = next(iter(good))
    other = key.replace("lora_A", "lora_B")
    for change, message in (
        ({key: torch.zeros(3, 5)}, "made for another U-Net: .* has 16 channels here, 5 there"),
        ({key: torch.zeros(2, 16)}, "damaged: the factors of .* have the ranks 2 and 3"),
        ({key.replace("down_blocks.0", "down_blocks.7"): good[key]}, "another U-Net: this one has no linear layer"),
        ({key.removeprefix("unet."): good[key]}, "is no adapter of a U-Net"),
        ({"weight": torch.zeros(3)}, "is no adapter of a U-Net: it holds 'weight'"),
        ({other: None}, f"damaged: it lacks '{other}'"),
    ):
        checkpoint.save(path, {k: v for k, v in (good | change).items() if v is not None}, {})
        with pytest.raises(UserError, match=message) as caught:
            file.load(fresh, path, "a")
        assert "\n" not in str(caught.value)
    checkpoint.save(path, {}, {})
    with pytest.raises(UserError, match="it is empty"):
        file.load(fresh, path, "a")
    with pytest.raises(UserError, match="no such file"):
        file.load(fresh, tmp_path / "none", "a")
    assert torch.equal(drawn(fresh), before)

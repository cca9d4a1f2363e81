"""Vector quantisation: what moves when, precision, the chapter's traps and bad input; the VQ-VAE's recipe on maps."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from course import UserError
from course.models.autoencoder import Encoded, grid_autoencoder
from course.models.quantise import GreyLevels, VectorQuantiser, check_codes, nearest, perplexity, straight_through
from course.train.recipes import vqvae

KINDS = ("gradient", "ema")


def refused(message, call, *arguments):
    with pytest.raises(UserError, match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 8), (16, 28)])
def test_a_picture_comes_back_with_its_shape(kind, size):
    model = grid_autoencoder(1, 4, width=8, bottleneck=VectorQuantiser(16, 4, kind))
    x = torch.rand(3, 1, *size) * 2 - 1
    made, encoded = model(x)
    h, w = size[0] // 4, size[1] // 4
    assert made.shape == x.shape and encoded.z.shape == (3, 4, h, w) and encoded.loss.shape == (3,)
    assert encoded.codes.shape == (3, h, w) and encoded.codes.dtype == torch.int64
    model.eval()
    encoded = model.encode(x)
    # z is h + (e - h), two roundings away from e
    assert torch.allclose(model.bottleneck.lookup(encoded.codes), encoded.z, atol=1e-6)


def test_autoencoders_of_maps_give_as_many_channels_as_are_asked_for():
    model = grid_autoencoder(7, 4, width=8, bottleneck=VectorQuantiser(16, 4), out_channels=2)
    assert model(torch.rand(1, 7, 8, 8))[0].shape == (1, 2, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_in_evaluation_or_without_gradients(kind):
    torch.manual_seed(0)
    quantiser, h = VectorQuantiser(8, 3, kind), torch.randn(2, 3, 4, 4)
    quantiser(h)
    before = state(quantiser)
    with torch.no_grad():
        quantiser(h + 1)
    assert same(before, state(quantiser))
    quantiser.eval()(h + 1)
    assert same(before, state(quantiser))
    quantiser.train()(h + 1)
    assert not same(before, state(quantiser))


def settled(kind, restart, dead=(2, 5)):
    """A quantiser in which every entry has its even share, but for those that nobody has chosen for long."""
    torch.manual_seed(0)
    quantiser = VectorQuantiser(8, 3, kind, restart=restart)
    torch.nn.init.normal_(quantiser.codebook)
    quantiser.chosen.fill_(1 / 8)
    for entry in dead:
        quantiser.codebook.data[entry] = 100.0 + entry  # nothing is near it
        quantiser.chosen[entry] = 1e-4
    quantiser.sums.copy_(quantiser.codebook.detach() * quantiser.chosen[:, None])
    return quantiser


@pytest.mark.parametrize("kind", KINDS)
def test_only_dead_entries_are_moved_and_onto_vectors_of_the_batch(kind):
    moved, kept = settled(kind, restart=0.05), settled(kind, restart=0.0)
    before, h = kept.codebook.detach().clone(), torch.randn(2, 3, 4, 4)
    moved(h)
    kept(h)
    vectors = h.movedim(1, -1).flatten(0, 2)
    for entry in range(8):
        if entry in (2, 5):
            assert (moved.codebook[entry] == vectors).all(1).any()
            assert moved.chosen[entry] == 1 / 8  # trusted with an even share, so that it is not moved again at once
            assert torch.equal(moved.sums[entry], moved.codebook[entry].detach() / 8)
            # sums / counts is the entry it was, up to one rounding of a number near 100
            assert torch.allclose(kept.codebook[entry], before[entry], atol=1e-5)
        else:  # follows its own vectors as if there were no restarts
            assert torch.equal(moved.codebook[entry], kept.codebook[entry])
    if kind == "gradient":  # moves by its optimiser alone
        assert torch.equal(kept.codebook, before)


@pytest.mark.parametrize("kind", KINDS)
def test_without_restarts_a_dead_entry_stays_dead(kind):
    quantiser = settled(kind, restart=0.0)
    quantiser.chosen[5], quantiser.sums[5] = 0, 0  # never chosen at all
    for _ in range(30):
        codes = quantiser(torch.randn(2, 3, 4, 4)).codes
        assert not torch.isin(codes, torch.tensor([2, 5])).any()
    assert quantiser.codebook[2].min() > 101 and (quantiser.codebook[5] == 105).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_batch_fills_the_codebook(kind):
    torch.manual_seed(0)
    quantiser, h = VectorQuantiser(32, 3, kind), 5 + torch.randn(4, 3, 6, 6)  # far from where the entries start
    assert quantiser(h).codes.unique().numel() < 10
    vectors = h.movedim(1, -1).flatten(0, 2)
    there = (quantiser.codebook[:, None] == vectors).all(2).any(1)
    # all but an entry that more than 0.05 / 32 / (1 - FORGET) = 16 % of the batch chose: that one follows its vectors
    assert 32 - 6 <= there.sum() < 32
    # of 32 draws from 144 some three are of a vector that was drawn before
    assert quantiser(h).codes.unique().numel() >= 24


# Precision


def test_bfloat16_gives_the_codes_of_float32():
    """Entries closer together than eight bits of mantissa can tell, as a trained codebook has them."""
    torch.manual_seed(0)
    quantiser = VectorQuantiser(64, 4).eval()
    quantiser.codebook.copy_(3 + 0.01 * torch.randn(64, 4))
    h = 3 + 0.01 * torch.randn(2, 4, 8, 8)
    exact = quantiser(h)
    with torch.autocast("cpu", torch.bfloat16):
        careless = nearest(h.movedim(1, -1), quantiser.codebook)
        found, rounded = quantiser(h), quantiser(h.bfloat16())
    assert (careless != exact.codes).double().mean() > 0.5  # so there is something to be careful about
    assert torch.equal(found.codes, exact.codes) and torch.equal(found.loss, exact.loss)
    assert torch.equal(rounded.codes, quantiser(h.bfloat16().float()).codes)
    assert found.z.dtype == found.loss.dtype == rounded.z.dtype == torch.float32


# The traps of the chapter


class ByData(VectorQuantiser):
    """The trap: `.data` looks the same and has no gradient."""

    def lookup(self, codes):
        return self.codebook.data[codes].movedim(-1, 1)


def test_a_lookup_through_data_never_trains_the_codebook():
    torch.manual_seed(0)
    h, losses = torch.randn(2, 3, 4, 4, requires_grad=True), []
    for kind in (VectorQuantiser, ByData):
        torch.manual_seed(1)
        quantiser = kind(8, 3, "gradient").eval()
        losses.append(quantiser(h).loss.detach())
        quantiser(h).loss.sum().backward()
        moved = quantiser.codebook.grad is not None and quantiser.codebook.grad.abs().sum() > 0
        assert moved == (kind is VectorQuantiser)
    assert torch.equal(*losses)  # the loss does not show it


def test_without_the_straight_through_estimator_the_encoder_learns_nothing_from_the_decoder():
    torch.manual_seed(0)
    h, quantiser = torch.randn(2, 3, 4, 4, requires_grad=True), VectorQuantiser(8, 3).eval()
    target = torch.randn(2, 3, 4, 4)
    z = quantiser(h).z
    error = (z - target).pow(2).sum()
    assert torch.equal(torch.autograd.grad(error, h)[0], 2 * (z - target).detach())
    assert not quantiser.lookup(quantiser(h).codes).requires_grad


def test_the_straight_through_estimator_gives_e_and_the_gradient_of_h():
    h, e = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([4.0, 5.0], requires_grad=True)
    z = straight_through(h, e)
    (z * torch.tensor([3.0, 7.0])).sum().backward()
    assert z.tolist() == [4, 5] and h.grad.tolist() == [3, 7] and e.grad is None


# Codes without a network


def test_grey_levels_are_codes_and_come_back():
    grey = GreyLevels(16)
    codes = torch.arange(16).view(1, 4, 4)
    values = grey.lookup(codes)
    assert values.min() == -1 and values.max() == 1 and values.shape == (1, 1, 4, 4)
    assert torch.equal(grey(values).codes, codes)
    x = torch.rand(3, 1, 5, 7) * 2 - 1
    encoded = grey(x)
    # the nearest of 16 levels, 2 / 15 apart, is at most half of that away
    assert (encoded.z - x).abs().max() <= 1 / 15 + 1e-6
    assert encoded.loss.tolist() == [0, 0, 0] and encoded.codes.shape == (3, 5, 7)
    assert grey(torch.tensor([-1.3, 1.3]).view(1, 1, 1, 2)).codes.tolist() == [[[0, 15]]]
    refused(r"0 \.\. 15, not 3 \.\. 16", grey.lookup, torch.tensor([[[3, 16]]]))


# What goes wrong


@pytest.mark.parametrize("levels", [1, 0])
def test_a_single_grey_level_has_no_place_between_black_and_white(levels):
    refused(f"at least 2 levels, black and white, not {levels}", GreyLevels, levels)


def test_wrong_codebooks():
    refused("at least 2 entries, not 1", VectorQuantiser, 1, 4)
    refused("by gradient or ema, not 'kmeans'", VectorQuantiser, 4, 4, "kmeans")


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.tensor([[[0, 8]]]), r"0 \.\. 7, not 0 \.\. 8"),
        (torch.tensor([[[-1, 3]]]), r"0 \.\. 7, not -1 \.\. 3"),
        (torch.tensor([[[0.0, 3.0]]]), r"whole numbers \(int64\), not float32"),
        (torch.tensor([[[0, 3]]], dtype=torch.int32), r"whole numbers \(int64\), not int32"),
    ],
)
def test_wrong_codes(codes, message):
    refused(message, VectorQuantiser(8, 3).lookup, codes)
    refused(message, perplexity, codes, 8)
    refused(message, check_codes, codes, 8)


def test_right_codes_pass_untouched():
    codes = torch.tensor([0, 7])
    assert check_codes(codes, 8) is codes
    assert check_codes(torch.zeros(0, dtype=torch.int64), 8).numel() == 0


# The recipe


class Told(torch.nn.Module):
    """An autoencoder of maps that answers what a function makes of the truth."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        codes = torch.arange(len(x)).view(-1, 1, 1) % 4
        return self.answer(x), Encoded(x, torch.zeros(len(x)), codes)


MASKS = replace(vqvae.PROFILES["smoke"], dataset="shapes", content="mask", size=32, entries=8)


def test_perfect_logits_of_maps_score_one_and_empty_ones_nothing():
    perfect = vqvae.metrics(MASKS, Told(lambda x: 5 * x - 2), count=40)
    assert perfect["iou"] == perfect["pixels"] == 1
    assert perfect["used"] == 0.5 and perfect["perplexity"] == pytest.approx(4)
    empty = vqvae.metrics(MASKS, Told(lambda x: functional.one_hot(0 * x.argmax(1), 7).movedim(-1, 1)), count=40)
    assert empty["iou"] == 0 and 0.5 < empty["pixels"] < 1  # most of a scene is ground


def test_the_loss_of_maps_is_the_cross_entropy_of_their_pixels():
    batch = next(vqvae.batches(MASKS, 0))
    assert set(batch) == {"mask"}
    x = vqvae.network_input(MASKS, batch)
    assert torch.equal(x.argmax(1), batch["mask"]) and torch.equal(x.sum(1), torch.ones(x[:, 0].shape))
    loss, parts = vqvae.loss(MASKS, Told(lambda x: 3 * x), batch)
    # the true label has logit 3, the six others 0
    expected = -torch.log_softmax(torch.tensor([3.0, 0, 0, 0, 0, 0, 0]), 0)[0].item()
    assert loss.item() == parts["error"].item() == pytest.approx(expected, rel=1e-5)


def test_shapes_take_turns_with_windows_of_wide_scenes():
    sets = vqvae.load(MASKS, "train")
    assert [one.size for one in sets] == [(32, 32), (32, 32)] and sets[1].source.size == (32, 64)
    walk = vqvae.batches(replace(MASKS, content="image"), 0)
    one, two = next(walk)["image"], next(walk)["image"]
    assert one.shape == two.shape == (16, 3, 32, 32)

"""Vector quantisation against loops over positions and entries in float64, closed forms, and SciPy's entropy."""

import numpy
import pytest
import torch
from scipy.stats import entropy

from course.models.quantise import FORGET, VectorQuantiser, nearest, perplexity

B, D, H, W, K = 3, 5, 4, 6, 11
BETA = 0.4


def by_hand(h, codebook):
    """The definition, position by position and entry by entry: codes, their entries, the closest call between two."""
    codes, e, margins = torch.zeros(len(h), *h.shape[2:], dtype=torch.int64), torch.zeros_like(h), []
    for b in range(len(h)):
        for y in range(h.shape[2]):
            for x in range(h.shape[3]):
                far = [((h[b, :, y, x] - entry) ** 2).sum().item() for entry in codebook]
                codes[b, y, x] = far.index(min(far))
                e[b, :, y, x] = codebook[codes[b, y, x]]
                margins.append(sorted(far)[1] - min(far))
    return codes, e, min(margins)


def case(kind, seed=0):
    torch.manual_seed(seed)
    quantiser = VectorQuantiser(K, D, kind, commitment=BETA, restart=0)
    torch.nn.init.normal_(quantiser.codebook)
    h = torch.randn(B, D, H, W)
    return quantiser, h, *by_hand(h.double(), quantiser.codebook.detach().double())


@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_codes_entries_and_loss_are_those_of_the_definition(kind):
    quantiser, h, codes, e, margin = case(kind)
    assert margin > 1e-5  # ten times the rounding of float32 distances up to 10: the codes must be equal, not similar
    z, loss, found = quantiser(h)
    assert torch.equal(found, codes)
    # z is h + (e - h): two roundings of numbers below 4, 2^-23 each at most
    assert (z.double() - e).abs().max() <= 4 * 2**-22
    squared = ((h.double() - e) ** 2).sum((1, 2, 3)) / (D * H * W)
    expected = (BETA + (1 if kind == "gradient" else 0)) * squared
    assert loss.shape == (B,) and torch.allclose(loss.double(), expected, rtol=1e-6)  # a mean of 120 float32 numbers


@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_gradients_are_those_of_the_definition(kind):
    """The encoder: what z receives, and 2 beta (h - e) / n.  Entry k: the sum of 2 (e - h) / n over its own vectors."""
    quantiser, h, codes, e, _ = case(kind)
    h.requires_grad_()
    push, price = torch.randn(B, D, H, W), torch.rand(B)  # of the decoder, and of each picture's loss
    z, loss, _ = quantiser.eval()(h)
    ((z * push).sum() + (loss * price).sum()).backward()
    pull = 2 * price.double().view(-1, 1, 1, 1) * (h.detach().double() - e) / (D * H * W)
    # sums of two numbers below 4 in float32
    assert (h.grad.double() - (push.double() + BETA * pull)).abs().max() <= 2**-21
    if kind == "ema":
        assert not quantiser.codebook.requires_grad
        return
    expected = torch.zeros(K, D, dtype=torch.float64)
    for b in range(B):
        for y in range(H):
            for x in range(W):
                expected[codes[b, y, x]] -= pull[b, :, y, x]
    # sums of at most 72 numbers below 0.1 in float32; the decoder's push, a thousand times as large, must not be in it
    assert (quantiser.codebook.grad.double() - expected).abs().max() <= 1e-6
    idle = torch.ones(K, dtype=torch.bool)
    idle[codes.unique()] = False
    assert quantiser.codebook.grad[idle].abs().sum() == 0 and (quantiser.codebook.grad[~idle] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_matrix_product_finds_the_nearest_of_many(dtype):
    torch.manual_seed(1)
    vectors, codebook = torch.randn(40, 50, 16, dtype=dtype), torch.randn(300, 16, dtype=dtype)
    far = ((vectors.double()[:, :, None] - codebook.double()) ** 2).sum(-1)  # (40, 50, 300), by broadcasting
    found = nearest(vectors, codebook)
    # of two entries as near as rounding can tell either is right; this seed has no such pair
    assert far.sort(-1).values.diff(dim=-1)[..., 0].min() > 1e-4
    assert found.shape == (40, 50) and torch.equal(found, far.argmin(-1))


def test_of_equally_near_entries_the_first_one_is_taken():
    """In small whole numbers every product is exact, so ties are ties."""
    grid = torch.cartesian_prod(*[torch.arange(-2.0, 3)] * 2)  # (25, 2)
    codebook = torch.tensor([[2, 0], [0, 2], [0, 2], [-2, 0], [0, -2], [2, 0]]).float()
    far = ((grid[:, None] - codebook) ** 2).sum(-1).tolist()
    assert nearest(grid, codebook).tolist() == [row.index(min(row)) for row in far]
    assert any(row.count(min(row)) > 2 for row in far)


def test_an_entry_is_the_fading_mean_of_the_vectors_that_chose_it():
    """After T batches: vectors of batch t weigh FORGET^(T - t), whatever the updates in between were."""
    torch.manual_seed(2)
    quantiser = VectorQuantiser(K, D, "ema", restart=0)
    start = quantiser.codebook.double().clone()
    sums, weight = torch.zeros(K, D, dtype=torch.float64), torch.zeros(K, dtype=torch.float64)
    for turn in range(6):
        h = torch.randn(B, D, H, W) + 0.3 * turn
        before = quantiser.codebook.clone()
        codes = quantiser(h).codes
        assert torch.equal(codes, by_hand(h, before)[0])  # chosen before the entries moved
        sums, weight = sums * FORGET, weight * FORGET
        for vector, code in zip(h.movedim(1, -1).flatten(0, 2).double(), codes.flatten()):
            sums[code] += vector
            weight[code] += 1
        chosen = weight > 0
        expected = torch.where(chosen[:, None], sums / weight.clamp(min=1e-9)[:, None], start)
        # running means in float32, of numbers below 4
        assert torch.allclose(quantiser.codebook.double(), expected, atol=2e-6)
        share = (1 - FORGET) * weight / (B * H * W)
        assert torch.allclose(quantiser.chosen.double(), share, atol=1e-8)
    assert chosen.sum() > 5


def test_perplexity_is_the_exponential_of_scipys_entropy():
    torch.manual_seed(3)
    codes = torch.multinomial(torch.rand(20) ** 3, 5000, replacement=True)
    shares = codes.bincount(minlength=20).numpy()
    assert perplexity(codes.view(50, 10, 10), 20) == pytest.approx(numpy.exp(entropy(shares)), rel=1e-12)
    assert perplexity(torch.full((7,), 3), 20) == 1
    assert perplexity(torch.arange(40).view(2, 20) % 20, 20) == pytest.approx(20, rel=1e-12)

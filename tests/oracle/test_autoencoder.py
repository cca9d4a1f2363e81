"""Chapters 1 and 2 against other people's code: torch.distributions and scikit-learn."""

import numpy
import pytest
import torch
from scipy.linalg import subspace_angles
from torch.distributions import Normal, kl_divergence

from course.models.autoencoder import kl_to_standard_normal
from course.train import recipes
from course.train.fit import fit


def test_the_closed_form_divergence_is_that_of_torch_distributions():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(50, 7, dtype=torch.float64), torch.randn(50, 7, dtype=torch.float64)
    theirs = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl_to_standard_normal(mean, log_variance), theirs, rtol=1e-12)


def test_the_closed_form_divergence_equals_monte_carlo_within_its_error():
    torch.manual_seed(1)
    mean, log_variance = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    q = Normal(mean, (0.5 * log_variance).exp())
    z = q.sample((300_000,))
    terms = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum((1, 2))
    error = terms.std().item() / len(terms) ** 0.5
    # four standard errors: a sound formula fails once in 16,000 seeds, and this seed is fixed
    assert kl_to_standard_normal(mean, log_variance).item() == pytest.approx(terms.mean().item(), abs=4 * error)


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_loss_is_the_negative_elbo_up_to_scale_and_constant(beta):
    """price * KL + error, times D / (2 sigma^2), plus D/2 log(2 pi sigma^2), is -ELBO by torch.distributions."""
    recipe = recipes.get("autoencoder")
    settings = recipe.Settings(dataset="digits", kind="vae", dim=3, width=8, sigma=0.3, beta=beta)
    torch.manual_seed(0)
    model = recipe.model(settings)
    x = torch.rand(6, 1, 8, 8) * 2 - 1
    player = recipe.build(settings, model).players[0]
    torch.manual_seed(5)
    total, _ = player.loss({"image": x})
    torch.manual_seed(5)
    mean, log_variance = model.encoder(x).chunk(2, 1)
    q = Normal(mean, (0.5 * log_variance).exp())
    z = mean + q.stddev * torch.randn_like(mean)
    log_likelihood = Normal(model.decode(z), 0.3).log_prob(x).flatten(1).sum(1)
    elbo = (log_likelihood - beta * kl_divergence(q, Normal(0.0, 1.0)).sum(1)).mean()
    constant = 64 / 2 * numpy.log(2 * numpy.pi * 0.3**2)
    assert total.item() * 64 / (2 * 0.3**2) + constant == pytest.approx(-elbo.item(), rel=1e-5)


def test_a_trained_linear_autoencoder_spans_the_subspace_of_scikit_learns_pca():
    from sklearn.decomposition import PCA

    from course import data

    recipe = recipes.get("autoencoder")
    settings = recipe.Settings(dataset="digits", kind="linear", dim=3, steps=700, batch=256, lr=1e-2)
    torch.manual_seed(0)
    model = recipe.model(settings)
    task = recipe.build(settings, model)
    for _ in fit(task.players, task.batches, settings.steps):
        pass
    train_set = data.load("digits", "train")
    images = train_set.batch(range(len(train_set)))["image"].flatten(1).double().numpy()
    theirs = PCA(3).fit(images).components_.T
    angles = subspace_angles(model.decoder[0].weight.detach().double().numpy(), theirs)
    assert numpy.degrees(angles.max()) < 5  # the bound that chapter 1 promises

"""Schedules and steps against Diffusers, in float64 with injected noise; and where no training is needed, exactly."""

import math

import diffusers.schedulers.scheduling_ddim as home_of_ddim
import diffusers.schedulers.scheduling_ddpm as home_of_ddpm
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy.stats import ks_2samp

from course import UserError
from course.diffusion import guidance, objective, samplers, schedule

PAIRS = {
    "linear": (schedule.linear(), dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)),
    "scaled_linear": (
        schedule.scaled_linear(),
        dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ),
    "cosine": (schedule.cosine(), dict(beta_schedule="squaredcos_cap_v2")),
}


class Double:
    """torch for a module that asks for float32 by name: it gets float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.parametrize("T", [1000, 50])
@pytest.mark.parametrize("name", PAIRS)
def test_schedules(name, T, monkeypatch):
    monkeypatch.setattr(home_of_ddim, "torch", Double())
    scheduler = DDIMScheduler(num_train_timesteps=T, **PAIRS[name][1])
    ours = getattr(schedule, name)(T)
    assert len(ours) == T and scheduler.alphas_cumprod.dtype == torch.float64
    assert (ours.alpha_bar / scheduler.alphas_cumprod - 1).abs().max() <= 1e-12
    assert ((1 - ours.alpha_bar) / (1 - scheduler.alphas_cumprod) - 1).abs().max() <= 1e-12


def theirs(kind, name, **options):
    """A Diffusers scheduler whose tables are float64: it computes them in float32."""
    ours, settings = PAIRS[name]
    scheduler = kind(num_train_timesteps=1000, clip_sample=options.pop("clip", False), **settings, **options)
    # their table is float32; with ours in its place only the steps are compared here
    assert torch.allclose(scheduler.alphas_cumprod.double(), ours.alpha_bar, rtol=2e-4, atol=1e-7)
    scheduler.alphas_cumprod = ours.alpha_bar
    scheduler.alphas = torch.cat([ours.alpha_bar[:1], ours.alpha_bar[1:] / ours.alpha_bar[:-1]])
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return ours, scheduler


def batch(seed=0):
    torch.manual_seed(seed)
    return [torch.randn(3, 2, 4, 4, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("name", PAIRS)
def test_noising(name):
    ours, scheduler = theirs(DDIMScheduler, name)
    x0, eps, _ = batch()
    t = torch.tensor([0, 500, 999])
    assert torch.allclose(ours.add_noise(x0, t, eps), scheduler.add_noise(x0, eps, t), rtol=0, atol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", PAIRS)
def test_every_step_of_ddim(name, eta, clip):
    ours, scheduler = theirs(DDIMScheduler, name, clip=clip, set_alpha_to_one=True)
    for steps in (1000, 50, 7):  # 7 does not divide 1000
        scheduler.set_timesteps(steps)
        jump = 1000 // steps
        for t in scheduler.timesteps.tolist()[:: 10 if steps == 1000 else 1] + [1, 0] * (steps == 1000):
            x, eps, noise = batch(t)
            s = max(t - jump, -1)
            expected = scheduler.step(
                eps, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise
            ).prev_sample
            if s < 0:
                noise = None  # and none is needed
            got = samplers.step(ours, x, eps, t, s, eta=eta, noise=noise, clip=clip)
            assert (got - expected).abs().max() <= 1e-9 * max(1, expected.abs().max()), (steps, t)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_every_step_of_ddpm(name, large, clip, monkeypatch):
    """Eta 1 is its posterior, by neighbours and by jumps; ``large`` is its fixed_large, beta_t or sigma-hat squared."""
    kind = "fixed_large" if large else "fixed_small"
    ours, scheduler = theirs(DDPMScheduler, name, clip=clip, variance_type=kind)
    for steps in (1000, 50, 7):
        path = samplers.times(1000, steps)
        scheduler.set_timesteps(timesteps=path[:-1])
        for t, s in list(zip(path, path[1:]))[:: 10 if steps == 1000 else 1] + [(1, 0), (0, -1)] * (steps == 1000):
            x, eps, noise = batch(t)
            monkeypatch.setattr(home_of_ddpm, "randn_tensor", lambda *a, noise=noise, **k: noise)
            expected = scheduler.step(eps, t, x).prev_sample
            got = samplers.step(ours, x, eps, t, s, eta=1.0, noise=noise if s >= 0 else None, clip=clip, large=large)
            assert (got - expected).abs().max() <= 1e-9 * max(1, expected.abs().max()), (steps, t)


@pytest.mark.parametrize("name", PAIRS)
def test_the_predicted_picture_is_theirs_and_undoes_the_noising(name):
    ours, scheduler = theirs(DDIMScheduler, name)
    scheduler.set_timesteps(1000)
    x0, eps, x = batch()
    for t in (999, 500, 0):
        expected = scheduler.step(eps, t, x).pred_original_sample
        assert torch.allclose(samplers.predict_x0(ours, x, eps, t), expected, rtol=1e-9, atol=1e-9)
        assert torch.allclose(samplers.predict_x0(ours, ours.add_noise(x0, t, eps), eps, t), x0, atol=1e-9)
    several = torch.tensor([999, 500, 0])
    assert torch.allclose(samplers.predict_x0(ours, ours.add_noise(x0, several, eps), eps, several), x0, atol=1e-9)


def affine(ours, denoiser, t, s, **options):
    """Where the denoiser is affine in x, so is a step: its value at 0, its factor on x, its factor on the noise."""

    def at(x, noise):
        x, noise = (torch.tensor([[value]], dtype=torch.float64) for value in (x, noise))
        eps = denoiser(x, torch.tensor([t]), None)
        return samplers.step(ours, x, eps, t, s, noise=noise, **options).item()

    return at(0.0, 0.0), at(1.0, 0.0) - at(0.0, 0.0), at(0.0, 1.0) - at(0.0, 0.0)


JUMPS = [(1, 0), (500, 499), (999, 998), (20, 0), (300, 100), (999, 500), (999, 0)]


@pytest.mark.parametrize("t, s", JUMPS)
@pytest.mark.parametrize("name", PAIRS)
def test_eta_one_is_the_posterior_of_bayes(name, t, s):
    """q(x_s | x_t, x_0) by Bayes' rule on a grid of x_s: prior q(x_s | x_0) times likelihood q(x_t | x_s)."""
    ours, _ = PAIRS[name]
    now, then = ours.alpha_bar[t].item(), ours.alpha_bar[s].item()
    x0, xt = 0.7, -0.4
    likelihood = math.sqrt(now / then), math.sqrt(1 - now / then)  # of x_t given x_s: factor and deviation
    # the grid spans 12 deviations of the narrower of the two normal curves on either side of where their product peaks
    prior = math.sqrt(then) * x0, math.sqrt(1 - then)
    width = min(prior[1], likelihood[1] / likelihood[0])
    precise = 1 / prior[1] ** 2, likelihood[0] ** 2 / likelihood[1] ** 2
    peak = (precise[0] * prior[0] + precise[1] * xt / likelihood[0]) / sum(precise)
    grid = np.linspace(peak - 12 * width, peak + 12 * width, 40_001)
    log = -0.5 * ((grid - prior[0]) / prior[1]) ** 2 - 0.5 * ((xt - likelihood[0] * grid) / likelihood[1]) ** 2
    weight = np.exp(log - log.max())
    mean = (weight * grid).sum() / weight.sum()
    variance = (weight * (grid - mean) ** 2).sum() / weight.sum()

    implied = lambda x, t, cond: (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
    offset, factor, spread = affine(ours, implied, t, s, eta=1.0)
    assert offset + factor * xt == pytest.approx(mean, rel=1e-8, abs=1e-9)
    assert spread**2 == pytest.approx(variance, rel=1e-7)


@pytest.mark.parametrize("t, s", JUMPS)
def test_sigma_hat_at_jumps(t, s):
    """Song et al. 2021, section 5: sigma-hat = sqrt(1 - alpha_t / alpha_s), in the noise term only.

    Written out from the betas: 1 minus the product of (1 - beta) over the jump.
    """
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = 1 - (1 - betas[s + 1 : t + 1]).prod().item()
    zero = lambda x, t, cond: torch.zeros_like(x)
    for eta in (0.0, 0.5, 1.0):
        large = affine(PAIRS["linear"][0], zero, t, s, eta=eta, large=True)
        small = affine(PAIRS["linear"][0], zero, t, s, eta=eta)
        assert large[2] ** 2 == pytest.approx(expected, rel=1e-9)
        assert large[:2] == small[:2]  # the mean is that of eta
    assert small[2] < large[2]


def test_no_mean_takes_the_root_of_a_negative_number():
    """What eta's variance leaves for the direction to x_t is never negative; with sigma-hat in its place it can be."""
    for ours, _ in PAIRS.values():
        bar = torch.cat([ours.alpha_bar.new_ones(1), ours.alpha_bar])
        now, then = bar[1:, None], bar[None, :-1]  # all 500,500 pairs with s < t, clean data included
        pairs = torch.ones(1000, 1000).tril().bool()
        variance = (1 - then) / (1 - now) * (1 - now / then)
        assert (1 - then - variance)[pairs].min() > -1e-15  # of rounding; exactly 0 where s is clean
        assert (1 - then - (1 - now / then))[pairs].min() < -0.9
    for t, s in JUMPS:
        x = torch.ones(1, 1, dtype=torch.float64)
        for eta in (0.0, 0.3, 1.0):
            assert samplers.step(ours, x, x, t, s, eta=eta, large=True, noise=x).isfinite().all()


# Exactness without training: data whose score is known

MIXTURE = torch.tensor([-1.5, 0.5, 2.0], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
SPREAD = 0.3


def exact(ours):
    """The exact denoiser for a mixture of three normal distributions on a line: eps = -sqrt(1 - alpha_bar) * score."""
    means, weights = MIXTURE

    def denoiser(x, t, cond):
        alpha_bar = ours.at(t)[:, None]
        variance = alpha_bar * SPREAD**2 + 1 - alpha_bar
        apart = x - alpha_bar.sqrt() * means  # (B, 3)
        share = torch.softmax(weights.log() - apart**2 / (2 * variance), dim=1)
        score = -(share * apart).sum(1, keepdim=True) / variance
        return -(1 - alpha_bar).sqrt() * score

    return denoiser


def last(states):
    return list(states)[-1]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_exact_denoiser_gives_the_exact_distribution(eta):
    ours = schedule.linear()
    torch.manual_seed(0)
    x = torch.randn(4000, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    got = last(samplers.sample(ours, exact(ours), x, 500, eta=eta, generator=generator))
    means, weights = MIXTURE
    drawn = means[torch.multinomial(weights, 4000, replacement=True)] + SPREAD * torch.randn(4000, dtype=torch.float64)
    assert ks_2samp(got[:, 0].numpy(), drawn.numpy()).pvalue > 0.01  # a sound sampler fails one seed in a hundred


def normal_denoiser(ours, mean, covariance):
    """The exact denoiser for data from N(mean, covariance)."""

    def denoiser(x, t, cond):
        alpha_bar = ours.at(t[0])
        spread = alpha_bar * covariance + (1 - alpha_bar) * torch.eye(len(mean), dtype=torch.float64)
        return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * mean) @ spread.inverse()

    return denoiser


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_normal_distribution_in_the_plane_comes_out(eta):
    ours = schedule.linear()
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    root = torch.tensor([[0.6, 0.0], [0.5, 0.1]], dtype=torch.float64)
    torch.manual_seed(1)
    x, drawn = torch.randn(2, 4000, 2, dtype=torch.float64)
    drawn = mean + drawn @ root.T
    generator = torch.Generator().manual_seed(2)
    got = last(samplers.sample(ours, normal_denoiser(ours, mean, root @ root.T), x, 1000, eta=eta, generator=generator))
    for way in ([1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [-0.64, 0.77]):  # the last two nearly along and across
        way = torch.tensor(way, dtype=torch.float64)
        assert ks_2samp((got @ way).numpy(), (drawn @ way).numpy()).pvalue > 0.01 / 4  # four looks, one chance in 100


@pytest.mark.parametrize("t, s", JUMPS)
@pytest.mark.parametrize("name", PAIRS)
def test_when_each_variance_is_exact(name, t, s):
    """Ho et al. 2020, section 3.2: the large variance for data from N(0, I), the posterior's for a single point.

    Exact means: if x_t is distributed as the forward process says, so is x_s after the step.
    """
    ours, _ = PAIRS[name]
    now, then = ours.alpha_bar[t].item(), ours.alpha_bar[s].item()
    unit = lambda x, t, cond: ours.coefs(t, x)[1] * x  # data N(0, 1): every state is N(0, 1) too
    _, factor, spread = affine(ours, unit, t, s, eta=1.0, large=True)
    assert factor**2 + spread**2 == pytest.approx(1, abs=1e-12)
    # and jointly: the correlation is the process's (the longest jumps divide by sqrt(alpha_bar) = 5e-5)
    assert factor == pytest.approx(math.sqrt(now / then), abs=1e-10)
    for eta in (0.0, 0.5, 1.0):
        _, factor, spread = affine(ours, unit, t, s, eta=eta)
        assert factor**2 + spread**2 < 1  # the posterior's variance is too small for it

    c = 0.6
    point = lambda x, t, cond: (x - ours.coefs(t, x)[0] * c) / ours.coefs(t, x)[1]
    for eta in (0.0, 0.2, 0.5, 1.0):  # any eta keeps the marginals of a point: that is how the family was built
        offset, factor, spread = affine(ours, point, t, s, eta=eta)
        assert offset + factor * math.sqrt(now) * c == pytest.approx(math.sqrt(then) * c, abs=1e-12)
        assert factor**2 * (1 - now) + spread**2 == pytest.approx(1 - then, rel=1e-9)
    _, factor, spread = affine(ours, point, t, s, eta=1.0, large=True)
    assert factor**2 * (1 - now) + spread**2 > 1 - then  # and too large for it


@pytest.mark.parametrize("steps", [20, 1000])
def test_the_large_variance_samples_n01_exactly_in_any_number_of_steps(steps):
    ours = schedule.linear()
    torch.manual_seed(2)
    x, drawn = torch.randn(2, 4000, 1, dtype=torch.float64)
    unit = lambda x, t, cond: ours.coefs(t, x)[1] * x
    for generator in (torch.Generator().manual_seed(3), [torch.Generator().manual_seed(i) for i in range(400)]):
        start = x if isinstance(generator, torch.Generator) else x[:400]
        got = last(samplers.sample(ours, unit, start, steps, eta=1.0, large=True, generator=generator))
        assert ks_2samp(got[:, 0].numpy(), drawn[:, 0].numpy()).pvalue > 0.01
        if steps > 20:
            break  # one generator a number is slow


@pytest.mark.parametrize("steps, eta", [(1, 0.0), (5, 0.0), (5, 0.5), (5, 1.0), (1000, 1.0)])
def test_a_single_point_is_hit_exactly(steps, eta):
    ours = schedule.linear()
    point = lambda x, t, cond: (x - ours.coefs(t, x)[0] * 0.6) / ours.coefs(t, x)[1]
    x = torch.randn(5, 1, dtype=torch.float64)
    got = last(samplers.sample(ours, point, x, steps, eta=eta))
    assert torch.allclose(got, torch.full_like(got, 0.6), atol=1e-9)  # noise in the last step would be seen


def test_a_variance_without_its_square_is_noticed():
    """The trap of chapter 4: sigma carries eta, the variance eta squared."""
    ours = schedule.linear()
    x = torch.randn(200_000, 1, dtype=torch.float64)
    zero, noise = torch.zeros_like(x), torch.randn_like(x)
    fixed = samplers.step(ours, zero, zero, 500, 400, eta=0.5, noise=noise)
    now, then = ours.at(500).item(), ours.at(400).item()
    full = (1 - then) / (1 - now) * (1 - now / then)
    assert fixed.var().item() == pytest.approx(0.25 * full, rel=0.02)  # standard error of a variance: 0.3 %


@pytest.mark.parametrize("solver, order", [(samplers.sample, 1), (samplers.sample_second_order, 2)])
def test_order_of_convergence(solver, order):
    """Halving the steps multiplies the error by 2 to the power of the order, on a schedule with many times."""
    ours = schedule.linear(T=100_000, first=1e-6, last=2e-4)
    # one normal distribution: smooth enough for the order to show
    def denoiser(x, t, cond):
        alpha_bar = ours.at(t)[:, None]
        return (1 - alpha_bar).sqrt() * x / (alpha_bar * SPREAD**2 + 1 - alpha_bar)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    # the exact solution scales x by the ratio of standard deviations; compare before the last, singular jump
    alpha_bar = ours.alpha_bar

    def error(steps):
        path = samplers.times(len(ours), steps)
        states = list(solver(ours, denoiser, x, steps))
        s = path[-2 - steps // 4]  # a time three quarters along the way
        deviation = lambda t: (alpha_bar[t] * SPREAD**2 + 1 - alpha_bar[t]).sqrt()
        return (states[-1 - steps // 4 - 1] - x * deviation(s) / deviation(path[0])).abs().max().item()

    ratio = error(80) / error(160)
    assert 2 ** (order - 0.35) < ratio < 2 ** (order + 0.6)


def test_inversion_comes_back_and_more_steps_are_better():
    ours = schedule.linear()
    x0 = torch.linspace(-2, 2.5, 20, dtype=torch.float64)[:, None]

    def round_trip(steps):
        noise = last(samplers.invert(ours, exact(ours), x0, steps))
        return (last(samplers.sample(ours, exact(ours), noise, steps)) - x0).abs().mean().item()

    few, more, many = (round_trip(steps) for steps in (20, 100, 1000))
    assert few > 2 * more > 10 * many  # Euler's method there and back: the error falls about as 1 / steps
    assert many < 0.03


# Objectives and guidance


@pytest.mark.parametrize("kind", objective.KINDS)
def test_a_perfect_predictor_of_any_kind_is_the_same_denoiser(kind):
    ours = schedule.cosine()
    x0, eps, _ = batch()
    t = torch.tensor([3, 400, 990])
    x = ours.add_noise(x0, t, eps)
    perfect = lambda x, t, cond: objective.target(ours, kind, x0, eps, t)
    denoiser = objective.as_eps(ours, kind, perfect)
    assert torch.allclose(denoiser(x, t, None), eps, atol=1e-9)


def seen_by_predictor(ours, x0, answer=0.0, **options):
    """What a predictor was given by the loss, and the loss for a constant answer."""
    seen = []
    spy = lambda x, t, cond: seen.append((x, t)) or torch.full_like(x, answer)
    torch.manual_seed(0)
    loss = objective.simple_loss(ours, "eps", spy, x0, **options)
    return (*seen[0], loss)


def test_the_loss_adds_noise_at_random_times_and_may_be_weighted():
    ours = schedule.linear()
    x0 = torch.randn(4000, 1, 2, 2)
    x, t, loss = seen_by_predictor(ours, x0)
    assert 0 <= t.min() < 10 and 990 < t.max() <= 999  # each of 1000 times is missed by 2 % of such draws
    signal, noise = ours.coefs(t, x0)
    eps = (x - signal * x0) / noise
    assert loss.item() == pytest.approx((eps**2).mean().item(), rel=1e-4)
    weighted = seen_by_predictor(ours, x0, weight=lambda t: objective.snr(ours, t).clamp(max=5))[2]
    expected = (objective.snr(ours, t).clamp(max=5) * (eps**2).flatten(1).mean(1)).mean()
    assert weighted.item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_loss_asks_for_every_time_equally_often():
    _, t, _ = seen_by_predictor(schedule.linear(T=5), torch.zeros(5000, 1))
    assert (t.bincount(minlength=5) - 1000).abs().max() < 140  # standard error 28; the first and the last included


def test_snr_is_signal_variance_over_noise_variance():
    ours = schedule.cosine()
    t = torch.tensor([0, 500, 998])
    signal, noise = ours.coefs(t, torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(objective.snr(ours, t), (signal / noise) ** 2)


@pytest.mark.parametrize("kind", objective.KINDS)
def test_min_snr_bounds_the_weight_of_the_clean_picture_s_error(kind):
    """Whatever a network answers with, its weighted error is min(snr, gamma) times that of the picture it implies."""
    ours = schedule.cosine()
    x0, eps, answer = batch()
    for t in (3, 200, 500, 900):
        times = torch.full((3,), t)
        x = ours.add_noise(x0, times, eps)
        noise = objective.as_eps(ours, kind, lambda *_: answer)(x, times, None)
        implied = samplers.predict_x0(ours, x, noise, t)
        error = (answer - objective.target(ours, kind, x0, eps, times)).pow(2).mean()
        weighted = objective.min_snr(ours, kind, gamma=5.0)(times)[0] * error
        bar = ours.at(t)
        torch.testing.assert_close(weighted, min(bar / (1 - bar), 5.0) * (implied - x0).pow(2).mean())


def test_min_snr_refuses_what_makes_no_sense():
    with pytest.raises(UserError, match="gamma must be above 0, not 0"):
        objective.min_snr(schedule.cosine(), "v", 0)
    with pytest.raises(UserError, match="unknown kind of prediction 'w'"):
        objective.min_snr(schedule.cosine(), "w")


def test_offset_noise_shifts_whole_channels():
    ours = schedule.linear()
    x0 = torch.zeros(2000, 2, 4, 4)
    for offset, spread in ((0.0, 1 / 16), (0.5, 1 / 16 + 0.25)):
        x, t, _ = seen_by_predictor(ours, x0, noise_offset=offset)
        eps = x / ours.coefs(t, x0)[1]
        means = eps.mean((2, 3))  # of each channel
        assert means.var().item() == pytest.approx(spread, rel=0.1)  # standard error of a variance of 4000: 2 %


def test_velocity_is_that_of_diffusers():
    ours, scheduler = theirs(DDIMScheduler, "linear")
    x0, eps, _ = batch()
    t = torch.tensor([0, 500, 999])
    ours_v = objective.target(ours, "v", x0, eps, t)
    assert torch.allclose(ours_v, scheduler.get_velocity(x0, eps, t), rtol=0, atol=1e-9)


def test_guidance_is_the_line_through_both_answers():
    answers = lambda x, t, cond: cond[:, :, None, None] * torch.ones_like(x)
    x, t, cond = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long), torch.full((2, 3), 5.0)
    for scale, expected in ((0.0, 1.0), (1.0, 5.0), (2.0, 9.0)):
        eps = guidance.Guided(answers, torch.ones(1, 3), scale)(x, t, cond)
        assert torch.equal(eps, torch.full_like(x, expected))


def test_guidance_asks_once_with_both_conditions_in_one_batch():
    asked = []
    network = lambda x, t, cond: asked.append((x, t, cond)) or x * cond[:, None]
    x, t, cond = torch.randn(3, 2), torch.tensor([7, 8, 9]), torch.tensor([1.0, 2.0, 3.0])
    for null in (torch.tensor([10.0]), torch.full((3,), 10.0)):
        got = guidance.Guided(network, null, 3.0)(x, t, cond)
        assert torch.allclose(got, x * (10 + 3 * (cond - 10))[:, None])
    assert len(asked) == 2 and asked[0][0].shape == (6, 2)
    assert asked[0][1].tolist() == [7, 8, 9, 7, 8, 9] and asked[0][2].tolist() == [10, 10, 10, 1, 2, 3]


def test_noise_picture_and_velocity_turn_into_each_other():
    """At each time the three answers are one: x = signal x0 + noise eps, v = signal eps - noise x0."""
    ours = schedule.linear()
    x0, eps, _ = batch()
    for t in range(0, 1000, 37):
        times = torch.full((3,), t)
        x = ours.add_noise(x0, times, eps)
        v = objective.target(ours, "v", x0, eps, times)
        signal, noise = ours.alpha_bar[t].sqrt(), (1 - ours.alpha_bar[t]).sqrt()
        assert torch.allclose(signal * x - noise * v, x0, atol=1e-12)
        assert torch.allclose(noise * x + signal * v, eps, atol=1e-12)
        for kind, answer in (("eps", eps), ("x0", x0), ("v", v)):
            found = objective.as_eps(ours, kind, lambda *a, answer=answer: answer)(x, times, None)
            assert torch.allclose(found, eps, atol=1e-9)
            assert torch.allclose(samplers.predict_x0(ours, x, found, times), x0, atol=1e-9)


def test_each_picture_gets_the_coefficients_of_its_own_time():
    """The trap of chapter 3: (B,) must become (B, 1, 1, 1), else torch spreads the times over the columns."""
    ours = schedule.cosine()
    for shape in ((3, 2, 4, 4), (4, 4, 4, 4), (3, 5), (3, 2, 4, 4, 4), (3,)):  # 4 pictures of 4 columns would fit too
        x0, eps = torch.randn(2, *shape, dtype=torch.float64)
        t = torch.tensor([999, 10, 500, 0])[: shape[0]]
        signal, noise = ours.coefs(t, x0)
        assert signal.shape == noise.shape == (shape[0], *[1] * (len(shape) - 1))
        assert torch.allclose(signal**2 + noise**2, torch.ones_like(signal))
        together = ours.add_noise(x0, t, eps)
        for i in range(shape[0]):
            a = ours.alpha_bar[t[i]]
            assert torch.allclose(together[i], a.sqrt() * x0[i] + (1 - a).sqrt() * eps[i])
            assert torch.equal(together[i : i + 1], ours.add_noise(x0[i : i + 1], int(t[i]), eps[i : i + 1]))
    assert [ours.at(torch.tensor([2, 0], dtype=kind)).tolist() for kind in (torch.uint8, torch.int32)] == [
        ours.alpha_bar[[2, 0]].tolist()
    ] * 2


# Generators


def picky(x, t, cond):
    return x / (1 + t[:, None, None, None] / 1000)


def test_with_its_own_generator_a_picture_depends_on_its_own_seed_alone():
    ours = schedule.linear()

    def draw(seeds, **options):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = samplers.normal(torch.empty(len(seeds), 1, 3, 3), generators)
        return last(samplers.sample(ours, picky, x, 10, generator=generators, **options))

    for options in (dict(eta=1.0), dict(eta=0.5), dict(eta=1.0, large=True), dict()):
        four = draw([3, 1, 4, 1], **options)
        assert torch.equal(four[1], four[3]) and not torch.equal(four[0], four[1])
        assert torch.equal(draw([1, 4], **options), four[1:3])
        assert torch.equal(draw([4, 9, 3], **options)[[2, 0]], four[[0, 2]])
    common = lambda: last(samplers.sample(ours, picky, four, 10, eta=1.0, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(common(), common())


def test_one_generator_gives_what_torch_draws_with_it():
    like = torch.empty(2, 3, dtype=torch.float64)
    expected = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(samplers.normal(like, torch.Generator().manual_seed(0)), expected)


# Bad input


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, 10.0, "10", None, True])
def test_a_wrong_number_of_steps(steps):
    with pytest.raises(UserError, match="from 1 to 1000"):
        samplers.times(1000, steps)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (dict(eta=1.5), "eta must lie in"),
        (dict(eta=-0.1), "eta must lie in"),
        (dict(eta=float("nan")), "eta must lie in"),
        (dict(s=10), "an earlier one"),
        (dict(s=11), "an earlier one"),
        (dict(s=-2), "an earlier one"),
        (dict(t=-1, s=-1), "an earlier one"),
        (dict(t=1000), "must lie in -1 .. 999"),
        (dict(t=10.0), "whole numbers, not torch.float32"),
        (dict(s=5.5), "whole numbers, not torch.float32"),
        (dict(eps=torch.zeros(3, 2, 4, 5)), "same shape"),
        (dict(eps=torch.zeros(1, 2, 4, 4)), "same shape"),
        (dict(eta=1.0), "needs noise"),
        (dict(large=True), "needs noise"),
        (dict(eta=1.0, noise=torch.zeros(3, 2, 4, 1)), r"shape \(3, 2, 4, 4\), not \(3, 2, 4, 1\)"),
        (dict(x=torch.zeros(3, 2, 4, 4, dtype=torch.uint8)), "floating-point, not torch.uint8"),
        (dict(x=torch.zeros(3, 2, 4, 4, dtype=torch.complex64)), "floating-point, not torch.complex64"),
        (dict(eps=torch.zeros(3, 2, 4, 4, dtype=torch.int64)), "noise must be floating-point"),
    ],
)
def test_a_wrong_step(change, complaint):
    arguments = dict(x=torch.zeros(3, 2, 4, 4), eps=torch.zeros(3, 2, 4, 4), t=10, s=5) | change
    with pytest.raises(UserError, match=complaint):
        samplers.step(schedule.linear(), **arguments)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (dict(steps=0), "from 1 to 1000, not 0"),
        (dict(steps=1001), "from 1 to 1000, not 1001"),
        (dict(steps=5.0), "from 1 to 1000, not 5.0"),
        (dict(eta=1.01), "eta must lie in"),
        (dict(eta=float("nan")), "eta must lie in"),
        (dict(x=torch.zeros(2, 1, 2, 2, dtype=torch.int64)), "pictures must be floating-point, not torch.int64"),
        (dict(x=torch.zeros(2, 1, 2, 2, dtype=torch.complex64)), "pictures must be floating-point"),
        (dict(x=[[0.0]]), "pictures must be floating-point, not list"),
        (dict(cond=torch.zeros(3, dtype=torch.int64)), "2 pictures need 2 conditions"),
        (dict(cond=torch.tensor(1)), "2 pictures need 2 conditions"),
        (dict(path=[]), "end with -1"),
        (dict(path=[-1]), "end with -1"),
        (dict(path=[10, 5, 0]), "end with -1"),
        (dict(path=[10, 10, -1]), "must fall"),
        (dict(path=[5, 10, -1]), "must fall"),
        (dict(path=[10, -1, -2]), "end with -1"),
        (dict(path=[1000, -1]), "must lie in -1 .. 999"),
        (dict(path=[10.0, -1]), "holds whole numbers"),
        (dict(path=5), "holds whole numbers"),
        (dict(generator=[torch.Generator()]), "one generator or 2, not 1"),
        (dict(generator=[torch.Generator()] * 3), "one generator or 2, not 3"),
    ],
)
def test_a_wrong_call_of_a_sampler_is_refused_before_the_first_step(change, complaint):
    arguments = dict(x=torch.zeros(2, 1, 2, 2), steps=10, eta=0.0, cond=None) | change
    with pytest.raises(UserError, match=complaint) as caught:
        next(samplers.sample(schedule.linear(), picky, **arguments))
    assert "\n" not in str(caught.value)
    if not set(change) & {"eta", "path", "generator"}:
        del arguments["eta"]
        for other in (samplers.sample_second_order, samplers.invert):
            with pytest.raises(UserError, match=complaint):
                next(other(schedule.linear(), picky, **arguments))


SAMPLERS = (samplers.sample, samplers.sample_second_order, samplers.invert)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_stops_the_sampler(sampler, value):
    broken = lambda x, t, cond: torch.full_like(x, value)
    with pytest.raises(UserError, match=r"t = (999|0) is not finite"):
        last(sampler(schedule.linear(), broken, torch.zeros(1, 1), 10))
    late = lambda x, t, cond: torch.full_like(x, value if 300 < t[0] < 600 else 0.0)
    with pytest.raises(UserError, match=r"t = (555|333) is not finite"):
        last(sampler(schedule.linear(), late, torch.zeros(1, 1), 10))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_answer_of_another_shape_stops_the_sampler(sampler):
    for shape in ((1, 1, 2, 2), (2, 3, 2, 2), (2, 1, 2)):
        with pytest.raises(UserError, match="must answer in the state's shape"):
            last(sampler(schedule.linear(), lambda *a, shape=shape: torch.zeros(shape), torch.zeros(2, 1, 2, 2), 10))


def test_an_own_path_may_hold_any_whole_numbers():
    ours, x = schedule.linear(), torch.randn(2, 1, 2, 2)
    expected = last(samplers.sample(ours, picky, x, 4))
    for path in ((999, 666, 333, 0, -1), torch.tensor([999, 666, 333, 0, -1]), np.array([999, 666, 333, 0, -1])):
        assert torch.equal(last(samplers.sample(ours, picky, x, 4, path=path)), expected)


def test_every_number_of_steps_gives_different_falling_times():
    for T in (1, 2, 7, 64):
        for steps in range(1, T + 1):
            path = samplers.times(T, steps)
            assert len(path) == steps + 1 and path[0] == T - 1 and path[-1] == -1
            assert all(s < t for t, s in zip(path, path[1:])) and (steps == 1 or path[-2] == 0)


def test_sampling_keeps_no_gradients():
    x = torch.randn(1, 1, 2, 2, requires_grad=True)
    for sampler in SAMPLERS:
        assert not any(state.requires_grad for state in sampler(schedule.linear(), picky, x, 3))


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda s, x: s.add_noise(x, 1000, x), "must lie in -1 .. 999"),
        (lambda s, x: s.add_noise(x, -2, x), "must lie in -1 .. 999"),
        (lambda s, x: s.add_noise(x, torch.tensor([0, 1000]), x), "must lie in -1 .. 999"),
        (lambda s, x: s.add_noise(x, 0.5, x), "whole numbers"),
        (lambda s, x: s.add_noise(x, torch.tensor([True, False]), x), "whole numbers, not torch.bool"),
        (lambda s, x: s.add_noise(x, torch.tensor([1 + 1j]), x), "whole numbers"),
        (lambda s, x: s.add_noise(x, torch.zeros(2, 1, dtype=torch.int64), x), "one number or"),
        (lambda s, x: s.add_noise(x, torch.tensor([1, 2, 3]), x), "one time or 2 times, not 3"),
        (lambda s, x: s.add_noise(x[:1], torch.tensor([1, 2, 3]), x[:1]), "one time or 1 times, not 3"),
        (lambda s, x: s.add_noise(x, 0, x[:1]), "same shape"),
        (lambda s, x: s.add_noise((x * 255).byte(), 0, (x * 255).byte()), "floating-point, not torch.uint8"),
        (lambda s, x: s.add_noise(x.cfloat(), 0, x.cfloat()), "floating-point, not torch.complex64"),
        (lambda s, x: samplers.predict_x0(s, x, x[:1], 0), "same shape"),
        (lambda s, x: objective.target(s, "eps", x, x[:1], torch.tensor([0, 1])), "same shape"),
        (lambda s, x: objective.target(s, "score", x, x, torch.tensor([0, 1])), "choose one of eps, x0, v"),
        (lambda s, x: objective.as_eps(s, "score", picky), "choose one of eps, x0, v"),
        (lambda s, x: objective.as_eps(s, "v", lambda *a: x[:1])(x, torch.tensor([0, 1]), None), "the state's shape"),
        (lambda s, x: objective.simple_loss(s, "eps", lambda *a: x[:1], x), "the state's shape"),
        (lambda s, x: objective.simple_loss(s, "eps", picky, x.long()), "floating-point"),
        (lambda s, x: objective.simple_loss(s, "eps", picky, x, noise_offset=-1), "noise offset must be 0 or more"),
        (lambda s, x: objective.simple_loss(s, "eps", picky, x, weight=lambda t: t[:, None]), "one number for each"),
        (lambda s, x: guidance.Guided(picky, torch.tensor([0]), -1), "must be 0 or more, not -1"),
        (lambda s, x: guidance.Guided(picky, torch.tensor([0]), float("nan")), "must be 0 or more, not nan"),
        (lambda s, x: guidance.Guided(picky, torch.tensor([0]), float("inf")), "must be 0 or more, not inf"),
        (lambda s, x: guidance.Guided(picky, torch.tensor([0]), 2)(x, torch.tensor([0, 1]), None), "needs a condition"),
        (
            lambda s, x: guidance.Guided(picky, torch.zeros(3), 2)(x, torch.tensor([0, 1]), torch.zeros(2)),
            "cannot stand in for",
        ),
    ],
)
def test_wrong_pictures_times_and_kinds(call, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        call(schedule.linear(), torch.zeros(2, 1, 2, 2))
    assert "\n" not in str(caught.value)


def test_where_no_signal_is_left_the_noise_does_not_tell_the_picture():
    empty = schedule.Schedule(torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64))
    with pytest.raises(UserError, match="no signal is left"):
        last(samplers.sample(empty, picky, torch.zeros(1, 1, 2, 2), 3))


@pytest.mark.parametrize("build", [schedule.linear, schedule.scaled_linear, schedule.cosine])
@pytest.mark.parametrize("T", [0, -5, 2.0, "10"])
def test_a_wrong_number_of_times(build, T):
    with pytest.raises(UserError, match="whole number of times"):
        build(T)


@pytest.mark.parametrize(
    "alpha_bar", [[0.5, 0.6], [0.5, 0.5], [1.0, 0.5], [0.5, -0.1], [0.5, float("nan")], [], [[0.5]]]
)
def test_a_wrong_schedule(alpha_bar):
    with pytest.raises(UserError):
        schedule.Schedule(torch.tensor(alpha_bar, dtype=torch.float64))
    with pytest.raises(UserError, match="float64"):
        schedule.Schedule(torch.tensor([0.5, 0.4]))
    for betas in ([0.1, 0.0], [0.1, 1.5], [-0.1, 0.1]):
        with pytest.raises(UserError):
            schedule.from_betas(torch.tensor(betas))


def test_the_last_step_adds_no_noise_and_an_evenly_spread_path_ends_at_clean_data():
    assert samplers.times(1000, 4) == [999, 666, 333, 0, -1] and samplers.times(5, 5) == [4, 3, 2, 1, 0, -1]
    assert samplers.times(1000, 1) == [999, -1]
    x, eps, noise = batch()
    ours = schedule.linear()
    for t in (0, 400):
        for options in (dict(eta=1.0), dict(eta=1.0, large=True), dict(large=True)):
            bare = samplers.step(ours, x, eps, t, -1, **options)
            assert torch.equal(bare, samplers.step(ours, x, eps, t, -1, noise=noise, **options))
            assert torch.equal(bare, samplers.predict_x0(ours, x, eps, t))

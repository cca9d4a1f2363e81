"""Schedules and steps against Diffusers, in float64 with injected noise; and where no training is needed, exactly."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

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
    scheduler.set_timesteps(1000)
    for t in (999, 700, 350, 1, 0):
        x, eps, noise = batch(t)
        expected = scheduler.step(eps, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
        if t == 0:
            noise = None  # and none is needed
        got = samplers.step(ours, x, eps, t, t - 1, eta=eta, noise=noise, clip=clip)
        assert (got - expected).abs().max() <= 1e-9 * max(1, expected.abs().max()), t


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_eta_one_is_the_posterior_of_ddpm(name, monkeypatch):
    ours, scheduler = theirs(DDPMScheduler, name)
    import diffusers.schedulers.scheduling_ddpm as home

    for t in (999, 500, 1, 0):
        x, eps, noise = batch(t)
        monkeypatch.setattr(home, "randn_tensor", lambda *a, noise=noise, **k: noise)
        expected = scheduler.step(eps, t, x).prev_sample
        got = samplers.step(ours, x, eps, t, t - 1, eta=1.0, noise=noise)
        assert (got - expected).abs().max() <= 1e-9 * max(1, expected.abs().max()), t


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
    from scipy.stats import ks_2samp

    ours = schedule.linear()
    torch.manual_seed(0)
    x = torch.randn(4000, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    got = last(samplers.sample(ours, exact(ours), x, 500, eta=eta, generator=generator))
    means, weights = MIXTURE
    drawn = means[torch.multinomial(weights, 4000, replacement=True)] + SPREAD * torch.randn(4000, dtype=torch.float64)
    assert ks_2samp(got[:, 0].numpy(), drawn.numpy()).pvalue > 0.01  # a sound sampler fails one seed in a hundred


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


def test_snr_is_signal_variance_over_noise_variance():
    ours = schedule.cosine()
    t = torch.tensor([0, 500, 998])
    signal, noise = ours.coefs(t, torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(objective.snr(ours, t), (signal / noise) ** 2)


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


# Bad input


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5])
def test_a_wrong_number_of_steps(steps):
    with pytest.raises(UserError, match="from 1 to 1000"):
        samplers.times(1000, steps)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (dict(eta=1.5), "eta must lie in"),
        (dict(eta=-0.1), "eta must lie in"),
        (dict(s=10), "an earlier one"),
        (dict(t=1000), "must lie in -1 .. 999"),
        (dict(eps=torch.zeros(3, 2, 4, 5)), "same shape"),
        (dict(eta=1.0), "needs noise"),
    ],
)
def test_a_wrong_step(change, complaint):
    arguments = dict(x=torch.zeros(3, 2, 4, 4), eps=torch.zeros(3, 2, 4, 4), t=10, s=5) | change
    with pytest.raises(UserError, match=complaint):
        samplers.step(schedule.linear(), **arguments)


def test_an_answer_that_is_no_number_stops_the_sampler():
    broken = lambda x, t, cond: torch.full_like(x, float("nan"))
    with pytest.raises(UserError, match="t = 999 is not finite"):
        last(samplers.sample(schedule.linear(), broken, torch.zeros(1, 1), 10))


@pytest.mark.parametrize("alpha_bar", [[0.5, 0.6], [1.0, 0.5], [0.5, float("nan")], []])
def test_a_wrong_schedule(alpha_bar):
    with pytest.raises(UserError):
        schedule.Schedule(torch.tensor(alpha_bar, dtype=torch.float64))


def test_the_last_step_adds_no_noise_and_an_evenly_spread_path_ends_at_clean_data():
    assert samplers.times(1000, 4) == [999, 666, 333, 0, -1] and samplers.times(5, 5) == [4, 3, 2, 1, 0, -1]
    assert samplers.times(1000, 1) == [999, -1]
    x, eps, noise = batch()
    ours = schedule.linear()
    assert torch.equal(
        samplers.step(ours, x, eps, 0, -1, eta=1.0), samplers.step(ours, x, eps, 0, -1, eta=1.0, noise=noise)
    )

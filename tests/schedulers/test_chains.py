"""Chains and descents on known energies: moments, Kolmogorov-Smirnov, acceptance, weights of a mixture, the end."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

import hfgen
from hfgen.distributions.chains import acceptance, clipped_gradient
from hfgen.schedulers.chain import uniform_for

SCALES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def gaussian(x):
    """E and dE/dx of independent normal numbers with these standard deviations."""
    return (x / SCALES).square().sum(1) / 2, x / SCALES**2


def mixture(x, weights=(0.2, 0.8), means=(-2.0, 2.0), deviation=0.6):
    """E and dE/dx of a mixture of two normal distributions on a line."""
    weights, means = (torch.tensor(v, dtype=torch.float64) for v in (weights, means))
    logits = weights.log() - (x - means).square() / (2 * deviation**2)
    return -logits.logsumexp(1), ((x - means) * logits.softmax(1)).sum(1, keepdim=True) / deviation**2


def follow(scheduler, energy, x, steps, seed=0):
    """Follow a scheduler from x, which is what it would begin with."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        value, gradient = energy(x)
        x = scheduler.step(gradient, t, x, energy=value, generator=generator).prev_sample
    return x


def start(count, dimensions, spread=1.0):
    return spread * torch.randn(count, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pvalue(sample, cdf):
    return stats.kstest(np.asarray(sample), cdf).pvalue


@pytest.mark.parametrize("leapfrog_steps", [1, 5])
def test_mala_and_hmc_draw_a_gaussian(leapfrog_steps):
    scheduler = hfgen.schedulers.HamiltonianScheduler(0.08, leapfrog_steps)
    x = follow(scheduler, gaussian, start(3000, 3), 80 if leapfrog_steps == 1 else 25)
    for values, scale in zip(x.T, SCALES, strict=True):
        assert pvalue(values, stats.norm(0, float(scale)).cdf) > 1e-3
    assert_close(x.std(0), SCALES, rtol=0.06, atol=0)
    assert 0.5 < scheduler.accepted < 1


@pytest.mark.parametrize("leapfrog_steps", [1, 4])
def test_the_target_is_invariant_even_with_long_steps(leapfrog_steps):
    """From the target itself, with moves of which many are refused; Langevin steps of this size double its width."""
    scheduler = hfgen.schedulers.HamiltonianScheduler(0.2, leapfrog_steps)
    x = follow(scheduler, gaussian, start(3000, 3) * SCALES, 12)
    for values, scale in zip(x.T, SCALES, strict=True):
        assert pvalue(values, stats.norm(0, float(scale)).cdf) > 1e-3
    assert scheduler.accepted < 0.9
    rough = follow(hfgen.schedulers.LangevinScheduler(0.2), gaussian, start(3000, 3) * SCALES, 12)
    assert pvalue(rough[:, 0], stats.norm(0, 0.5).cdf) < 1e-4


def test_the_share_of_accepted_moves_is_that_of_the_energies():
    """One move from one state: accepted as often as Metropolis' rule says, by the mean over many proposals."""
    x = torch.full((20000, 1), 1.5, dtype=torch.float64)
    scheduler = hfgen.schedulers.HamiltonianScheduler(1.0, 1)
    energy = lambda y: (y.square().sum(1) / 2, y)  # noqa: E731
    out = follow(scheduler, energy, x, 1)
    p = torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    e = math.sqrt(2)
    half = p - e / 2 * 1.5
    y = 1.5 + e * half
    end = half - e / 2 * y
    expected = (1.5**2 / 2 + p**2 / 2 - y**2 / 2 - end**2 / 2).clamp(max=0).exp().mean()
    assert scheduler.accepted == pytest.approx(float(expected), abs=0.015)
    assert float((out != 1.5).double().mean()) == pytest.approx(scheduler.accepted)


def test_mala_proposes_langevin_steps():
    """With the same noise, a move that is accepted is a Langevin step of this step size."""
    x = start(50, 3)
    steps = []
    for scheduler in (hfgen.schedulers.HamiltonianScheduler(1e-3, 1), hfgen.schedulers.LangevinScheduler(1e-3)):
        scheduler.set_timesteps(1)
        value, gradient = gaussian(x)
        generator = torch.Generator().manual_seed(7)
        steps.append(scheduler.step(gradient, 0, x, energy=value, generator=generator).prev_sample)
    assert_close(*steps)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_langevin_has_the_moments_of_its_discretisation(temperature):
    """On a parabola the chain is linear: its variance is T s^2 / (1 - h / (2 s^2)) exactly, here within noise."""
    h = 0.1
    scheduler = hfgen.schedulers.LangevinScheduler(h, temperature)
    x = follow(scheduler, gaussian, start(4000, 3), 150)
    expected = (temperature * SCALES**2 / (1 - h / (2 * SCALES**2))).sqrt()
    assert_close(x.std(0), expected, rtol=0.05, atol=0)
    for values, scale in zip(x.T[:2], expected[:2], strict=True):
        assert pvalue(values, stats.norm(0, float(scale)).cdf) > 1e-3


def test_hmc_draws_a_mixture_on_a_line():
    modes = {"weights": (0.3, 0.7), "means": (-1.0, 1.0), "deviation": 0.7}
    x = follow(hfgen.schedulers.HamiltonianScheduler(0.08, 6), lambda y: mixture(y, **modes), start(3000, 1), 30)
    pair = [stats.norm(mean, 0.7) for mean in (-1, 1)]
    assert pvalue(x[:, 0], lambda y: 0.3 * pair[0].cdf(y) + 0.7 * pair[1].cdf(y)) > 1e-3


def noisy_mixture(x, sigma):
    """eps of the mixture with noise of this level: sigma times minus its score."""
    return sigma * mixture(x, deviation=math.hypot(0.2, sigma))[1]


def test_an_annealed_chain_finds_the_weights_of_a_mixture():
    """Song & Ermon's example: Langevin steps at one level keep the weights of the start, 1/2 each."""
    options = {"sigma_min": 0.05, "sigma_max": 10.0, "steps_per_level": 24}
    scheduler = hfgen.schedulers.AnnealedLangevinScheduler(**options)
    scheduler.set_timesteps(24)
    generator = torch.Generator().manual_seed(0)
    x = start(2000, 1) * scheduler.init_noise_sigma
    sigmas = scheduler.path(scheduler.path.time_of(scheduler.timesteps.double())).sigma.tolist()
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        x = scheduler.step(noisy_mixture(x, sigma), t, x, generator=generator).prev_sample
    share = float((x > 0).double().mean())
    assert share == pytest.approx(0.8, abs=0.03)
    assert float(x[x > 0].mean()) == pytest.approx(2.0, abs=0.03)
    assert float(x[x > 0].std()) == pytest.approx(0.2, abs=0.03)
    plain = follow(hfgen.schedulers.LangevinScheduler(0.01), lambda y: mixture(y, deviation=0.2), start(3000, 1), 400)
    assert float((plain > 0).double().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_an_annealed_chain_on_a_path_that_preserves_variance_draws_the_same_mixture():
    scheduler = hfgen.schedulers.AnnealedLangevinScheduler(path="cosine_vp", steps_per_level=24)
    scheduler.set_timesteps(40)
    generator = torch.Generator().manual_seed(0)
    x = start(2000, 1) * scheduler.init_noise_sigma
    point = scheduler.path(scheduler.path.time_of(scheduler.timesteps.double()))
    for t, alpha, sigma in zip(scheduler.timesteps, point.alpha.tolist(), point.sigma.tolist(), strict=True):
        eps = sigma * mixture(x, means=(-2 * alpha, 2 * alpha), deviation=math.hypot(0.2 * alpha, sigma))[1]
        x = scheduler.step(eps, t, x, generator=generator).prev_sample
    assert float((x > 0).double().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(x[x > 0].mean()) == pytest.approx(2.0, abs=0.03)


# --- descents ---------------------------------------------------------------------------------------------------------


def test_a_descent_is_gradient_descent_by_hand():
    x = start(4, 3)
    out = follow(hfgen.schedulers.GradientDescentScheduler(0.1), gaussian, x, 5)
    assert_close(out, x * (1 - 0.1 / SCALES**2) ** 5)


def test_nesterov_by_hand_and_it_is_faster():
    x = start(4, 3)
    before = y = x
    for k in range(6):
        after = y - 0.1 * gaussian(y)[1]
        y = after if k == 5 else after + 0.6 * (after - before)
        before = after
    scheduler = hfgen.schedulers.GradientDescentScheduler(0.1, momentum=0.6)
    assert_close(follow(scheduler, gaussian, x, 6), y)
    plain = follow(hfgen.schedulers.GradientDescentScheduler(0.1), gaussian, x, 30)
    assert gaussian(follow(scheduler, gaussian, x, 30))[0].sum() < gaussian(plain)[0].sum() / 10


def test_items_stop_one_by_one():
    x = torch.tensor([[0.001, 0, 0], [0.5, 0, 0], [3.0, 0, 0]], dtype=torch.float64)
    scheduler = hfgen.schedulers.GradientDescentScheduler(0.1, tolerance=0.1)
    scheduler.set_timesteps(200)
    count = 0
    while not scheduler.finished and count < 200:
        count += 1
        x_before, gradient = x, gaussian(x)[1]
        x = scheduler.step(gradient, 0, x).prev_sample
        assert torch.equal(x[0], x_before[0])
    assert 5 < count < 40 and scheduler.finished
    assert (gaussian(x)[1].square().mean(1).sqrt() <= 0.1).all()


def test_quiet_steps_clips_and_bounds():
    x = start(4, 3, 5.0)
    quiet = hfgen.schedulers.LangevinScheduler(0.1, quiet=1.0)
    assert_close(follow(quiet, gaussian, x, 5), follow(hfgen.schedulers.GradientDescentScheduler(0.1), gaussian, x, 5))
    half = hfgen.schedulers.LangevinScheduler(0.1, quiet=0.5)
    half.set_timesteps(4)
    moved = [half.step(torch.zeros(2, 3), 0, torch.zeros(2, 3)).prev_sample.abs().sum() > 0 for _ in range(4)]
    assert moved == [False, False, True, True]
    bound = hfgen.schedulers.LangevinScheduler(0.1, bound=0.5)
    assert follow(bound, gaussian, x, 1).abs().max() <= 0.5
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    clipped = clipped_gradient(gradient, 1.0)
    assert_close(clipped[0], gradient[0] / math.sqrt(12.5))
    assert torch.equal(clipped[1], gradient[1]) and clipped_gradient(gradient, None) is gradient


def test_an_energy_that_is_not_finite_is_never_accepted():
    before = torch.tensor([1.0, 1.0, 1.0, 1.0])
    after = torch.tensor([math.inf, math.nan, -math.inf, 1.5])
    assert_close(acceptance(before, after), torch.tensor([0, 0, 0, math.exp(-0.5)]))


def test_one_generator_for_each_item_draws_the_same_alone():
    seeds = lambda: [torch.Generator().manual_seed(n) for n in range(3)]  # noqa: E731
    together = uniform_for(torch.zeros(3, 2), seeds())
    alone = torch.cat([uniform_for(torch.zeros(1, 2), [generator]) for generator in seeds()])
    assert torch.equal(together, alone) and (together > 0).all() and (together < 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: s.LangevinScheduler(0.0), "step_size=0.0 must be positive"),
        (lambda s: s.LangevinScheduler(temperature=-1.0), "temperature=-1.0 must be at least 0"),
        (lambda s: s.LangevinScheduler(clip=0.0), "clip=0.0 must be positive"),
        (lambda s: s.LangevinScheduler(quiet=1.5), "quiet=1.5 a share"),
        (lambda s: s.HamiltonianScheduler(leapfrog_steps=0), "leapfrog_steps=0 must be a whole number"),
        (lambda s: s.HamiltonianScheduler(temperature=0.0), "temperature=0.0 must be positive"),
        (lambda s: s.GradientDescentScheduler(momentum=1.0), "momentum=1.0 must be at least 0 and below 1"),
        (lambda s: s.AnnealedLangevinScheduler(snr=2.0), "snr=2.0 must be above 0 and below 2"),
        (lambda s: s.AnnealedLangevinScheduler(steps_per_level=0), "steps_per_level=0 must be"),
        (lambda s: s.LangevinScheduler().set_timesteps(0), "num_inference_steps=0 must be at least 1"),
        (lambda s: s.HamiltonianScheduler().step(torch.zeros(1, 2), 0, torch.zeros(1, 2)), "give energy="),
    ],
)
def test_impossible_chains_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(hfgen.schedulers)

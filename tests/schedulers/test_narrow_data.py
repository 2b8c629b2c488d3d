"""Likelihoods of data as narrow as a level or less, on every path, with perfect networks: against closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from hfgen.paths import path_from_config
from hfgen.schedulers import end_decoder
from hfgen.schedulers.ode_likelihood import Velocity, log_density, log_likelihood
from tests.helpers.gaussian import F64, Gaussian, ideal_network, ideal_pipeline

LEVEL = 1 / 127.5
NATS = 1e-3

PATHS = [
    ("straight", "flow_prediction"),
    ("vp", "epsilon"),
    ("cosine", "v_prediction"),
    ("linear_vp", "score"),
    ("ve", "epsilon"),
]


class Levels:
    """Independent pixels with the probabilities `p` (256,) of the levels; `dequantised`: and uniform noise."""

    def __init__(self, p, dequantised=False):
        keep = p > 1e-15
        centres = (torch.arange(256, dtype=F64)[keep]) * LEVEL - 1
        fine = (torch.arange(64, dtype=F64) + 0.5) / 64 - 0.5 if dequantised else torch.zeros(1, dtype=F64)
        self.points = (centres[:, None] + fine * LEVEL).flatten()
        self.log_p = (p[keep].log()[:, None] + fine * 0 - math.log(len(fine))).flatten()

    def x_0(self, x, alpha, sigma):
        away = (x[..., None] - alpha * self.points) / sigma
        return torch.softmax(self.log_p - away.square() / 2, -1) @ self.points


def rounded(*parts):
    """The probabilities (256,) of the levels for an equal mixture of N(mean, std^2), in levels, with open ends."""
    edges = np.concatenate([[-np.inf], np.arange(255) + 0.5, [np.inf]])
    return torch.tensor(np.mean([np.diff(norm.cdf(edges, *part)) for part in parts], 0))


def draws(p, count=12, side=4):
    """Images (count, 1, side, side) of independent pixels, and their log-probabilities per dimension (count,)."""
    k = torch.multinomial(p, count * side**2, replacement=True, generator=torch.Generator().manual_seed(0))
    k = k.view(count, 1, side, side)
    return k.to(F64) * LEVEL - 1, p[k].log().mean((1, 2, 3))


def excess(problem, path, kind, images, log_p):
    """The bound minus the truth in nats per dimension, for each image. A pixel depends on itself alone: one probe is
    exact."""
    pipeline = ideal_pipeline(problem, path, kind, side=images.shape[-1])
    generator = torch.Generator().manual_seed(1)
    bits = pipeline.bits_per_dim(images, generator=generator, trace="hutchinson")
    return bits * math.log(2) + log_p


CASES = {
    "constant": ([(100, 1e-3)], 1e-3),
    "constant, the first level": ([(0, 1e-3)], 1e-3),
    "a fifth of a level": ([(100, 0.2)], 1e-3),
    "a fifth of a level, between levels": ([(100.3, 0.2)], 1e-3),
    "a fifth of a level, the first level": ([(0.4, 0.2)], 1e-3),
    "half a level": ([(100.2, 0.5)], 3e-3),
    "one level, the last level": ([(254.8, 1.0)], 3e-3),
    "three levels": ([(100, 3.0)], 1e-3),
    "black and white": ([(0, 0.2), (255, 0.2)], 5e-3),
    "two greys": ([(100, 0.2), (110, 0.3)], 0.025),
}
"""Data and the tolerance in nats per dimension: the error of 20 steps, of either sign, and the noise of 192 pixels."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("path", "kind"), PATHS)
def test_a_perfect_network_of_levels_has_their_probability(path, kind, case):
    parts, tolerance = CASES[case]
    p = rounded(*parts)
    values = excess(Levels(p), path, kind, *draws(p))
    assert abs(values.mean()) < tolerance, values


@pytest.mark.parametrize("side", [1, 4])
@pytest.mark.parametrize("parts", [[(128, 40)], [(100, 0.2), (180, 5)], [(100.37, 0.2)]])
@pytest.mark.parametrize(
    "table",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"num_train_timesteps": 50, "beta_start": 0.002, "beta_end": 0.4},
    ],
)
def test_tables_that_begin_with_more_noise_have_the_same_probabilities(table, parts, side):
    """They end at 3.7 and 5.7 levels of noise, where a wide posterior has mass far from its mean."""
    p = rounded(*parts)
    images, log_p = draws(p, 256 // side**2, side)
    pipeline = ideal_pipeline(Levels(p), "vp", "epsilon", side, **table)
    pipeline.denoiser.path = pipeline.scheduler.path
    bits = pipeline.bits_per_dim(images, generator=torch.Generator().manual_seed(1), trace="hutchinson")
    assert abs((bits * math.log(2) + log_p).mean()) < 5e-3


@pytest.mark.parametrize(("path", "kind"), PATHS)
def test_two_values_closer_than_the_noise_cost_at_most_the_stated_floor(path, kind):
    p = rounded((100, 1e-3), (103, 1e-3))
    values = excess(Levels(p), path, kind, *draws(p))
    assert -1e-3 < values.mean() < 0.8


@pytest.mark.parametrize("sigma_min", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(("parts", "costs"), [([(128, 0.2), (128, 40)], 1.5), ([(100, 0.2), (180, 5)], 3.2)])
def test_what_much_noise_at_the_end_costs_is_the_decoders(sigma_min, parts, costs):
    """A VE path that ends at 1.3, 6.4 or 26 levels: the density of the noisy data is that of the mixture."""
    p = rounded(*parts)
    problem, path = Levels(p), path_from_config({"path": "ve", "sigma_min": sigma_min, "sigma_max": 50.0})
    predict = ideal_network(problem, SimpleNamespace(path=path), "epsilon")
    velocity = Velocity(
        lambda x, step: predict(x / path.input_scale(t := path.time_of(step)), float(t)), path, "epsilon"
    )
    images, log_p = draws(p)
    x, s = images.flatten(1), velocity.low
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    y = (1 - s) * x + s * noise
    away = (y[..., None] - (1 - s) * problem.points) / s
    truth = (problem.log_p - away.square() / 2 - math.log(s * math.sqrt(2 * math.pi))).logsumexp(-1).mean(1)
    density = log_density(velocity, y, s, 20, [torch.ones_like(y)]) / x.shape[1]
    assert (density - truth).abs().mean() < 0.02 and abs((density - truth).mean()) < 4e-3
    ones = [torch.ones_like(y)]
    bound = log_likelihood(velocity, x, True, 20, noise, ones, ones) / x.shape[1]
    assert -0.03 < (log_p - bound).mean() < costs


@pytest.mark.parametrize(("path", "kind"), PATHS)
def test_a_constant_pixel_with_uniform_noise_costs_at_most_the_stated_floor(path, kind):
    p = rounded((153, 1e-3))
    values = excess(Levels(p, dequantised=True), path, kind, *draws(p, 16, 4))
    assert abs(values.mean()) < 0.03


@pytest.mark.parametrize(("path", "kind"), PATHS)
def test_the_density_of_a_narrow_gaussian(path, kind):
    x = 0.2 + 0.003 * torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    pipeline = ideal_pipeline(Gaussian(0.2, 0.003), path, kind)
    values = pipeline.log_likelihood(x, generator=torch.Generator().manual_seed(1), trace="hutchinson").numpy() / 16
    np.testing.assert_allclose(values, norm.logpdf(x.numpy(), 0.2, 0.003).mean((1, 2, 3)), rtol=0, atol=NATS)


@pytest.mark.parametrize(("path", "levels"), [("straight", 1.25), ("cosine_vp", 1.25), ("ve", 1.29), ("vp", 1.275)])
def test_the_least_noise_that_a_network_sees_is_a_level_and_a_quarter(path, levels):
    """Or the least of its training: that of the VE path at t = 0.001, that of the first entry of DDPM's table."""
    kind = "flow_prediction" if path == "straight" else "epsilon"
    pipeline = ideal_pipeline(Gaussian(0.2, 0.1), path, kind)
    seen, forward = [], pipeline.denoiser.forward
    pipeline.denoiser.forward = lambda x, t, *rest: seen.append(float(t.flatten()[0])) or forward(x, t, *rest)
    pipeline.log_likelihood(torch.zeros(1, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    road = pipeline.scheduler.path
    point = road(road.time_of(torch.tensor(min(seen), dtype=F64)))
    assert float(point.sigma / point.alpha) * 127.5 == pytest.approx(levels, rel=5e-3)


@pytest.mark.parametrize("r", [0.7, 1.28])
def test_variances_above_twice_the_noise_are_none(r):
    """Four times r^2 is the bound: above, a network's own error is taken for spread."""
    k = torch.arange(95, 106, dtype=F64)[:, None]
    y, m = torch.full_like(k, 100.4), torch.full_like(k, 100.2)
    bound, above, below = (
        end_decoder.level_log_mass(k, y, m, torch.full_like(k, share * 4 * r**2), r) for share in (1.0, 50.0, 0.9)
    )
    torch.testing.assert_close(above, bound, rtol=0, atol=1e-9)
    assert (below - bound).abs().max() > 1e-3


def test_the_projection_has_the_moments_that_are_asked_for():
    """Against the exponential family on 3 levels, solved by hand: masses (1 - v)/1, v/2 on each side."""
    window = torch.arange(-1, 2, dtype=F64).view(1, 1, 3) + 100
    base = end_decoder.levels_base(window, torch.full((1, 1), 100.0, dtype=F64), 1.3)
    masses = end_decoder.project(base, torch.full((1, 1), 100.0, dtype=F64), torch.full((1, 1), 0.1, dtype=F64)).exp()
    torch.testing.assert_close(masses, torch.tensor([[[0.05, 0.9, 0.05]]], dtype=F64))


def test_masses_of_all_levels_sum_to_at_most_one():
    k = torch.arange(256, dtype=F64).view(256, 1)
    for mean, variance in ((100.3, 0.3), (0.1, 0.05), (254.9, 1.0), (50.0, -0.3), (300.0, 2.0)):
        same = torch.full_like(k, 1.0)
        total = end_decoder.level_log_mass(k, (mean + 0.4) * same, mean * same, variance * same, 1.28).exp().sum()
        assert total < 1 + 1e-9 and total > 0.999, (mean, variance, total)


@pytest.mark.parametrize(("variance", "taken"), [(0.2, 0.2), (-3.0, 0.25e-6), (10.0, 1.0)])
def test_impossible_variances_of_real_values_are_those_nearest(variance, taken):
    """Between 1e-6 and 4 times r^2 = .25: no posterior is wider than the noise by more than the network's error."""
    x, m = torch.tensor([[0.31]], dtype=F64), torch.tensor([[0.3]], dtype=F64)
    found = end_decoder.real_log_density(x, m, torch.full((1, 1), variance, dtype=F64), 0.5)
    spreads = np.sqrt(taken + 0.25 * np.array([0, 0.06, 0.25, 1, 4]))
    expected = math.log(np.array([0.999, *[0.00025] * 4]) @ norm.pdf(0.31, 0.3, spreads))
    assert float(found) == pytest.approx(expected, rel=1e-9)

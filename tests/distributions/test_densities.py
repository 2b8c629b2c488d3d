"""Densities, steps of chains and posteriors: against SciPy, linear algebra and stationary distributions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from hfgen.distributions import chains
from hfgen.distributions.densities import (
    dequantised,
    flow_log_prob,
    level_bits,
    standard_normal_log_prob,
    symbol_bits,
)
from hfgen.distributions.posterior import posterior_of


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- densities and dequantisation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [(1,), (5,), (2, 3), (1, 2, 3)])
def test_base_densities_are_scipys(item):
    z = normal(4, *item)
    expected = stats.norm.logpdf(z.numpy()).reshape(4, -1).sum(1)
    np.testing.assert_allclose(standard_normal_log_prob(z).numpy(), expected)
    log_det = normal(4, seed=1)
    np.testing.assert_allclose(
        flow_log_prob(SimpleNamespace(latents=z, log_det=log_det)).numpy(), expected + log_det.numpy()
    )
    assert standard_normal_log_prob(z.bfloat16()).dtype == torch.float32


def test_noise_fills_the_bin_of_its_level_alone():
    k = torch.tensor([0.0, 100.0, 255.0], dtype=torch.float64)
    for u, place in ((0.0, -0.5), (0.5, 0.0), (0.75, 0.25), (1.0, 0.5)):
        y = dequantised(k / 127.5 - 1, torch.full_like(k, u))
        assert_close((y + 1) * 127.5, k + place)


def test_a_density_in_bins_has_the_bits_of_its_levels():
    """With mass p in the bin of a level, which is 2/255 wide, a level costs -log2 p bits."""
    p = torch.tensor([0.5, 1 / 256, 0.001], dtype=torch.float64)
    for dimensions in (1, 12):
        density = dimensions * (p / (2 / 255)).log()
        assert_close(level_bits(density, dimensions), -p.log2())
        assert_close(symbol_bits(dimensions * p.log(), dimensions), -p.log2())


# --- chains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "temperature"), [(0.1, 1.0), (0.5, 0.3), (1.0, 2.0)])
def test_langevin_steps_on_a_parabola_keep_the_variance_of_its_temperature(h, temperature):
    """x' = a x + b z has the variance b^2 / (1 - a^2) for ever: T / (1 - h/2) for E = x^2 / 2."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    a = float(chains.langevin_step(one, one, zero, h, temperature))
    b = float(chains.langevin_step(zero, zero, one, h, temperature))
    assert a == pytest.approx(1 - h)
    assert b**2 / (1 - a**2) == pytest.approx(temperature / (1 - h / 2))


def test_without_temperature_a_step_descends_whatever_the_noise_is():
    x, gradient = normal(3, 2), normal(3, 2, seed=1)
    np.testing.assert_allclose(
        chains.langevin_step(x, gradient, torch.full_like(x, math.nan), 0.3, 0.0).numpy(),
        x.numpy() - 0.3 * gradient.numpy(),
    )


@pytest.mark.parametrize("item", [(4,), (2, 3), (1, 2, 2)])
def test_gradients_keep_their_direction_below_the_largest_size(item):
    gradient = normal(5, *item) * torch.tensor([0.1, 0.5, 1.0, 3.0, 30.0]).view(5, *[1] * len(item))
    rows = gradient.reshape(5, -1).numpy()
    sizes = np.linalg.norm(rows, axis=1) / math.sqrt(rows.shape[1])
    np.testing.assert_allclose(chains.root_mean_square(gradient).numpy(), sizes)
    clipped = chains.clipped_gradient(gradient, 0.7).reshape(5, -1).numpy()
    np.testing.assert_allclose(np.linalg.norm(clipped, axis=1) / math.sqrt(rows.shape[1]), np.minimum(sizes, 0.7))
    np.testing.assert_allclose(
        clipped / np.abs(clipped).max(1, keepdims=True), rows / np.abs(rows).max(1, keepdims=True)
    )
    assert chains.clipped_gradient(gradient, None) is gradient


def test_kinetic_energy_has_the_digits_of_double_precision():
    momentum = (1e3 + normal(4, 2, 3)).float()
    found = chains.kinetic_energy(momentum)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), (momentum.double().numpy() ** 2).reshape(4, -1).sum(1) / 2, rtol=1e-15)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_moves_are_accepted_in_detailed_balance(temperature):
    """exp(-H/T) P(H -> H') = exp(-H'/T) P(H' -> H), and one of both is 1."""
    before, after = normal(50), normal(50, seed=1)
    there, back = chains.acceptance(before, after, temperature), chains.acceptance(after, before, temperature)
    weights = [(-value / temperature).exp() for value in (before, after)]
    assert_close(weights[0] * there, weights[1] * back)
    assert_close(torch.maximum(there, back), torch.ones(50, dtype=torch.float64))


def test_states_without_a_finite_energy_are_never_accepted():
    good = torch.zeros(3, dtype=torch.float64)
    bad = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64)
    assert chains.acceptance(good, bad).tolist() == [0, 0, 0]
    assert chains.acceptance(bad, good).tolist() == [1, 0, 0]  # out of an infinite energy every move leads down


# --- posteriors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "then"), [((0.6, 0.8), (0.9, 0.3)), ((1.0, 3.0), (1.0, 0.5)), ((0.2, 0.8), (0.7, 0.3))]
)
def test_posteriors_are_those_of_conditioning(now, then):
    """Of (x_s, x_t) given x_0, two numbers with x_t = a x_s + noise, on VP, VE and straight paths."""
    a = now[0] / then[0]
    large = now[1] ** 2 - (a * then[1]) ** 2
    covariance = np.array([[then[1] ** 2, a * then[1] ** 2], [a * then[1] ** 2, a**2 * then[1] ** 2 + large]])
    slope = covariance[0, 1] / covariance[1, 1]
    points = [SimpleNamespace(alpha=alpha, sigma=sigma) for alpha, sigma in (now, then)]
    for given in (None, large):
        keep, gain, small, found = posterior_of(*points, given)
        assert found == pytest.approx(large)
        assert small == pytest.approx(covariance[0, 0] - slope * covariance[0, 1])
        for x_0, x_t in ((1.0, 0.0), (0.3, -0.7)):
            mean = then[0] * x_0 + slope * (x_t - now[0] * x_0)
            assert keep * x_t + gain * x_0 == pytest.approx(mean)
    doubled = posterior_of(*points, 2 * large)
    assert doubled[1:] == pytest.approx([2 * gain, 2 * small, 2 * large])

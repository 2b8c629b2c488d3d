"""8-bit data and levels of noise: bits are those of the mass in a bin, half a level to either side of its level."""

import math

import pytest
import torch
from scipy.stats import norm

import hfgen
from tests.helpers.gaussian import F64, Gaussian, ideal_pipeline


@pytest.mark.parametrize("path", ["straight", "vp"])
def test_bits_per_dimension_on_a_slope_are_those_of_the_bin_around_the_level(path):
    """Where the density is steep, a bin off its level by half of it would be wrong by a fifth of a bit."""
    problem = Gaussian(0.0, 0.05)
    level = round((0.1 + 1) * 127.5) / 127.5 - 1
    edges = level - 1 / 255, level + 1 / 255
    mass = norm.cdf(edges[1], problem.mean, problem.std) - norm.cdf(edges[0], problem.mean, problem.std)
    x = torch.full((40, 1, 4, 4), level, dtype=F64)
    bits = ideal_pipeline(problem, path).bits_per_dim(x, generator=torch.Generator().manual_seed(0))
    assert float(bits.mean()) == pytest.approx(-math.log2(mass), abs=0.02)


@pytest.mark.parametrize("path", ["ve", "straight"])
def test_annealed_steps_go_along_the_score_by_half_the_variance_of_their_noise(path):
    """x' = x + h score + sqrt(2 h) z, with the score -eps / sigma (Song & Ermon 2019, algorithm 1)."""
    scheduler = hfgen.AnnealedLangevinScheduler(path=path, steps_per_level=2)
    rows = [row for row in scheduler.plan(scheduler.grid(6)) if row.noise]
    assert rows
    for row in rows:
        sigma = float(scheduler.path(torch.tensor(row.t, dtype=torch.float64)).sigma)
        gain, noise = row.next.gains[0] / row.next.keep, row.noise / row.next.keep  # before x goes to the next level
        assert gain * sigma == pytest.approx(-(noise**2) / 2)

"""8-bit data: the bits of a level are those of the mass in its own bin, half a level to either side of it."""

import math

import pytest
import torch
from scipy.stats import norm

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

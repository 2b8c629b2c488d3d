"""8-bit data and densities: where dequantisation puts a level, and what the mean over its bin costs."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.testing import assert_close

from hfgen.schedulers import ode_likelihood
from tests.helpers.gaussian import F64, Gaussian, ideal_pipeline


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_levels_are_spread_evenly_over_their_own_bins():
    """The bin of level k reaches from half a level below it to half a level above it, in units of 2 / 255."""
    x = torch.tensor([0, 1, 77, 128, 255], dtype=F64) / 127.5 - 1
    spread = [ode_likelihood.dequantise(x, torch.full_like(x, u)) for u in (0.0, 0.25, 0.5, 1.0)]
    for share, value in zip((-0.5, -0.25, 0.0, 0.5), spread, strict=True):
        assert_close(value, x + share * 2 / 255, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", ["straight", "vp"])
def test_bits_per_dimension_of_a_slope_are_the_mean_over_each_bin(path):
    """-log2 p is averaged over the bin by quadrature. A bin off its level would be as wrong as the density is steep."""
    problem = Gaussian(0.0, 0.05)
    level = round((0.1 + 1) * 127.5) / 127.5 - 1
    nodes, weights = np.polynomial.legendre.leggauss(20)
    nats = (weights / 2 * norm.logpdf(level + nodes / 255, problem.mean, problem.std)).sum()
    x = torch.full((40, 1, 4, 4), level, dtype=F64)
    bits = ideal_pipeline(problem, path).bits_per_dim(x, generator=generator())
    assert float(bits.mean()) == pytest.approx(-nats / math.log(2) + math.log2(127.5), abs=0.02)

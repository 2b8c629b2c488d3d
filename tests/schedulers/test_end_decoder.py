"""The end of a likelihood in its parts: against quadrature, SciPy's distributions, optimisers and linear programmes."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, optimize
from scipy.special import logsumexp
from scipy.stats import norm

from hfgen.schedulers import end_decoder
from tests.helpers.gaussian import F64

LEVELS = np.arange(256.0)
ERRORS = np.array([0, 0.02, 0.08, 0.3, 1.2, 5])
"""Variances of a network's own error, in squared levels: of the mixture that keeps a likelihood finite."""


def column(*values):
    """Return numbers as a batch (B, 1)."""
    return torch.tensor(values, dtype=F64)[:, None]


def window(first, last):
    return torch.arange(first, last + 1, dtype=F64).view(1, 1, -1)


def projected(log_masses, means, variances, mean, variance):
    """The masses of least divergence with these moments, by SciPy: the exponential family of two features."""
    s = means - mean
    features = np.stack([s, s**2 + variances])

    def gap(natural):
        scores = log_masses + natural @ features
        return features @ np.exp(scores - logsumexp(scores)) - [0, variance]

    natural = optimize.root(gap, [0.0, 0.0], tol=1e-13).x
    assert np.abs(gap(natural)).max() < 1e-9
    scores = log_masses + natural @ features
    return np.exp(scores - logsumexp(scores))


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (-40.0, -39.5), (39.5, 40.0), (0.5, 0.5001), (-8.0, 9.0)])
def test_the_mass_of_an_interval_has_all_digits_in_both_tails(low, high):
    with mpmath.workdps(800):
        exact = float(mpmath.log(mpmath.ncdf(mpmath.mpf(high)) - mpmath.ncdf(mpmath.mpf(low))))
    assert float(end_decoder.log_interval(column(low), column(high))) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("k", "low", "high"), [(0, -math.inf, 0.5), (1, 0.5, 1.5), (255, 254.5, math.inf)])
def test_a_bin_is_one_level_wide_and_the_outer_ones_are_open(k, low, high):
    for mean, std in ((0.7, 1.3), (254.2, 0.8)):
        expected = norm.logcdf(high, mean, std) if k < 9 else norm.logsf(low, mean, std)
        expected = math.log(norm.cdf(high, mean, std) - norm.cdf(low, mean, std)) if k == 1 and mean < 9 else expected
        if k == 1 and mean > 9:
            continue
        found = end_decoder.log_bin(column(float(k)), column(mean), std)
        assert float(found) == pytest.approx(expected, rel=1e-9)


# --- posteriors before the network's moments --------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last", "y"), [(97, 103, 100.4), (-3, 3, 0.3), (253, 258, 256.0)])
def test_levels_are_equally_likely_but_for_the_noise(first, last, y):
    base = end_decoder.levels_base(window(first, last), column(y), 1.3)
    k = np.arange(first, last + 1)
    inside = (k >= 0) & (k <= 255)
    p = np.where(inside, norm.pdf(y, k, 1.3), 0)
    masses = base.log_mass.exp()[0, 0].numpy()
    np.testing.assert_allclose(masses, p / p.max(), rtol=1e-12)  # the largest is 1
    assert base.mean[0, 0].tolist() == k.tolist() and not base.variance.any()
    assert base.log_mass.shape == (1, 1, len(k)) and (base.log_mass[0, 0][torch.tensor(~inside)] == -math.inf).all()


def test_levels_that_are_far_away_keep_a_mass_above_zero():
    """The log-masses are those of the noise, and a projection gives each level a finite one."""
    base = end_decoder.levels_base(window(90, 110), column(90.0), 0.01)
    assert base.log_mass[0, 0].tolist() == pytest.approx([-0.5 * (k / 0.01) ** 2 for k in range(21)])
    assert end_decoder.project(base, column(90.5), column(0.3)).min() > -1e7


@pytest.mark.parametrize("r", [0.2, 0.9, 3.0])
def test_dequantised_levels_have_the_moments_of_quadrature(r):
    y, k = 100.3, np.arange(96, 105)
    base = end_decoder.dequantised_base(window(96, 104), column(y), r)
    masses, near = [], np.abs(k - y) <= 6 * r
    for i, level in enumerate(k):
        ends = level - 0.5, level + 0.5
        mass, first, second = (
            integrate.quad(lambda x, n=n: (x - level) ** n * norm.pdf(x, y, r), *ends, epsabs=0, epsrel=1e-11)[0]  # noqa: B023
            for n in range(3)
        )
        masses.append(mass)
        if near[i]:
            assert float(base.mean[0, 0, i]) == pytest.approx(level + first / mass, rel=1e-9)
            assert float(base.variance[0, 0, i]) == pytest.approx(second / mass - (first / mass) ** 2, rel=1e-4)
    np.testing.assert_allclose(base.log_mass.exp()[0, 0].numpy(), np.array(masses) / max(masses), rtol=1e-7)
    assert (base.variance >= 0).all() and (base.variance <= 1 / 12).all()


@pytest.mark.parametrize(("y", "r"), [(100.0, 0.3), (92.2, 0.05), (108.0, 1.1)])
def test_bins_in_the_far_tail_have_the_moments_of_quadrature(y, r):
    """There the normal density falls nearly exponentially from the edge that is nearest to y."""
    base, far = end_decoder.dequantised_base(window(90, 110), column(y), r), 0
    for i, level in enumerate(range(90, 111)):
        if abs(level - y) > 6 * r + 1:
            far += 1
            edge = level - math.copysign(0.5, level - y)

            def density(x, n, edge=edge):
                return (x - edge) ** n * math.exp(((edge - y) ** 2 - (x - y) ** 2) / (2 * r**2))

            ends = sorted((edge, 2 * level - edge))
            mass, first, second = (
                integrate.quad(density, *ends, args=(n,), points=[edge], epsabs=0, epsrel=1e-9, limit=500)[0]
                for n in range(3)
            )
            mean, scale = first / mass, r**2 / abs(edge - y)
            assert float(base.mean[0, 0, i]) - edge == pytest.approx(mean, abs=0.1 * scale + 1e-12)
            assert float(base.variance[0, 0, i]) == pytest.approx(second / mass - mean**2, abs=0.25 * scale**2)
    assert far >= 5


# --- projection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "variance"), [(100.0, 0.5), (100.9, 0.3), (99.2, 3.5), (101.3, 1.7)])
@pytest.mark.parametrize("make", [end_decoder.levels_base, end_decoder.dequantised_base])
def test_a_projection_is_the_exponential_family_that_scipy_finds(make, mean, variance):
    base = make(window(93, 107), column(100.3), 1.4)
    log_masses, means, variances = (value[0, 0].numpy() for value in base)
    expected = projected(log_masses, means, variances, mean, variance)
    found = end_decoder.project(base, column(mean), column(variance)).exp()[0, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert found @ means == pytest.approx(mean, abs=1e-8)
    assert found @ ((means - mean) ** 2 + variances) == pytest.approx(variance, rel=1e-7)


def test_a_projection_finds_moments_that_are_far_from_the_base():
    """Newton's full steps go astray there: halved ones arrive."""
    base = end_decoder.levels_base(window(90, 110), column(105.0), 1.2)
    for mean, variance in ((100.0, 1.0), (102.0, 6.0), (100.5, 0.2501), (105.0, 1e-3), (108.2, 4.0)):
        p = end_decoder.project(base, column(mean), column(variance)).exp()[0, 0].numpy()
        k = np.arange(90, 111)
        assert p.sum() == pytest.approx(1) and p @ k == pytest.approx(mean, abs=1e-6), (mean, variance)
        assert p @ (k - mean) ** 2 == pytest.approx(variance, rel=1e-4), (mean, variance)


@pytest.mark.parametrize("make", [end_decoder.levels_base, end_decoder.dequantised_base])
@pytest.mark.parametrize("r", [0.05, 0.1, 0.4, 1.5])
def test_a_network_that_is_levels_off_gets_the_moments_that_it_states(make, r):
    """However far y is from the mean, and with one bin that has nearly all mass of the base."""
    for distance in (0.0, 1.0, -3.0, 10.0, 16.0, -25.0):
        for mean, variance in ((100.0, 0.6), (100.5, 1.2), (99.7, 0.9), (100.0, 4.0)):
            base = make(window(90, 110), column(mean + distance), r)
            p = end_decoder.project(base, column(mean), column(variance)).exp()[0, 0]
            s, case = base.mean[0, 0] - mean, (distance, mean, variance)
            assert float(p.sum()) == pytest.approx(1) and float(p @ s) == pytest.approx(0, abs=1e-6), case
            assert float(p @ (s.square() + base.variance[0, 0])) == pytest.approx(variance, rel=1e-5), case


def test_a_variance_that_no_levels_have_is_the_largest_that_they_do():
    """Near level 0 the mean bounds the variance: a network that states more has a decoder all the same."""
    k = torch.arange(4.0, dtype=torch.float64)[:, None]
    y, m = torch.full_like(k, 0.3), torch.full_like(k, 0.02)
    masses = end_decoder.level_log_mass(k, y, m, torch.full_like(k, 3.0), 1.0)
    assert masses.isfinite().all() and masses.argmax() == 0
    assert float(masses.exp().sum()) <= 1


def test_the_projections_of_a_batch_are_those_of_its_rows():
    pairs = [(100.0, 0.5), (92.0, 1.0), (101.3, 1.7)]
    means, variances = column(*(m for m, _ in pairs)), column(*(v for _, v in pairs))
    base = end_decoder.levels_base(window(90, 110).expand(3, 1, -1), column(100.3, 107.0, 100.3), 1.4)
    together = end_decoder.project(base, means, variances)
    for i in range(3):
        row = end_decoder.LevelPosterior(*(value[i : i + 1] for value in base))
        torch.testing.assert_close(
            together[i : i + 1].exp(), end_decoder.project(row, means[i : i + 1], variances[i : i + 1]).exp()
        )


@pytest.mark.parametrize("y", [0.2, 100.4, 255.3])
@pytest.mark.parametrize("make", [end_decoder.levels_base, end_decoder.dequantised_base])
def test_the_least_variance_is_that_of_a_linear_programme(make, y):
    first, last = round(y) - 4, round(y) + 4
    for mean in (y + 0.37, y - 0.2, 100.0, -3.0, 258.0):
        base = make(window(first, last), column(y), 1.1)
        _, means, variances = (value[0, 0].numpy() for value in base)
        keep = np.isfinite(base.log_mass[0, 0].numpy())
        means, variances = means[keep], variances[keep]
        target = min(max(mean, means.min()), means.max())
        conditions = np.stack([np.ones_like(means), means]), [1, target]
        least = optimize.linprog(variances + (means - target) ** 2, A_eq=conditions[0], b_eq=conditions[1]).fun
        nearest, found = end_decoder._least_variance(base, column(mean))
        assert float(nearest) == pytest.approx(target, abs=1e-12)
        assert float(found) == pytest.approx(least, abs=1e-9), mean


# --- the mixtures -----------------------------------------------------------------------------------------------------


def smooth(k, mean, variance):
    """Masses of the bins of a normal distribution whose outer bins are open, for each error of the network."""
    std = np.sqrt(max(variance, 1e-6) + ERRORS)
    low = np.where(k == 0, -np.inf, (k - 0.5 - mean) / std)
    return norm.cdf(np.where(k == 255, np.inf, (k + 0.5 - mean) / std)) - norm.cdf(low)


def test_possible_moments_are_projected_on_levels():
    y, mean, variance, r = 100.3, 100.1, 0.6, 1.2
    k = np.arange(round(mean) - 10, round(mean) + 11)
    masses = projected(norm.logpdf(y, k, r), k.astype(float), np.zeros(21), mean, variance)
    for level in (97, 100, 102):
        found = end_decoder.level_log_mass(column(float(level)), column(y), column(mean), column(variance), r)
        expected = 0.999 * masses[level - k[0]] + 0.001 / 6 * smooth(level, mean, variance).sum()
        assert float(found.exp()) == pytest.approx(expected, rel=1e-6)


def test_moments_of_no_levels_are_projected_on_levels_with_noise_and_others_are_smooth():
    """A variance of 0.1 at 100.38 is that of no levels (0.24 at least), but of levels with noise: y is near the edge of
    a bin, and the means of the two bins are 0.5 apart. A variance of 0.001 is that of neither."""
    y, r = 100.4, 0.3
    base = end_decoder.dequantised_base(window(90, 110), column(y), r)
    masses = projected(*(value[0, 0].numpy() for value in base), 100.38, 0.1)
    for level in (99, 100, 101):
        call = lambda m, v: float(  # noqa: E731
            end_decoder.level_log_mass(column(float(level)), column(y), column(m), column(v), r).exp()  # noqa: B023
        )
        expected = 0.9 * masses[level - 90] + 0.1 / 6 * smooth(level, 100.38, 0.1).sum()
        assert call(100.38, 0.1) == pytest.approx(expected, rel=1e-6)
        assert call(100.5, 0.001) == pytest.approx(smooth(level, 100.5, 0.001).mean(), rel=1e-9)


def test_a_wide_posterior_is_a_normal_distribution():
    """Its variance 9 is above (10 / 4)^2: ten levels on each side would lose its tails."""
    for level in (100.0, 106.0, 112.0):  # the last is outside of the window
        found = end_decoder.level_log_mass(column(level), column(100.3), column(100.2), column(9.0), 2.0)
        own = norm.cdf(level + 0.5, 100.2, 3) - norm.cdf(level - 0.5, 100.2, 3)
        expected = 0.999 * own + 0.001 / 6 * smooth(level, 100.2, 9.0).sum()
        assert float(found.exp()) == pytest.approx(expected, rel=1e-9)


def test_an_image_has_one_possibility_for_all_of_its_pixels():
    """Where one pixel's moments rule out the levels, no pixel of its image is projected on them. Others' are."""
    y, r = torch.tensor([[100.3, 50.7], [100.3, 50.7]], dtype=F64), 1.2
    m, v = y - 0.2, torch.tensor([[0.6, 0.7], [0.6, -1.0]], dtype=F64)
    k = torch.tensor([[100.0, 51.0], [100.0, 51.0]], dtype=F64)
    both = end_decoder.level_log_mass(k, y, m, v, r)
    for row in range(2):
        alone = end_decoder.level_log_mass(*(value[row : row + 1] for value in (k, y, m, v)), r)
        assert float(both[row]) == pytest.approx(float(alone), rel=1e-9)
    parts = smooth(100, 100.1, 0.6) * smooth(51, 50.5, 0.0)  # the errors of an image's pixels are one
    assert float(both[1].exp()) == pytest.approx(parts.mean(), rel=1e-9)


@pytest.mark.parametrize("level", [112.0, 88.0])
@pytest.mark.parametrize(("variance", "r"), [(0.6, 1.2), (6.0, 2.0)])
def test_levels_outside_of_the_window_have_the_mass_of_the_error_alone(level, variance, r):
    """Twelve levels from the mean; of the wider posterior the tenth still has a mass of 4e-5."""
    found = end_decoder.level_log_mass(column(level), column(100.3), column(100.1), column(variance), r)
    assert float(found.exp()) == pytest.approx(0.001 / 6 * smooth(level, 100.1, variance).sum(), rel=1e-9)


def test_variances_within_the_rounding_of_a_network_are_raised_to_the_least():
    """Half-way between two levels 0.25 is the least variance: 0.2451 is rounding, and 0.2449 is not."""
    call = lambda v: float(  # noqa: E731
        end_decoder.level_log_mass(column(100.0), column(100.5), column(100.5), column(v), 1.2).exp()
    )
    assert call(0.2451) == pytest.approx(0.999 / 2 + 0.001 / 6 * smooth(100, 100.5, 0.2451).sum(), rel=1e-4)
    assert call(0.2449) == pytest.approx(smooth(100, 100.5, 0.2449).mean(), rel=1e-9)


@pytest.mark.parametrize(("x", "m"), [([0.31, -0.2], [0.3, -0.25]), ([0.9, 0.0], [0.1, 0.0])])
def test_real_values_are_a_mixture_over_whole_items(x, m):
    v, r = np.array([0.02, 0.3]), 0.5
    spreads = np.sqrt(v + r**2 * np.array([0, 0.06, 0.25, 1, 4])[:, None])
    parts = norm.logpdf(np.array(x), np.array(m), spreads).sum(1)
    expected = logsumexp(parts, b=[0.999, *[0.001 / 4] * 4])
    tensors = (torch.tensor([value], dtype=F64) for value in (x, m, v.tolist()))
    assert float(end_decoder.real_log_density(*tensors, r)) == pytest.approx(expected, rel=1e-9)

"""MMD against brute force, closed forms and explicit features; moment matching as an objective."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.metrics.distances import kernel_distance
from hfgen.objectives.base import Step


def draws(*shape, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64) + shift


def linear(x, y):
    return x @ y.T


def square(x, y):
    return (1 + x @ y.T).square()


def features_of_square(x):
    """Features (N, 1 + D + D^2) whose dot products are (1 + x . y)^2."""
    pairs = (x[:, :, None] * x[:, None, :]).flatten(1)
    return torch.cat([torch.ones(len(x), 1, dtype=x.dtype), math.sqrt(2) * x, pairs], 1)


# --- the estimates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbiased", [True, False])
def test_both_estimates_are_those_of_loops_over_all_pairs(unbiased):
    x, y, bandwidths = draws(5, 3), draws(7, 3, seed=1, shift=0.5), (0.5, 2.0)

    def k(a, b):
        distance = math.dist(a.tolist(), b.tolist())
        return sum(math.exp(-(distance**2) / (2 * s * s)) for s in bandwidths)

    def within(rows):
        pairs = [(i, j) for i, j in itertools.product(range(len(rows)), repeat=2) if i != j or not unbiased]
        return sum(k(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    across = sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    found = hfgen.mmd_squared(x, y, hfgen.GaussianKernel(bandwidths), unbiased)
    assert found.item() == pytest.approx(within(x) + within(y) - 2 * across, rel=1e-12)


def test_the_unbiased_estimate_of_equal_distributions_is_0_on_average_and_the_biased_one_is_not():
    kernel = hfgen.GaussianKernel((0.5, 1.0, 2.0))
    for unbiased in (True, False):
        values = [
            hfgen.mmd_squared(draws(8, 2, seed=2 * i), draws(6, 2, seed=2 * i + 1), kernel, unbiased).item()
            for i in range(2000)
        ]
        mean, error = torch.tensor(values).mean().item(), torch.tensor(values).std().item() / math.sqrt(2000)
        assert (abs(mean) < 4 * error) == unbiased
        if not unbiased:
            assert min(values) >= 0 and mean > 20 * error


def test_the_estimate_of_two_gaussians_is_their_closed_form_on_average():
    """E k(x, y) of x ~ N(m, a^2), y ~ N(n, b^2) is an integral of Gaussians, s / v exp(-(m - n)^2 / (2 v^2)) with
    v^2 = s^2 + a^2 + b^2."""
    (m, a), (n, b), bandwidths, repeats = (0.0, 1.0), (0.7, 1.5), (0.5, 2.0), 1500

    def mean_kernel(shift, first, second):
        spread = [math.sqrt(s * s + first * first + second * second) for s in bandwidths]
        return sum(s / v * math.exp(-(shift**2) / (2 * v * v)) for s, v in zip(bandwidths, spread, strict=True))

    expected = mean_kernel(0, a, a) + mean_kernel(0, b, b) - 2 * mean_kernel(m - n, a, b)
    kernel = hfgen.GaussianKernel(bandwidths)
    values = [
        hfgen.mmd_squared(draws(20, 1, seed=2 * i, scale=a), draws(20, 1, seed=2 * i + 1, scale=b, shift=n), kernel)
        for i in range(repeats)
    ]
    values = torch.stack(values)
    assert expected > 0.1
    assert abs(values.mean().item() - expected) < 4 * values.std().item() / math.sqrt(repeats) < 0.02


def test_with_a_linear_kernel_it_is_the_squared_distance_of_means():
    x, y = draws(6, 4), draws(9, 4, seed=1, shift=0.3)
    expected = (x.mean(0) - y.mean(0)).square().sum()
    assert_close(hfgen.mmd_squared(x, y, linear, unbiased=False), expected)
    inner = [(rows.sum(0).square().sum() - rows.square().sum()) / (len(rows) * (len(rows) - 1)) for rows in (x, y)]
    assert_close(hfgen.mmd_squared(x, y, linear), inner[0] + inner[1] - 2 * x.mean(0) @ y.mean(0))


def test_with_the_kernel_of_kid_it_is_the_kernel_distance():
    x, y = draws(40, 5), draws(40, 5, seed=1, shift=0.2)
    found = hfgen.mmd_squared(x, y, lambda a, b: (a @ b.T / 5 + 1) ** 3)
    assert found.item() == pytest.approx(kernel_distance(x, y, subsets=1, subset_size=40)[0], rel=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
def test_gradients_of_a_polynomial_kernel_are_those_of_its_features(unbiased):
    x, y = draws(6, 3).requires_grad_(), draws(8, 3, seed=1, shift=0.4)
    (found,) = torch.autograd.grad(hfgen.mmd_squared(x, y, square, unbiased), x)
    phi, psi = features_of_square(x), features_of_square(y)

    def within(rows):
        whole, own = rows.sum(0).square().sum(), rows.square().sum()
        return (whole - own) / (len(rows) * (len(rows) - 1)) if unbiased else whole / len(rows) ** 2

    (expected,) = torch.autograd.grad(within(phi) + within(psi) - 2 * phi.mean(0) @ psi.mean(0), x)
    assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_gradients_of_a_gaussian_kernel_are_those_of_random_fourier_features_in_the_limit():
    """cos(w . (x - y)) with w ~ N(0, 1 / s^2) has the mean exp(-|x - y|^2 / (2 s^2)) (Rahimi & Recht 2007). Errors of
    the gradient are means over 200,000 features; four standard errors are allowed."""
    count, s = 200_000, 0.8
    x, y = draws(5, 2).requires_grad_(), draws(4, 2, seed=1, shift=0.5)
    (found,) = torch.autograd.grad(hfgen.mmd_squared(x, y, hfgen.GaussianKernel((s,)), unbiased=False), x)
    parts = []
    for part in range(20):
        w = draws(2, count // 20, seed=100 + part) / s
        a, b = (torch.cat([(rows @ w).cos(), (rows @ w).sin()], 1).mean(0) for rows in (x, y))
        parts.append(torch.autograd.grad((a - b).square().sum() / (count // 20), x)[0])
    parts = torch.stack(parts)
    error = parts.std(0) / math.sqrt(len(parts))
    assert ((parts.mean(0) - found).abs() < 4 * error).all() and error.max() < 0.02 * found.abs().max()


def test_samples_far_from_0_lose_no_digits_in_float32():
    x, y, kernel = draws(30, 4), draws(30, 4, seed=1, shift=0.5), hfgen.GaussianKernel((1.0,))
    exact = hfgen.mmd_squared(x, y, kernel)
    assert_close((hfgen.mmd_squared((x + 1000).float(), (y + 1000).float(), kernel)).double(), exact, rtol=0, atol=1e-4)


def test_the_median_distance_is_that_of_all_pairs():
    items = draws(31, 2, 3)
    distances = sorted(
        math.dist(a.flatten().tolist(), b.flatten().tolist()) for a, b in itertools.combinations(items, 2)
    )
    assert hfgen.median_distance(items) == pytest.approx(distances[(len(distances) - 1) // 2], rel=1e-12)


# --- the objective ----------------------------------------------------------------------------------------------------


def loss_of(objective, generator, items, **place):
    return objective.loss("generator", {"generator": generator}, {"x": items}, Step(3, **place))


def test_the_loss_is_mmd_of_samples_and_batch_or_its_root():
    torch.manual_seed(0)
    generator, x = hfgen.MLPGeneratorModel(4, 1, 3, (8,)), draws(10, 1, 4, 4).float()
    kernel = hfgen.GaussianKernel((2.0, 5.0))
    z = Step(3).randn("latent", torch.empty(10, 3))
    fake = generator(z).sample.flatten(1)
    for estimator, unbiased in (("unbiased", True), ("biased", False)):
        loss = loss_of(hfgen.MomentMatching(3, kernel, estimator), generator, x)
        assert_close(loss.value, hfgen.mmd_squared(fake, x.flatten(1), kernel, unbiased))
        assert set(loss.logs) == {"loss", "mmd_squared", "diversity"} and not loss.logs["loss"].requires_grad
    rooted = loss_of(hfgen.MomentMatching(3, kernel, "biased", root=True), generator, x)
    assert_close(rooted.value.square(), loss.value)
    assert_close(rooted.logs["mmd_squared"], loss.value)


class Shift(nn.Module):
    """Latents z (B, 2) times a learnt scale, moved by a learnt vector."""

    def __init__(self):
        super().__init__()
        self.mean, self.scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(()))

    def forward(self, z):
        return z * self.scale + self.mean


@pytest.mark.parametrize("options", [{}, {"estimator": "biased", "root": True}])
def test_a_generator_learns_mean_and_deviation_of_a_gaussian(options):
    generator, objective = Shift(), hfgen.MomentMatching(2, hfgen.GaussianKernel((0.5, 1.0, 2.0, 4.0)), **options)
    optimizer = torch.optim.Adam(generator.parameters(), 0.05)
    target = torch.tensor([1.0, -2.0])
    for number in range(200):
        items = 0.5 * draws(128, 2, seed=number).float() + target
        loss = objective.loss("generator", {"generator": generator}, {"x": items}, Step(number))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert_close(generator.mean.data, target, rtol=0, atol=0.1)
    assert abs(generator.scale.item()) == pytest.approx(0.5, abs=0.08)


def test_slices_of_a_batch_see_its_latents_and_compare_within_themselves():
    torch.manual_seed(0)
    generator, x, kernel = hfgen.MLPGeneratorModel(1, 2, 3, (8,), "none"), draws(8, 2, 1, 1).float(), square
    fake = generator(Step(3).randn("latent", torch.empty(8, 3))).sample.flatten(1)
    for shard, rows in ((0, slice(0, 4)), (1, slice(4, 8))):
        loss = loss_of(hfgen.MomentMatching(3, kernel), generator, x[rows], shard=shard, shards=2)
        assert_close(loss.value, hfgen.mmd_squared(fake[rows], x[rows].flatten(1), kernel))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hfgen.GaussianKernel(()), "bandwidths are empty"),
        (lambda: hfgen.GaussianKernel((1.0, 0.0)), "bandwidths=0.0 must be above 0"),
        (lambda: hfgen.MomentMatching(0, linear), "latent_channels=0 must be at least 1"),
        (lambda: hfgen.MomentMatching(2, linear, root=True), "root=True needs estimator='biased'"),
        (lambda: hfgen.mmd_squared(draws(1, 2), draws(4, 2), linear), "MMD of 1 and 4 samples needs 2 or more of each"),
        (lambda: hfgen.mmd_squared(draws(3, 2), draws(4, 3), linear), r"not \(3, 2\) and \(4, 3\)"),
        (lambda: hfgen.median_distance(draws(1, 2)), "median distance of 1 items is 0"),
        (lambda: hfgen.median_distance(torch.zeros(5, 2)), "median distance of 5 items is 0"),
    ],
)
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

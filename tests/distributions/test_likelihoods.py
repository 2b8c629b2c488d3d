"""Laws of p(x | z): they are torch's and SciPy's distributions, their masses sum to one, and nothing over- or
underflows."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions
from torch.testing import assert_close

from hfgen.distributions.likelihoods import LEAST_LOG_SCALE, OBSERVATIONS, observation

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
OF_LEVELS = [name for name in OBSERVATIONS if name != "bernoulli"]
CORNERS = (LEVELS - 1 / 255).numpy(), (LEVELS + 1 / 255).numpy()


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def images(*shape, seed=1):
    """8-bit images with the first and the last level among them."""
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    levels.view(-1)[:2] = torch.tensor([0, 255])
    return levels / 127.5 - 1


def binary(*shape):
    return torch.where(normal(*shape, seed=2) > 0, 1.0, -1.0).double()


def least(log_scale):
    """LEAST_LOG_SCALE as a smooth lower bound, by NumPy."""
    return LEAST_LOG_SCALE + np.logaddexp(0, np.asarray(log_scale) - LEAST_LOG_SCALE)


def test_means_are_images_and_what_lies_beyond_can_be_brought_back():
    params = torch.tensor([-3.0, -0.5, 0.25, 7.0], dtype=torch.float64, requires_grad=True)
    mean = observation("gaussian").mean(params.view(1, 1, 2, 2))
    assert mean.flatten().tolist() == [-1.0, -0.5, 0.25, 1.0]
    mean.sum().backward()
    assert_close(params.grad, torch.tensor([0.1, 1.0, 1.0, 0.1], dtype=torch.float64))
    assert torch.equal(observation("gaussian").mean(torch.full((1, 1, 1, 1), torch.inf)), torch.ones(1, 1, 1, 1))


# --- densities and masses ---------------------------------------------------------------------------------------------


def test_bernoulli_is_torchs():
    logits, x = 3 * normal(5, 2, 3, 4), binary(5, 2, 3, 4)
    law = distributions.Independent(distributions.Bernoulli(logits=logits), 3)
    assert_close(observation("bernoulli").log_prob(logits, x), law.log_prob((x + 1) / 2))
    assert_close(observation("bernoulli").mean(logits), 2 * law.mean - 1)


def test_bernoulli_of_a_grey_image_is_the_mean_over_its_binarisations():
    logits, grey = 3 * normal(1, 1, 2, 2), torch.tensor([-1.0, -0.5, 0.2, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
    total = torch.zeros(1, dtype=torch.float64)
    for number in range(16):
        x = torch.tensor([1.0 if number >> i & 1 else -1.0 for i in range(4)], dtype=torch.float64).view(1, 1, 2, 2)
        probability = torch.where(x > 0, (1 + grey) / 2, (1 - grey) / 2).prod()
        total += probability * observation("bernoulli").log_prob(logits, x)
    assert_close(observation("bernoulli").log_prob(logits, grey), total)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_gaussian_is_torchs(sigma):
    mean, x = normal(5, 3, 2, 4), normal(5, 3, 2, 4, seed=1)
    law = distributions.Independent(distributions.Normal(mean, sigma), 3)
    assert_close(observation("gaussian", sigma).log_prob(mean, x), law.log_prob(x))
    assert_close(observation("gaussian", sigma).mean(mean), mean.clamp(-1, 1))


def test_learned_gaussian_is_torchs_with_a_least_sigma():
    params, x = torch.cat([normal(5, 3, 2, 4), 4 * normal(5, 3, 2, 4, seed=3)], 1), normal(5, 3, 2, 4, seed=1)
    mean, log_sigma = params.chunk(2, 1)
    law = distributions.Independent(distributions.Normal(mean, torch.from_numpy(np.exp(least(log_sigma)))), 3)
    assert_close(observation("gaussian_learned").log_prob(params, x), law.log_prob(x))


def test_a_scale_far_below_the_least_still_learns_to_grow():
    params = torch.cat([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), -12.0)], 1).requires_grad_()
    value = observation("gaussian_learned").log_prob(params, torch.full((1, 1, 2, 2), 0.5))
    value.sum().backward()
    assert value.isfinite().all() and (params.grad[:, 1] > 0).all()


@pytest.mark.parametrize("scale", [0.003, 0.05, 1.0, 20.0])
def test_masses_are_scipys(scale):
    mean = torch.linspace(-1.3, 1.3, 7, dtype=torch.float64)
    low, high = (edges[:, None] for edges in CORNERS)
    low[0], high[-1] = -np.inf, np.inf
    x, means = LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 1, 7), mean.view(1, 1, 1, 7).expand(256, -1, -1, -1)
    log_scale = math.log(scale)
    raw = LEAST_LOG_SCALE + math.log(math.expm1(log_scale - LEAST_LOG_SCALE))  # undoes the lower bound
    raws = torch.full_like(means, raw)
    for law, name, params in (
        (stats.norm, "gaussian", means),
        (stats.norm, "gaussian_learned", torch.cat([means, raws], 1)),
        (stats.logistic, "discretized_logistic_mixture", torch.cat([torch.zeros_like(means), means, raws], 1)),
    ):
        expected = law.cdf(high, mean.numpy(), scale) - law.cdf(low, mean.numpy(), scale)
        each = torch.stack(
            [observation(name, scale, 1).log_mass(params[..., i : i + 1], x[..., :1]) for i in range(7)], 1
        )
        assert_close(each.exp().numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OF_LEVELS)
def test_masses_of_the_256_levels_sum_to_one(name, dtype):
    model = observation(name, 0.07, 4)
    params = 2 * normal(50, model.channels(1), 1, 1).to(dtype)
    x = LEVELS.to(dtype).view(256, 1, 1, 1, 1)
    total = model.log_mass(params, x).logsumexp(0)  # (256, 50) of images of one pixel
    assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-10 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("name", OF_LEVELS)
def test_masses_of_a_pixel_with_two_channels_sum_to_one(name):
    model = observation(name, 0.2, 3)
    pixels = torch.cartesian_prod(LEVELS, LEVELS).view(-1, 2, 1, 1)
    total = model.log_mass(normal(1, model.channels(2), 1, 1), pixels).logsumexp(0)
    assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-10)


def test_the_mixture_against_its_formula():
    """Channels of a pixel share the component: a sum over components of a product over channels."""
    components, channels = 3, 2
    model = observation("discretized_logistic_mixture", components=components)
    params, x = 2 * normal(4, model.channels(channels), 5, 6), images(4, channels, 5, 6).double()
    logits, means, raws = (part.numpy() for part in params.split((components, components * channels, 6), 1))
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    means, raws = (part.reshape(4, components, channels, 5, 6) for part in (means, raws))
    level, law = x.numpy()[:, None], stats.logistic(means, np.exp(least(raws)))
    above = np.where(level > 0.999, 1.0, law.cdf(level + 1 / 255))
    below = np.where(level < -0.999, 0.0, law.cdf(level - 1 / 255))
    expected = np.log((weights * (above - below).prod(2)).sum(1)).sum((1, 2))
    assert_close(model.log_prob(params, x).numpy(), expected, rtol=1e-9, atol=0)
    assert torch.equal(model.log_mass(params, x), model.log_prob(params, x))
    center = (weights[:, :, None] * means).sum(1)
    assert_close(model.mean(params).numpy(), np.clip(center, -1, 1))


def test_equal_components_are_one():
    one, many = (
        observation("discretized_logistic_mixture", components=1),
        observation("discretized_logistic_mixture", components=4),
    )
    params, x = normal(2, 3, 4, 4), images(2, 1, 4, 4).double()
    assert_close(many.log_prob(params.repeat_interleave(4, 1), x), one.log_prob(params, x))


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_nothing_overflows_in_float32(name):
    """Images that the parameters rule out, scales from the least to large."""
    model = observation(name, 0.01, 2)
    x = torch.tensor([-1.0, 1.0, 1 / 255, -0.9921875]).view(1, 1, 2, 2)
    for sign in (-1, 1):
        for size in (0.0, 1.0, 30.0):
            params = torch.full((1, model.channels(1), 2, 2), sign * size, requires_grad=True)
            value = model.log_prob(params, x) + (0 if model.levels == 2 else model.log_mass(params, x))
            value.sum().backward()
            assert value.isfinite().all() and params.grad.isfinite().all()


@pytest.mark.parametrize("name", OF_LEVELS)
def test_float32_is_float64_rounded_however_unlikely_the_image(name):
    model, x = observation(name, 0.05, 2), images(3, 2, 4, 4)
    params = normal(3, model.channels(2), 4, 4)
    exact = model.log_mass(params, x.double())
    assert_close(model.log_mass(params.float(), x).double(), exact, rtol=2e-4, atol=1e-3)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_gradients_are_finite_differences(name):
    model = observation(name, 0.3, 2)
    x = binary(1, 2, 2, 2) if model.levels == 2 else images(1, 2, 2, 2).double()
    params = normal(1, model.channels(2), 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: model.log_prob(p, x), params)
    if model.levels == 256:
        assert torch.autograd.gradcheck(lambda p: model.log_mass(p, x), params)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_computed_in_float32_whatever_autocast_gives(name):
    model, x = observation(name), images(2, 1, 4, 4)
    params = normal(2, model.channels(1), 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, mean = model.log_prob(params, x), model.mean(params)
    assert got.dtype == mean.dtype == torch.float32
    assert torch.equal(got, model.log_prob(params.float(), x))


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_many_samples_of_one_image_are_each_its_own(name):
    model, x = observation(name), images(3, 2, 4, 5).double()
    params = normal(3, 7, model.channels(2), 4, 5)
    each = torch.stack([model.log_prob(params[:, k], x) for k in range(7)], 1)
    assert_close(model.log_prob(params, x.unsqueeze(1)), each)
    assert model.mean(params).shape == (3, 7, 2, 4, 5) and model.mean(params).abs().max() <= 1


# --- what is modelled -------------------------------------------------------------------------------------------------


def test_binarisation_is_white_with_the_probability_of_grey():
    grey = LEVELS.view(1, 1, 16, 16)
    evenly = [torch.full_like(grey, (i + 0.5) / 1000) for i in range(1000)]
    drawn = torch.stack([observation("bernoulli").prepare(grey, lambda like, u=u: u.clone()) for u in evenly])
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert_close((drawn.mean(0) + 1) / 2, (grey + 1) / 2, rtol=0, atol=1e-3)


def test_black_and_white_stay_as_they_are():
    x = binary(1, 1, 8, 8).float()
    for extreme in (0.0, 1 - 2**-24):
        assert torch.equal(observation("bernoulli").prepare(x, lambda like, e=extreme: torch.full_like(like, e)), x)


@pytest.mark.parametrize("name", OF_LEVELS)
def test_images_of_256_levels_are_modelled_as_they_are(name):
    x = images(2, 1, 4, 4)
    assert observation(name).prepare(x, None) is x and observation(name).levels == 256


def test_what_can_not_be_is_refused_by_name():
    with pytest.raises(ValueError, match=re.escape("likelihood='poisson' is not known. Choose one of: bernoulli")):
        observation("poisson")
    with pytest.raises(ValueError, match="sigma=0"):
        observation("gaussian", sigma=0)
    with pytest.raises(ValueError, match="components=0"):
        observation("discretized_logistic_mixture", components=0)
    with pytest.raises(ValueError, match="gaussian, gaussian_learned, discretized_logistic_mixture"):
        observation("bernoulli").log_mass(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))

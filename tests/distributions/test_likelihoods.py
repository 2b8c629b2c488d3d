"""Laws of p(x | z): it is torch's or SciPy's distribution for items of any shape, its masses sum to one, and nothing
over- or underflows."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions
from torch.testing import assert_close

from hfgen.distributions.likelihoods import LIKELIHOODS, MIN_LOG_SCALE, build_likelihood

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
EIGHT_BIT = [name for name in LIKELIHOODS if name != "bernoulli"]
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
    """MIN_LOG_SCALE as a smooth lower bound, by NumPy."""
    return MIN_LOG_SCALE + np.logaddexp(0, np.asarray(log_scale) - MIN_LOG_SCALE)


def test_means_are_images_and_what_lies_beyond_can_be_brought_back():
    params = torch.tensor([-3.0, -0.5, 0.25, 7.0], dtype=torch.float64, requires_grad=True)
    mean = build_likelihood("gaussian").mean(params.view(1, 1, 2, 2))
    assert mean.flatten().tolist() == [-1.0, -0.5, 0.25, 1.0]
    mean.sum().backward()
    assert_close(params.grad, torch.tensor([0.1, 1.0, 1.0, 0.1], dtype=torch.float64))
    assert torch.equal(build_likelihood("gaussian").mean(torch.full((1, 1, 1, 1), torch.inf)), torch.ones(1, 1, 1, 1))


# --- densities and masses ---------------------------------------------------------------------------------------------


def test_bernoulli_is_torchs():
    logits, x = 3 * normal(5, 2, 3, 4), binary(5, 2, 3, 4)
    law = distributions.Independent(distributions.Bernoulli(logits=logits), 3)
    assert_close(build_likelihood("bernoulli").log_prob(logits, x), law.log_prob((x + 1) / 2))
    assert_close(build_likelihood("bernoulli").mean(logits), 2 * law.mean - 1)


def test_bernoulli_of_a_grey_image_is_the_mean_over_its_binarisations():
    logits, grey = 3 * normal(1, 1, 2, 2), torch.tensor([-1.0, -0.5, 0.2, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
    total = torch.zeros(1, dtype=torch.float64)
    for number in range(16):
        x = torch.tensor([1.0 if number >> i & 1 else -1.0 for i in range(4)], dtype=torch.float64).view(1, 1, 2, 2)
        probability = torch.where(x > 0, (1 + grey) / 2, (1 - grey) / 2).prod()
        total += probability * build_likelihood("bernoulli").log_prob(logits, x)
    assert_close(build_likelihood("bernoulli").log_prob(logits, grey), total)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_gaussian_is_torchs(sigma):
    mean, x = normal(5, 3, 2, 4), normal(5, 3, 2, 4, seed=1)
    law = distributions.Independent(distributions.Normal(mean, sigma), 3)
    assert_close(build_likelihood("gaussian", sigma).log_prob(mean, x), law.log_prob(x))
    assert_close(build_likelihood("gaussian", sigma).mean(mean), mean.clamp(-1, 1))


def test_learned_gaussian_is_torchs_with_a_least_sigma():
    params, x = torch.cat([normal(5, 3, 2, 4), 4 * normal(5, 3, 2, 4, seed=3)], 1), normal(5, 3, 2, 4, seed=1)
    mean, log_sigma = params.chunk(2, 1)
    law = distributions.Independent(distributions.Normal(mean, torch.from_numpy(np.exp(least(log_sigma)))), 3)
    assert_close(build_likelihood("gaussian_learned").log_prob(params, x), law.log_prob(x))


def test_a_scale_far_below_the_least_still_learns_to_grow():
    params = torch.cat([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), -12.0)], 1).requires_grad_()
    value = build_likelihood("gaussian_learned").log_prob(params, torch.full((1, 1, 2, 2), 0.5))
    value.sum().backward()
    assert value.isfinite().all() and (params.grad[:, 1] > 0).all()


@pytest.mark.parametrize("scale", [0.003, 0.05, 1.0, 20.0])
def test_masses_are_scipys(scale):
    mean = torch.linspace(-1.3, 1.3, 7, dtype=torch.float64)
    low, high = (edges[:, None] for edges in CORNERS)
    low[0], high[-1] = -np.inf, np.inf
    x, means = LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 1, 7), mean.view(1, 1, 1, 7).expand(256, -1, -1, -1)
    log_scale = math.log(scale)
    raw = MIN_LOG_SCALE + math.log(math.expm1(log_scale - MIN_LOG_SCALE))  # undoes the lower bound
    raws = torch.full_like(means, raw)
    for law, name, params in (
        (stats.norm, "gaussian", means),
        (stats.norm, "gaussian_learned", torch.cat([means, raws], 1)),
        (stats.logistic, "discretized_logistic_mixture", torch.cat([torch.zeros_like(means), means, raws], 1)),
    ):
        expected = law.cdf(high, mean.numpy(), scale) - law.cdf(low, mean.numpy(), scale)
        each = torch.stack(
            [build_likelihood(name, scale, 1).log_mass(params[..., i : i + 1], x[..., :1]) for i in range(7)], 1
        )
        assert_close(each.exp().numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", EIGHT_BIT)
def test_masses_of_the_256_levels_sum_to_one(name, dtype):
    model = build_likelihood(name, 0.07, 4)
    params = 2 * normal(50, model.channels(1), 1, 1).to(dtype)
    x = LEVELS.to(dtype).view(256, 1, 1, 1, 1)
    total = model.log_mass(params.unsqueeze(0), x, 2).logsumexp(0)  # (256, 50) for images of one pixel
    assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-10 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_masses_of_a_pixel_with_two_channels_sum_to_one(name):
    model = build_likelihood(name, 0.2, 3)
    pixels = torch.cartesian_prod(LEVELS, LEVELS).view(-1, 2, 1, 1)
    total = model.log_mass(normal(1, model.channels(2), 1, 1), pixels).logsumexp(0)  # the one row of params broadcasts
    assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-10)


def test_the_mixture_against_its_formula():
    """Channels of a pixel share the component: a sum over components of a product over channels."""
    components, channels = 3, 2
    model = build_likelihood("discretized_logistic_mixture", components=components)
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


def brute_force_mean(model, params):
    """E[x | z] of one-channel pixels, params (B, channels, 1, 1): the sum over all levels of x P(x): (B,)."""
    levels = LEVELS if model.levels == 256 else torch.tensor([-1.0, 1.0], dtype=torch.float64)
    measure = model.log_mass if model.levels == 256 else model.log_prob
    log_mass = measure(params.double().unsqueeze(0), levels.view(-1, 1, 1, 1, 1), 2)  # (levels, B)
    return (log_mass.exp() * levels[:, None]).sum(0)


@pytest.mark.parametrize("name", ["bernoulli", "discretized_logistic_mixture"])
def test_means_of_discrete_values_are_sums_over_all_values(name):
    model = build_likelihood(name, components=2)
    params = 3 * normal(4000, model.channels(1), 1, 1)
    if name != "bernoulli":
        params[:, 4:] = torch.linspace(-12, 40, 8000, dtype=torch.float64).view(4000, 2, 1, 1)  # scales up to e^40
    expected = brute_force_mean(model, params)
    assert_close(model.mean(params).flatten(), expected, rtol=0, atol=1e-7)
    assert_close(model.mean(params.float()).flatten().double(), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("log_scale", "error"), [(-5.2, 1e-7), (-4.86, 1e-7), (-4.84, 1e-7), (-4.5, 3e-8), (-4.0, 3e-9), (-2.0, 1e-10)]
)
def test_means_near_the_ends_are_sums_over_all_values(log_scale, error):
    """Where the bins of an end cut a component, the last terms of Euler and Maclaurin's formula matter. The error of
    both together falls with the fifth power of the scale."""
    model = build_likelihood("discretized_logistic_mixture", components=1)
    means = torch.linspace(-1, 1, 9, dtype=torch.float64).mul(5 / 127.5)
    means = torch.cat([means - 1, means + 1, means])
    raw = MIN_LOG_SCALE + math.log(math.expm1(log_scale - MIN_LOG_SCALE))
    params = torch.stack([means * 0, means, means * 0 + raw], 1)[..., None, None]
    assert_close(model.mean(params).flatten(), brute_force_mean(model, params), rtol=0, atol=error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_scale", [59.0, 61.0, 110.0, 1e4])
def test_a_component_of_any_width_has_a_mean(dtype, log_scale):
    """The widest have equal masses in the first and the last level, and none between."""
    params = torch.tensor([0.0, 0.5, log_scale], dtype=dtype).view(1, 3, 1, 1)
    assert build_likelihood("discretized_logistic_mixture", components=1).mean(params).abs().item() < 1e-6


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("log_scale", [-12.0, -5.0, -4.8, 0.0])
def test_means_far_outside_are_those_of_the_last_level(sign, log_scale):
    model = build_likelihood("discretized_logistic_mixture", components=1)
    for mean in (30.0, 1e3, 1e5, 1e7):
        params = torch.tensor([0.0, sign * mean, log_scale]).view(1, 3, 1, 1)
        assert model.mean(params).item() == pytest.approx(sign, abs=3e-7)


def test_the_first_and_the_last_bin_are_open_in_the_mean():
    """Two sharp components at 3 and -1 with weights sigmoid(.036): levels 1 and -1, so the mean is near 0, not 1."""
    params = torch.tensor([0.036, 0.0, 3.0, -1.0, -12.0, -12.0], dtype=torch.float64).view(1, 6, 1, 1)
    share = 1 / (1 + math.exp(-0.036))
    tail = sum(1 / (1 + math.exp((2 * k - 1) / 255 * math.exp(6))) for k in range(1, 20)) * 2 / 255
    mean = build_likelihood("discretized_logistic_mixture", components=2).mean(params).item()
    assert mean == pytest.approx(2 * share - 1 + (1 - share) * tail, abs=1e-4) and mean == pytest.approx(
        0.018, abs=1e-3
    )


@pytest.mark.parametrize("log_scale", [-9.0, -5.5, -4.0, 0.0])
def test_gradients_of_the_mean_are_finite_differences(log_scale):
    model = build_likelihood("discretized_logistic_mixture", components=2)
    params = normal(1, model.channels(1), 2, 1)
    params[:, 4:] = log_scale
    assert torch.autograd.gradcheck(model.mean, params.requires_grad_())


def test_equal_components_are_one():
    one, many = (
        build_likelihood("discretized_logistic_mixture", components=1),
        build_likelihood("discretized_logistic_mixture", components=4),
    )
    params, x = normal(2, 3, 4, 4), images(2, 1, 4, 4).double()
    assert_close(many.log_prob(params.repeat_interleave(4, 1), x), one.log_prob(params, x))


# --- items of any shape -----------------------------------------------------------------------------------------------

ITEMS = [(1,), (6,), (16, 2), (3, 5), (1, 4, 4), (3, 2, 5), (2, 3, 2, 2)]
"""Vectors (D,), sequences, images, volumes."""


def items_and_params(name, item, *batch):
    """Items (*batch, *item) that the likelihood models, and parameters for them."""
    model = build_likelihood(name, 0.3, 3)
    x = binary(*batch, *item) if model.levels == 2 else images(*batch, *item).double()
    return model, x, normal(*batch, model.channels(item[0]), *item[1:], seed=5)


def per_dimension(name, params, x):
    """log p of each dimension (the mixture: of each position), (B, ...), by torch or SciPy."""
    if name == "bernoulli":
        return distributions.Bernoulli(logits=params).log_prob((x + 1) / 2)
    if name == "gaussian":
        return distributions.Normal(params, 0.3).log_prob(x)
    channels = x.shape[1]
    if name == "gaussian_learned":
        mean, log_sigma = params[:, :channels], params[:, channels:]
        return distributions.Normal(mean, torch.from_numpy(np.exp(least(log_sigma)))).log_prob(x)
    logits, means, raws = params[:, :3], params[:, 3 : 3 + 3 * channels], params[:, 3 + 3 * channels :]
    shape = (len(x), 3, channels, *x.shape[2:])
    law = stats.logistic(means.reshape(shape).numpy(), np.exp(least(raws.reshape(shape))))
    level = x.unsqueeze(1).numpy()
    above = np.where(level > 0.999, 1.0, law.cdf(level + 1 / 255))
    below = np.where(level < -0.999, 0.0, law.cdf(level - 1 / 255))
    return (logits.softmax(1) * torch.from_numpy((above - below).prod(2))).sum(1).log()


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_one_number_an_item_whatever_its_shape(name, item):
    model, x, params = items_and_params(name, item, 8)
    value = model.log_prob(params, x)
    assert value.shape == (8,)
    assert_close(value, per_dimension(name, params, x).reshape(8, -1).sum(1), rtol=1e-9, atol=1e-9)
    assert model.mean(params).shape == x.shape


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_an_item_scores_the_same_in_a_batch_alone_and_without_a_batch(name, item):
    model, x, params = items_and_params(name, item, 3)
    measures = [model.log_prob] if model.levels == 2 else [model.log_prob, model.log_mass]
    for measure in measures:
        whole = measure(params, x)
        assert_close(torch.stack([measure(p, one, 0) for p, one in zip(params, x, strict=True)]), whole)
        assert_close(torch.cat([measure(params[i : i + 1], x[i : i + 1]) for i in range(3)]), whole)


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_of_items_have_two_batch_dimensions(name, item):
    model, x, _ = items_and_params(name, item, 3)
    params = normal(3, 7, model.channels(item[0]), *item[1:])
    each = torch.stack([model.log_prob(params[:, k], x) for k in range(7)], 1)
    assert_close(model.log_prob(params, x.unsqueeze(1), 2), each)
    assert model.mean(params, 2).shape == (3, 7, *item)


def test_a_batch_of_sequences_is_not_one_item():
    """Eight sequences (16, 2) have eight log-probabilities of 32 dimensions each."""
    x = normal(8, 16, 2)
    value = build_likelihood("gaussian", 1.0).log_prob(torch.zeros_like(x), x)
    assert_close(value, distributions.Normal(0.0, 1.0).log_prob(x).sum((1, 2)).double())


@pytest.mark.parametrize(
    ("name", "params", "x", "batch_ndim", "message"),
    [
        ("gaussian", (8,), (8,), 1, "params (8,) and x (8,) with batch_ndim=1: x needs 1 batch dimensions and"),
        ("gaussian", (3, 4), (3, 4), 2, "x needs 2 batch dimensions and at least one item dimension"),
        ("gaussian", (3, 4), (3, 4), -1, "batch_ndim=-1"),
        ("gaussian", (3, 7, 1, 4, 4), (3, 1, 1, 4, 4), 1, "items of shape (1, 1, 4, 4) need parameters of shape"),
        ("gaussian", (3, 2, 4, 4), (3, 1, 4, 4), 1, "items of shape (1, 4, 4) need parameters of shape (1, 4, 4)"),
        ("gaussian_learned", (8, 16, 4), (8, 16, 2), 1, "items of shape (16, 2) need parameters of shape (32, 2)"),
        ("discretized_logistic_mixture", (8, 3), (8, 1), 1, "need parameters of shape (9,)"),
        ("bernoulli", (5, 3), (4, 3), 1, "the batch dimensions do not broadcast"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, params, x, batch_ndim, message):
    model = build_likelihood(name, 0.3, 3)
    measures = [model.log_prob] if model.levels == 2 else [model.log_prob, model.log_mass]
    for measure in measures:
        with pytest.raises(ValueError, match=re.escape(message)) as refusal:
            measure(torch.zeros(params), torch.zeros(x), batch_ndim)
        assert str(refusal.value).startswith(f"params {params} and x {x} with batch_ndim={batch_ndim}: ")


def test_parameters_that_no_item_needs_are_refused():
    with pytest.raises(ValueError, match=re.escape("(2, 3, 4, 4) with batch_ndim=1 have 3 channels; gaussian_learned")):
        build_likelihood("gaussian_learned").mean(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=re.escape("(2,) with batch_ndim=1 have 0 channels")):
        build_likelihood("gaussian_learned").mean(torch.zeros(2))
    with pytest.raises(ValueError, match=re.escape("(2, 4) with batch_ndim=-1 have 0 channels")):
        build_likelihood("gaussian_learned").mean(torch.zeros(2, 4), -1)
    with pytest.raises(ValueError, match=re.escape("needs 5 + 10 C for items of C channels")):
        build_likelihood("discretized_logistic_mixture").mean(torch.zeros(2, 14))


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_nothing_overflows_in_float32(name):
    """Images that the parameters rule out, scales from the least to large."""
    model = build_likelihood(name, 0.01, 2)
    x = torch.tensor([-1.0, 1.0, 1 / 255, -0.9921875]).view(1, 1, 2, 2)
    for sign in (-1, 1):
        for size in (0.0, 1.0, 30.0):
            params = torch.full((1, model.channels(1), 2, 2), sign * size, requires_grad=True)
            value = model.log_prob(params, x) + (0 if model.levels == 2 else model.log_mass(params, x))
            value.sum().backward()
            assert value.isfinite().all() and params.grad.isfinite().all()


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_float32_is_float64_rounded_however_unlikely_the_image(name):
    model, x = build_likelihood(name, 0.05, 2), images(3, 2, 4, 4)
    params = normal(3, model.channels(2), 4, 4)
    exact = model.log_mass(params, x.double())
    assert_close(model.log_mass(params.float(), x).double(), exact, rtol=2e-4, atol=1e-3)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_are_finite_differences(name):
    model = build_likelihood(name, 0.3, 2)
    x = binary(1, 2, 2, 2) if model.levels == 2 else images(1, 2, 2, 2).double()
    params = normal(1, model.channels(2), 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: model.log_prob(p, x), params)
    if model.levels == 256:
        assert torch.autograd.gradcheck(lambda p: model.log_mass(p, x), params)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_computed_in_float32_whatever_autocast_gives(name):
    model, x = build_likelihood(name), images(2, 1, 4, 4)
    params = normal(2, model.channels(1), 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, mean = model.log_prob(params, x), model.mean(params)
    assert value.dtype == mean.dtype == torch.float32
    assert torch.equal(value, model.log_prob(params.float(), x))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_many_samples_of_one_image_are_each_its_own(name):
    model, x = build_likelihood(name), images(3, 2, 4, 5).double()
    params = normal(3, 7, model.channels(2), 4, 5)
    each = torch.stack([model.log_prob(params[:, k], x) for k in range(7)], 1)
    assert_close(model.log_prob(params, x.unsqueeze(1), 2), each)
    assert model.mean(params, 2).shape == (3, 7, 2, 4, 5) and model.mean(params, 2).abs().max() <= 1


# --- what is modelled -------------------------------------------------------------------------------------------------


def test_binarisation_is_white_with_the_probability_of_grey():
    grey = LEVELS.view(1, 1, 16, 16)
    evenly = [torch.full_like(grey, (i + 0.5) / 1000) for i in range(1000)]
    samples = torch.stack([build_likelihood("bernoulli").prepare(grey, lambda like, u=u: u.clone()) for u in evenly])
    assert set(samples.unique().tolist()) == {-1.0, 1.0}
    assert_close((samples.mean(0) + 1) / 2, (grey + 1) / 2, rtol=0, atol=1e-3)


def test_black_and_white_stay_as_they_are():
    x = binary(1, 1, 8, 8).float()
    for extreme in (0.0, 1 - 2**-24):
        assert torch.equal(
            build_likelihood("bernoulli").prepare(x, lambda like, e=extreme: torch.full_like(like, e)), x
        )


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_images_of_256_levels_are_modelled_as_they_are(name):
    x = images(2, 1, 4, 4)
    assert build_likelihood(name).prepare(x, None) is x and build_likelihood(name).levels == 256


def test_likelihoods_have_their_documented_numbers():
    assert build_likelihood("gaussian").sigma == 0.1
    assert build_likelihood("discretized_logistic_mixture").components == 5
    assert [build_likelihood(name).levels for name in LIKELIHOODS] == [2, 256, 256, 256]
    sharpest = torch.tensor([0.3, -1e3], dtype=torch.float64).view(1, 2)  # its scale is e^-6
    density = build_likelihood("gaussian_learned").log_prob(sharpest, sharpest[:, :1])
    assert density.item() == pytest.approx(6 - math.log(2 * math.pi) / 2)


def test_what_can_not_be_is_refused_by_name():
    with pytest.raises(ValueError, match=re.escape("likelihood='poisson' is not known. Choose one of: bernoulli")):
        build_likelihood("poisson")
    with pytest.raises(ValueError, match="sigma=0"):
        build_likelihood("gaussian", sigma=0)
    with pytest.raises(ValueError, match="components=0"):
        build_likelihood("discretized_logistic_mixture", components=0)
    with pytest.raises(ValueError, match="gaussian, gaussian_learned, discretized_logistic_mixture"):
        build_likelihood("bernoulli").log_mass(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))

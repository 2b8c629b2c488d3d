"""Likelihoods: closed forms of Gaussians, mixtures and the uniform density, Hutchinson's law, DDPM's bound in NumPy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import multivariate_normal, norm
from torch.testing import assert_close

from hfgen.paths import compose, path_from_config
from hfgen.registry import PATHS
from hfgen.schedulers import DDPMScheduler, end_decoder, ode_likelihood
from tests.helpers.gaussian import F64, Gaussian, Mixture, ideal_pipeline

NATS = 1e-3
"""Tolerance of a log-density per dimension against its closed form."""

PAIRS = [
    ("straight", "flow_prediction"),
    ("straight", "epsilon"),
    ("straight", "score"),
    ("vp", "epsilon"),
    ("vp", "sample"),
    ("cosine", "v_prediction"),
    ("linear_vp", "score"),
    ("cosine_vp", "flow_prediction"),
    ("ve", "epsilon"),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def levels(x):
    """The nearest 8-bit images."""
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


# --- the ODE against closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "kind"), PAIRS)
def test_a_gaussian(path, kind):
    problem = Gaussian(0.2, 0.15)
    x = problem.mean + problem.std * normal(8, 1, 4, 4)
    x[0] = 0.9  # far from the data
    expected = norm.logpdf(x.numpy(), problem.mean, problem.std).reshape(8, -1).sum(1)
    values = ideal_pipeline(problem, path, kind).log_likelihood(x, generator=generator())
    assert values.dtype == F64 and values.shape == (8,)
    np.testing.assert_allclose(values.numpy() / 16, expected / 16, rtol=0, atol=NATS)


@pytest.mark.parametrize(("path", "kind"), [PAIRS[0], PAIRS[3], PAIRS[5], PAIRS[8]])
def test_a_mixture_of_images(path, kind):
    problem = Mixture(dim=12)
    which = torch.arange(10) % 5
    x = problem.means[which] + problem.std * normal(10, 12)
    parts = [multivariate_normal(mean, problem.std**2 * np.eye(12)).logpdf(x.numpy()) for mean in problem.means.numpy()]
    expected = np.logaddexp.reduce(parts) - math.log(5)
    pipeline, images = ideal_pipeline(problem, path, kind, side=2, channels=3), x.view(10, 3, 2, 2)
    draws = [pipeline.log_likelihood(images, generator=generator(seed)) for seed in range(4)]
    values = torch.stack(draws).mean(0)
    np.testing.assert_allclose(values.numpy() / 12, expected / 12, rtol=0, atol=NATS)


def test_the_rule_is_of_order_four():
    problem = Gaussian(0.2, 0.3)
    x = problem.mean + problem.std * normal(2, 1, 4, 4)
    network = ideal_pipeline(problem).denoiser
    velocity = ode_likelihood.Velocity(lambda x, t: network(x, t.expand(len(x))).sample, network.path, network.kind)
    fine, *coarse = (ode_likelihood.log_density(velocity, x, velocity.low, steps) for steps in (128, 8, 16, 32))
    errors = [float((value - fine).abs().mean()) for value in coarse]
    slopes = np.diff(np.log(errors)) / np.log(0.5)
    assert (slopes > 3.5).all(), (errors, slopes)


ITEMS = [(1,), (5,), (4, 3), (1, 4, 4), (2, 2, 2, 2)]
"""Vectors (D,), sequences (T, D), images, volumes."""


def gaussian_network(problem, path, kind):
    """A perfect network for data N(mean, std^2) of any shape, as `Velocity` calls it."""

    def predict(x, timestep):
        t = path.time_of(timestep.to(F64))
        point = path(t)
        x_t = x / path.input_scale(t)
        x_0 = problem.x_0(x_t, float(point.alpha), float(point.sigma))
        return compose(kind, point, x_0, (x_t - point.alpha * x_0) / point.sigma)

    return predict


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize(("path", "kind"), [PAIRS[0], PAIRS[3]])
def test_items_of_any_shape_have_one_number_each(item, path, kind):
    problem, path = Gaussian(0.2, 0.15), path_from_config(PATHS[path])
    x = problem.mean + problem.std * normal(6, *item)
    expected = norm.logpdf(x.numpy(), problem.mean, problem.std).reshape(6, -1).sum(1)
    velocity = ode_likelihood.Velocity(gaussian_network(problem, path, kind), path, kind)
    signs = torch.where(normal(6, *item, seed=1) > 0, 1.0, -1.0).to(F64)
    for probes in ((), (signs,)):  # this trace is diagonal: one probe is exact, too
        values = ode_likelihood.log_likelihood(velocity, x, False, 20, normal(6, *item, seed=2), probes, probes)
        assert values.shape == (6,)
        np.testing.assert_allclose(values.numpy() / math.prod(item), expected / math.prod(item), rtol=0, atol=NATS)
    assert_close(ode_likelihood.log_normal(x).numpy(), norm.logpdf(x.numpy()).reshape(6, -1).sum(1))
    size = math.prod(item)
    assert_close(ode_likelihood.bits_per_dimension(torch.full((6,), -size * math.log(8)), size), torch.full((6,), 3.0))


@pytest.mark.parametrize("item", ITEMS)
def test_the_bound_is_of_items_of_any_shape(item):
    problem, scheduler = Gaussian(0.2, 0.15), DDPMScheduler(path="discrete", clip_sample=False)
    network = gaussian_network(problem, scheduler.path, "epsilon")
    x_0 = levels(problem.mean + problem.std * normal(6, *item))
    bounds = []
    for shape in (x_0.shape, (6, math.prod(item))):
        noise = iter([normal(*shape, seed=i) for i in range(20)])
        bounds.append(
            ode_likelihood.variational_bound(
                network, scheduler, scheduler.grid(20), x_0.reshape(shape), lambda noise=noise: next(noise)
            )
        )
    assert bounds[0].shape == (6,)
    assert_close(*bounds)


def test_shapes_that_a_likelihood_can_not_mean_are_refused():
    path = path_from_config(PATHS["straight"])
    velocity = ode_likelihood.Velocity(gaussian_network(Gaussian(), path, "epsilon"), path, "epsilon")
    with pytest.raises(ValueError, match=r"y \(4,\) must be \(B, ...\) with item dimensions"):
        ode_likelihood.log_density(velocity, normal(4), 0.5, 2)
    with pytest.raises(ValueError, match=r"y \(4, 3\) must be .* and probes \[\(4, 2\)\] of its shape"):
        ode_likelihood.log_density(velocity, normal(4, 3), 0.5, 2, [normal(4, 2)])
    with pytest.raises(ValueError, match=r"x \(4, 3\) and noise \(4, 2\) differ in shape"):
        ode_likelihood.log_likelihood(velocity, normal(4, 3), False, 2, normal(4, 2))
    with pytest.raises(ValueError, match=r"x \(4,\) must be"):
        ode_likelihood.log_normal(normal(4))
    with pytest.raises(ValueError, match=r"log_probability \(4, 2\) must be \(B,\)"):
        ode_likelihood.bits_per_dimension(normal(4, 2), 3)
    with pytest.raises(ValueError, match="dimensions=0 at least 1"):
        ode_likelihood.bits_per_dimension(normal(4), 0)


def test_a_class_has_its_own_density():
    problems = [Gaussian(-0.3, 0.3), Gaussian(0.4, 0.2)]
    pipeline = ideal_pipeline(problems)
    x = normal(4, 1, 4, 4) * 0.15
    labels = [0, 1, 1, 0]
    expected = [norm.logpdf(x[i], problems[c].mean, problems[c].std).sum() for i, c in enumerate(labels)]
    np.testing.assert_allclose(
        pipeline.log_likelihood(x, labels, generator=generator()).numpy() / 16, np.divide(expected, 16), atol=NATS
    )
    with pytest.raises(ValueError, match=r"needs class_labels, from 0 to 1"):
        pipeline.log_likelihood(x)
    with pytest.raises(ValueError, match=r"class 2 is not known"):
        pipeline.log_likelihood(x, [0, 1, 2, 0])


class Box:
    """x_0 uniform in [-half, half]^d: the mean of a truncated normal."""

    half = 256 / 255

    def x_0(self, x, alpha, sigma):
        if sigma > 1e4 * alpha:
            return x * alpha / sigma**2 * self.half**2 / 3
        mean, std = x / alpha, sigma / alpha
        low, high = (-self.half - mean) / std, (self.half - mean) / std
        flip = low > 0  # in the lower tail masses are exact
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        mass = upper + torch.log(-torch.expm1(lower - upper)) + 0.5 * math.log(2 * math.pi)
        away = (torch.exp(-low.square() / 2 - mass) - torch.exp(-high.square() / 2 - mass)) * std
        return mean + torch.where(flip, -away, away)


def test_the_decoder_is_told_the_noise_that_there_is_in_levels(monkeypatch):
    """y is x + r eps for the noise that was drawn, in levels, and r is that at which the ODE ends by its documents."""
    numbers, told = torch.randint(0, 256, (4, 1, 4, 4), generator=generator()), []
    decode = ode_likelihood.level_log_mass
    monkeypatch.setattr(ode_likelihood, "level_log_mass", lambda *args: told.append(args) or decode(*args))
    ideal_pipeline(Gaussian()).bits_per_dim(numbers / 127.5 - 1, generator=generator(1))
    (k, y, _, _, r), *_ = told
    assert k.long().equal(numbers.flatten(1)) and r == pytest.approx(1.25)
    eps = (y - k) / r
    assert abs(float(eps.mean())) < 0.5 and 0.7 < float(eps.std()) < 1.3


def test_a_uniform_model_measures_eight_bits():
    images = torch.randint(0, 256, (48, 1, 4, 4), generator=generator()) / 127.5 - 1
    values = ideal_pipeline(Box()).bits_per_dim(images, generator=generator(1))
    assert values.mean() == pytest.approx(8, abs=5e-4)  # 8.000
    assert_close(values, torch.full_like(values, 8), rtol=0, atol=0.04)  # by the noise at the edges of the range


def test_bits_are_those_of_the_discretised_density():
    problem = Gaussian(0.2, 0.15)
    images = levels(problem.mean + problem.std * normal(32, 1, 4, 4))
    values = ideal_pipeline(problem).bits_per_dim(images, generator=generator())
    assert values.mean() == pytest.approx(discrete_bits(images, problem).mean(), abs=NATS / math.log(2))


def discrete_bits(images, problem):
    """Bits per dimension of rounded Gaussian data, exactly."""
    x, half = images.numpy(), 0.5 / 127.5
    low = np.where(x < -1 + half, -np.inf, (x - half - problem.mean) / problem.std)
    high = np.where(x > 1 - half, np.inf, (x + half - problem.mean) / problem.std)
    return -np.log2(ndtr(high) - ndtr(low)).reshape(len(x), -1).mean(1)


# --- the trace --------------------------------------------------------------------------------------------------------


def test_hutchinson_agrees_with_the_exact_trace_within_its_standard_error():
    pipeline = ideal_pipeline(Mixture(dim=12), side=2, channels=3)
    x = normal(1, 3, 2, 2) * 0.4
    network = pipeline.denoiser
    velocity = ode_likelihood.Velocity(lambda x, t: network(x, t.expand(len(x))).sample, network.path, network.kind)

    def density(count, probes):
        signs = [torch.where(normal(count, 3, 2, 2, seed=i) > 0, 1.0, -1.0).to(F64) for i in range(probes)]
        return ode_likelihood.log_density(velocity, x.expand(count, -1, -1, -1), velocity.low, 8, signs)

    exact, many, four = density(1, 0), density(256, 1), density(64, 4)
    error = many.std() / 16
    assert error > 1e-3  # the trace is not diagonal: there is something to estimate
    assert abs(many.mean() - exact[0]) < 4 * error
    assert float(four.std() / many.std()) == pytest.approx(0.5, rel=0.35)


def test_auto_is_exact_where_that_is_cheap():
    problem = Mixture(dim=64, std=0.3)
    pipeline, x = ideal_pipeline(problem, side=8), normal(1, 1, 8, 8) * 0.3
    assert_close(
        pipeline.log_likelihood(x, num_inference_steps=2, generator=generator()),
        pipeline.log_likelihood(x, num_inference_steps=2, trace="exact", generator=generator()),
        rtol=0,
        atol=0,
    )
    larger, x = ideal_pipeline(Mixture(dim=144, std=0.3), side=12), normal(2, 1, 12, 12) * 0.3
    first, again, other = (larger.log_likelihood(x, num_inference_steps=2, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_image_measures_the_same_in_any_batch():
    pipeline = ideal_pipeline(Mixture(dim=12), side=2, channels=3)
    images = levels(normal(5, 3, 2, 2) * 0.3)
    options = {"num_inference_steps": 4, "trace": "hutchinson"}
    whole = pipeline.bits_per_dim(images, **options, generator=[generator(i) for i in range(5)])
    parts = pipeline.bits_per_dim(images, **options, generator=[generator(i) for i in range(5)], batch_size=2)
    alone = torch.cat([pipeline.bits_per_dim(images[i : i + 1], **options, generator=[generator(i)]) for i in range(5)])
    assert_close(parts, whole, rtol=0, atol=1e-5)
    assert_close(alone, whole, rtol=0, atol=1e-5)


def test_the_density_integrates_to_one_with_any_network():
    """The ODE conserves probability for any output of the network."""
    network = ideal_pipeline(Gaussian(), "vp", "epsilon", side=1).denoiser
    network.problems = [Crooked()]
    velocity = ode_likelihood.Velocity(lambda x, t: network(x, t.expand(len(x))).sample, network.path, network.kind)
    y = torch.linspace(-1.5, 1.5, 1501, dtype=F64)  # most of it lies within 0.6
    density = ode_likelihood.log_density(velocity, y.view(-1, 1), velocity.low, 32).exp()
    assert float(torch.trapezoid(density, y)) == pytest.approx(1, abs=2e-3)


def test_the_volume_is_exact_where_data_are_narrower_than_the_noise():
    """The divergence is then 1/s; also for s f(s) = 1 + s + s^2."""
    for a, b in ((0.001, 0.002), (0.3, 0.31), (0.5, 1.0)):
        ends, middle = ode_likelihood.volume_weights(a, b)
        for f, integral in (
            (lambda s: 1 / s, math.log(b / a)),
            (lambda s: 1 / s + 1 + s, math.log(b / a) + b - a + (b * b - a * a) / 2),
        ):
            assert ends * (f(a) + f(b)) + middle * f((a + b) / 2) == pytest.approx(integral, rel=1e-9)


class Crooked:
    def x_0(self, x, alpha, sigma):
        return 0.5 * torch.sin(2 * x) + 0.3 * sigma


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_networks_in_any_precision(dtype):
    from hfgen import DenoisingPipeline, RectifiedFlowScheduler, build_denoiser

    torch.manual_seed(0)
    network = build_denoiser("patch_unet", "xs", 8, 1, num_classes=3)
    pipeline = DenoisingPipeline(network, RectifiedFlowScheduler(), 3)
    pipeline.set_progress_bar_config(disable=True)
    images, full = levels(normal(2, 1, 8, 8) * 0.3), []
    for precision in (torch.float32, dtype):
        pipeline.to(precision)
        full.append(
            pipeline.bits_per_dim(images, [0, 2], num_inference_steps=3, trace="hutchinson", generator=generator())
        )
    assert full[1].dtype == F64 and full[1].isfinite().all()
    assert_close(*full, rtol=0.02, atol=0.0)
    assert all(p.grad is None for p in pipeline.denoiser.parameters())


# --- the variational bound --------------------------------------------------------------------------------------------


def expected_bound(images, problem, steps, large):
    """Ho et al. 2020, eq. 5, in bits per dimension: the mean over all noise, for the ideal network, in NumPy."""
    betas = np.linspace(1e-4, 0.02, 1000)
    table = np.cumprod((1 - betas).astype(np.float32), dtype=np.float32).astype(np.float64)
    bars = table[[round(1000 * (i + 1) / steps) - 1 for i in range(steps)]]
    before = np.concatenate([[1.0], bars[:-1]])
    x, m, c = images.numpy(), problem.mean, problem.std
    beta = 1 - bars / before
    posterior = beta * (1 - before) / (1 - bars)
    last = bars[-1]
    total = 0.5 * ((1 - last) - 1 - np.log(1 - last) + last * x**2)  # L_T
    for bar, prior, b, v in zip(bars, before, beta, posterior, strict=True):
        gain = np.sqrt(bar) * c**2 / (bar * c**2 + 1 - bar)
        miss, spread = (m - x) * (1 - gain * np.sqrt(bar)), gain * np.sqrt(1 - bar)  # x_hat - x = miss + spread eps
        if prior < 1:
            weight = np.sqrt(prior) * b / (1 - bar)
            p = b if large else v
            total += 0.5 * (v / p - 1 - np.log(v / p) + weight**2 * (miss**2 + spread**2) / p)
        else:
            nodes, weights = np.polynomial.hermite_e.hermegauss(101)
            std = np.sqrt(posterior[1])
            high, low = ((half - miss[..., None] - spread * nodes) / std for half in (0.5 / 127.5, -0.5 / 127.5))
            mass = np.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
            total += -(np.log(mass) @ weights) / np.sqrt(2 * np.pi)
    return total.reshape(len(x), -1).mean(1) / np.log(2)


@pytest.mark.parametrize(("steps", "variance"), [(500, "fixed_small"), (100, "fixed_small"), (100, "fixed_large")])
def test_the_bound_is_that_of_the_paper(steps, variance):
    problem = Gaussian(0.2, 0.15)
    pipeline = ideal_pipeline(problem, "vp", "epsilon", side=16, variance_type=variance)
    images = levels(problem.mean + problem.std * normal(4, 1, 16, 16))
    values = pipeline.variational_bound(images.repeat(32, 1, 1, 1), None, steps, generator()).view(32, 4)
    expected, error = expected_bound(images, problem, steps, variance == "fixed_large"), values.std(0) / 32**0.5
    assert error.max() < 0.04
    assert (abs(values.mean(0).numpy() - expected) < 4 * error.numpy()).all(), (values.mean(0), expected, error)


def test_it_bounds_the_exact_likelihood():
    problem = Gaussian(0.2, 0.15)
    images = levels(problem.mean + problem.std * normal(64, 1, 16, 16))
    exact = discrete_bits(images, problem).mean()
    for variance in ("fixed_small", "fixed_large"):
        pipeline = ideal_pipeline(problem, "vp", "epsilon", side=16, variance_type=variance)
        bounds = [float(pipeline.variational_bound(images, None, n, generator()).mean()) for n in (1, 20, 500)]
        assert exact < min(bounds)
        assert bounds[2] < bounds[0]
    assert bounds[2] < exact + 0.2


def test_the_bound_clips_as_ddpm_does_and_knows_other_paths():
    problem = Gaussian(0.9, 0.1)
    images = levels(problem.mean + problem.std * normal(32, 1, 4, 4))
    free = ideal_pipeline(problem, "vp", "epsilon", clip_sample=False)
    clipped = ideal_pipeline(problem, "vp", "epsilon", clip_sample=True)
    a, b = (p.variational_bound(images, None, 50, generator()) for p in (free, clipped))
    assert not torch.equal(a, b)
    assert all(p.mean() > discrete_bits(images, problem).mean() for p in (a, b))
    for path, kind in (("straight", "flow_prediction"), ("cosine_vp", "v_prediction"), ("ve", "epsilon")):
        toy = Gaussian(0.2, 0.15)
        data = levels(toy.mean + toy.std * normal(64, 1, 4, 4))
        pipeline = ideal_pipeline(toy, path, kind, variance_type="fixed_large")
        bound, exact = pipeline.variational_bound(data, None, 200, generator()).mean(), discrete_bits(data, toy).mean()
        assert exact < bound < 12, path  # valid, though loose where the last step is not as small as a table's


def test_the_mass_of_a_bin_is_exact_far_out_and_the_bins_fill_the_line():
    k = torch.arange(256, dtype=F64)
    for mean, std in ((165.0, 25.0), (1.2, 0.4), (306.0, 1.2)):
        log_mass = end_decoder.log_bin(k, torch.full_like(k, mean), std)
        assert float(log_mass.exp().sum()) == pytest.approx(1, abs=1e-12)
        assert log_mass.isfinite().all()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 4, 5), r"shape \(2, 1, 4, 5\); this model needs \(B, 1, 4, 4\)"),
        (torch.zeros(1, 4, 4), r"this model needs \(B, 1, 4, 4\)"),
        (torch.zeros(0, 1, 4, 4), r"this model needs \(B, 1, 4, 4\)"),
        (torch.full((1, 1, 4, 4), 255.0), r"from 255 to 255, not in \[-1, 1\]: of 8-bit ones, give k / 127.5 - 1"),
        (torch.full((1, 1, 4, 4), math.nan), r"not in \[-1, 1\]"),
        (torch.full((1, 1, 4, 4), 0.001), r"of a level away from the 256 levels .*round them"),
    ],
)
def test_images_that_are_not_eight_bit_or_do_not_fit_are_refused(images, message):
    pipeline = ideal_pipeline(Gaussian())
    for measure in (pipeline.bits_per_dim, pipeline.variational_bound):
        with pytest.raises(ValueError, match=message):
            measure(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_probes": 0}, "num_probes=0"),
        ({"trace": "guess"}, "trace='guess' must be auto, exact or hutchinson"),
        ({"class_labels": 1}, "trained without classes"),
        ({"generator": [generator()], "trace": "hutchinson"}, "1 generators for 2 samples"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ideal_pipeline(Gaussian()).log_likelihood(torch.zeros(2, 1, 4, 4), **options)


def test_chains_that_can_not_be_are_refused():
    pipeline, images = ideal_pipeline(Gaussian(), "vp", "epsilon"), levels(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"num_inference_steps=1001"):
        pipeline.variational_bound(images, num_inference_steps=1001)
    with pytest.raises(ValueError, match=r"num_inference_steps=0"):
        pipeline.variational_bound(images, num_inference_steps=0)
    pipeline = ideal_pipeline(Gaussian(), "vp", "epsilon", variance_type="learned_range")
    with pytest.raises(ValueError, match=r"variance_type='learned_range' needs a network with 2 output channels"):
        pipeline.variational_bound(images)


def test_the_nodes_fall_on_the_times_that_networks_know():
    for name, kind in (("straight", "flow_prediction"), ("vp", "epsilon"), ("ve", "epsilon")):
        path = path_from_config(PATHS[name])
        velocity = ode_likelihood.Velocity(lambda x, t: x, path, kind)
        nodes = velocity.nodes(0.02, 7)
        assert nodes[0] == 0.02 and nodes[-1] == 1 and (np.diff(nodes) > 0).all()
        assert len(nodes) == 7 + 1 + (velocity.high < 1)
        assert velocity.high in nodes and velocity.low < 0.02


def test_the_bound_of_one_step_by_hand():
    """alpha^2 = .999: the decoder's deviation is 127.5 sqrt(.001) levels, and the network knows the data."""
    beta, x = 0.001, torch.tensor([[200.0, 7.0]], dtype=torch.float64) / 127.5 - 1
    scheduler = DDPMScheduler(1, trained_betas=[beta], prediction_type="sample")
    noise = lambda: torch.zeros_like(x)  # noqa: E731
    found = ode_likelihood.variational_bound(lambda x_t, t: x, scheduler, [1.0, 0.0], x, noise, lambda steps: steps)
    prior = 0.5 * (beta - 1 - math.log(beta) + (1 - beta) * x.square()).sum()
    half_a_level = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5 / (127.5 * math.sqrt(beta))))
    assert float(found) == pytest.approx(float(prior) - 2 * math.log(2 * float(half_a_level) - 1), rel=1e-5)

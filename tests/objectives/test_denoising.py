"""Denoising: closed forms for Gaussian data, published weights, the distribution of times, and random streams."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.testing import assert_close

from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.paths import (
    PREDICTIONS,
    CosineVPPath,
    DiscretePath,
    LinearVPPath,
    StraightPath,
    VEPath,
    broadcast,
    coefficients,
    compose,
    path_from_config,
)

DDPM = {"path": "discrete", "beta_schedule": "linear"}
PATHS = {
    "straight": StraightPath,
    "linear_vp": LinearVPPath,
    "cosine_vp": CosineVPPath,
    "ve": VEPath,
    "discrete": lambda: path_from_config(DDPM),
}
MEAN, STD = 0.3, 0.5
"""Mean and standard deviation of the Gaussian data."""


class Function(nn.Module):
    """A network that calls a function (x, timestep) -> output. `calls` holds its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, []

    def forward(self, x, timestep, class_labels=None):
        self.calls.append((x, timestep, class_labels))
        return SimpleNamespace(sample=self.function(x, timestep))


def zero(x, timestep):
    return torch.zeros_like(x)


def data(count=64, shape=(1, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MEAN + STD * torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def loss_and_inputs(objective, network, batch, step):
    """Return the loss, and the network's inputs (x, timestep, labels)."""
    network = Function(network) if not isinstance(network, nn.Module) else network
    loss = objective.loss("denoiser", {"denoiser": network}, batch, step)
    return loss, network.calls[-1]


def is_refused(path, kind):
    """Return whether the targets of this path and prediction kind are far larger at some times than in the median."""
    return kind == "score" or (path == "ve" and kind in ("flow_prediction", "v_prediction"))


PAIRS = list(itertools.product(PATHS, PREDICTIONS))


# --- the minimiser ----------------------------------------------------------------------------------------------------


def optimal(path, kind, shift=0.0, scale=1.0):
    """Return a predictor of E[c_x x_0 + c_e eps | x_t] for N(MEAN, STD^2) pixels, plus `shift`, times `scale`."""

    def predict(x, timestep):
        t = path.time_of(timestep.double())
        point = path(t)
        x_t = x / broadcast(path.input_scale(t), x)
        alpha, sigma = broadcast(point.alpha, x), broadcast(point.sigma, x)
        x_0 = MEAN + STD**2 * alpha / (STD**2 * alpha**2 + sigma**2) * (x_t - alpha * MEAN)
        best = compose(kind, point, x_0, (x_t - alpha * x_0) / sigma)
        size = broadcast(torch.stack([c.expand_as(t) for c in PREDICTIONS[kind](point)]).abs().amax(0), x)
        return scale * best + shift * size

    return predict


def posterior_variance(path, kind, t):
    """Compute Var[c_x x_0 + c_e eps | x_t] = STD^2 (alpha c_e - sigma c_x)^2 / Var[x_t], the least squared error."""
    point = path(t)
    c_x, c_e = PREDICTIONS[kind](point)
    return STD**2 * (point.alpha * c_e - point.sigma * c_x) ** 2 / (STD**2 * point.alpha**2 + point.sigma**2)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_minimiser_is_the_posterior_mean_and_its_loss_the_posterior_variance(name, kind):
    path = PATHS[name]()
    weighting = "min_snr" if is_refused(name, kind) else "simple"
    objective = Denoising(path, kind, "low_discrepancy", weighting=weighting)
    batch, step = {"x": data(512)}, Step(3)

    loss, (_, timestep, _) = loss_and_inputs(objective, optimal(path, kind), batch, step)
    t = path.time_of(timestep.double())
    expected = (objective.weight(t) * posterior_variance(path, kind, t)).mean()
    spread = (objective.weight(t) * posterior_variance(path, kind, t)).square().sum().sqrt() * (2 / 64) ** 0.5 / 512
    assert abs(loss.value - expected) < 5 * spread + 1e-5 * expected  # the loss is computed in float32
    for change in ({"shift": 0.1}, {"shift": -0.1}, {"scale": 1.1}, {"scale": 0.9}):
        worse, _ = loss_and_inputs(objective, optimal(path, kind, **change), batch, step)
        assert worse.value > loss.value * 1.0001, change


@pytest.mark.parametrize("name", PATHS)
def test_losses_of_two_prediction_kinds_are_related_by_the_2x2_system(name):
    """For one predictor, error_kind = error_{x_0} / x_from_output^2 for each image."""
    path = PATHS[name]()
    batch, step = {"x": data(32)}, Step(1)

    def half(kind):  # a network with outputs of this kind, whose prediction of x_0 is always half of its input
        def predict(x, timestep):
            t = path.time_of(timestep.double())
            x_t, x_0 = x / broadcast(path.input_scale(t), x), x / 2
            point = path(t)
            eps = (x_t - broadcast(point.alpha, x) * x_0) / broadcast(point.sigma, x)
            return compose(kind, point, x_0, eps)

        return predict

    values = {}
    for kind in PREDICTIONS:
        objective = Denoising(path, kind, weighting="min_snr")
        weighted, (_, timestep, _) = loss_and_inputs(objective, half(kind), batch, step)
        t = path.time_of(timestep.double())
        values[kind] = weighted.value
        if not is_refused(name, kind):
            plain, (x, _, _) = loss_and_inputs(Denoising(path, kind), half(kind), batch, step)
            error = (x / 2 - batch["x"]).square().flatten(1).mean(1)
            assert_close(
                plain.value,
                (error / coefficients(kind, path(t)).x_from_output ** 2).mean().float(),
                rtol=1e-4,
                atol=0,
                check_dtype=False,
            )
    for kind in PREDICTIONS:  # min-SNR weighs the error in x_0, whatever the kind
        assert_close(values[kind], values["sample"], rtol=1e-4, atol=0)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear_vp", "cosine_vp", "discrete"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_the_paper(name, gamma):
    path = PATHS[name]()
    t = path.snap(torch.linspace(0.002, 0.99, 200, dtype=torch.float64))
    alpha, sigma, _, _ = path(t)
    snr = (alpha / sigma) ** 2
    clipped = snr.clamp(max=gamma)
    published = {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}
    for kind, expected in published.items():
        objective = Denoising(path, kind, weighting="min_snr", snr_gamma=gamma)
        assert_close(objective.weight(t), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("weighting", ["simple", "min_snr", "sigmoid"])
@pytest.mark.parametrize("name", PATHS)
def test_weighted_losses_are_the_cited_ones(name, weighting):
    """In NumPy, from alpha and sigma alone: the two unknowns by Cramer's rule, the slope of log SNR by differences."""
    path, bias, gamma, h = PATHS[name](), -1.5, 3.0, 1e-6
    t = path.snap(torch.linspace(0.02, 0.98, 49, dtype=torch.float64))
    side = h if name != "discrete" else 0.0  # on a table: the slope of the interval before t
    alpha, sigma = path(t).alpha.numpy(), path(t).sigma.numpy()

    def log_snr(t):
        point = path(t)
        return 2 * np.log(point.alpha.numpy() / point.sigma.numpy())

    slope = (log_snr(t + side) - log_snr(t - h)) / (h + side)
    rng = np.random.default_rng(0)
    x_0, eps, wrong = rng.normal(size=(3, 49))
    x_t = alpha * x_0 + sigma * eps
    for kind, (c_x, c_e) in cited_targets(path, t).items():
        if weighting == "simple" and is_refused(name, kind):
            continue
        output = c_x * x_0 + c_e * eps + 0.01 * wrong
        det = alpha * c_e - sigma * c_x
        x_0_hat, eps_hat = (c_e * x_t - sigma * output) / det, (alpha * output - c_x * x_t) / det
        cited = {
            "simple": (output - c_x * x_0 - c_e * eps) ** 2,
            "min_snr": np.minimum((alpha / sigma) ** 2, gamma) * (x_0_hat - x_0) ** 2,
            "sigmoid": -slope / (1 + np.exp(2 * np.log(alpha / sigma) - bias)) * (eps_hat - eps) ** 2,
        }
        objective = Denoising(path, kind, weighting=weighting, sigmoid_bias=bias, snr_gamma=gamma)
        computed = objective.weight(t).numpy() * (0.01 * wrong) ** 2
        tolerance = 1e-4 if name == "discrete" else 1e-5  # a difference to one side is of first order
        np.testing.assert_allclose(computed, cited[weighting], rtol=tolerance)


def cited_targets(path, t, h=1e-6):
    """(c_x, c_e) of each target, with derivatives by differences: NumPy arrays of the shape of t."""
    before, point = path(t - h), path(t)
    alpha, sigma = point.alpha.numpy(), point.sigma.numpy()
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    d_alpha, d_sigma = (point.alpha - before.alpha).numpy() / h, (point.sigma - before.sigma).numpy() / h
    rows = {"sample": (one, zero), "epsilon": (zero, one), "v_prediction": (-sigma, alpha)}
    return rows | {"flow_prediction": (d_alpha, d_sigma), "score": (zero, -1 / sigma)}


@pytest.mark.parametrize("name", PATHS)
def test_the_sigmoid_loss_is_an_integral_over_log_snr_and_bounded(name):
    """E_t w(t) of the error in eps integrates sigmoid(b - l): a difference of log(1 + e^(b - l)), on every path."""
    path, bias = PATHS[name](), 1.0
    objective = Denoising(path, "epsilon", weighting="sigmoid", sigmoid_bias=bias)
    table = name == "discrete"
    grid = torch.linspace(0.05, 0.95, 200_001, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    weight = objective.weight(path.snap(middle) if table else middle)
    ends = path.log_snr(torch.stack([grid[0], grid[-1]]))
    expected = np.logaddexp(0, bias - ends[1].item()) - np.logaddexp(0, bias - ends[0].item())
    assert (weight.mean() * 0.9).item() == pytest.approx(expected, rel=2e-2 if table else 1e-5)
    last = objective.weight(path.snap(torch.tensor([1 - 1e-12, 1.0], dtype=torch.float64)))
    assert last.isfinite().all()


@pytest.mark.parametrize("weighting", ["min_snr", "sigmoid"])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_weights_in_pure_noise_are_their_limits(name, kind, weighting):
    """With logits of time above 37, t is exactly 1, where the straight path has no signal."""
    path = PATHS[name]()
    objective = Denoising(path, kind, "logit_normal", logit_mean=60.0, weighting=weighting)
    ends = torch.tensor([1 - 1e-12, 1.0], dtype=torch.float64)
    before, last = objective.weight(path.snap(ends))
    assert_close(last, before, rtol=1e-8, atol=1e-12)
    if weighting == "min_snr" and name != "ve" and kind == "epsilon":
        assert last == 1  # SNR times the error in x_0 is the error in eps
    loss, (_, timestep, _) = loss_and_inputs(objective, zero, {"x": data(4)}, Step(0))
    assert timestep.eq(float(path.timestep(ends[1]))).all() and loss.value.isfinite()


# --- times ------------------------------------------------------------------------------------------------------------


def times(objective, count, steps=1, shards=1, seed=0):
    """Return the times of steps 0, 1, ... of all shards: (steps, shards * count)."""
    return torch.stack(
        [
            torch.cat([objective.times(Step(n, seed, shard=shard, shards=shards), count) for shard in range(shards)])
            for n in range(steps)
        ]
    )


@pytest.mark.parametrize(("count", "shards"), [(64, 1), (16, 4), (1, 7)])
def test_low_discrepancy_times_are_one_in_each_interval_over_all_shards(count, shards):
    objective = Denoising(StraightPath(), time_sampling="low_discrepancy")
    values = times(objective, count, 20, shards)
    total = count * shards
    unit = (values - objective.earliest) / (1 - objective.earliest)
    for row in (unit * total).floor().long():
        assert sorted(row.tolist()) == list(range(total))


def test_low_discrepancy_is_uniform_with_far_less_variance():
    low, plain = (
        times(Denoising(StraightPath(), time_sampling=name), 32, 200) for name in ("low_discrepancy", "uniform")
    )
    assert low.mean(1).var() < plain.mean(1).var() / 100
    # the time of each image is uniform, whatever its place in the batch and the time of its neighbour
    assert stats.kstest(low[:, 0].numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(low.flatten().numpy(), "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([low[:, :-1].flatten(), low[:, 1:].flatten()]))[0, 1]) < 0.08


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5)])
def test_logit_normal_times(mean, std):
    t = times(Denoising(StraightPath(), time_sampling="logit_normal", logit_mean=mean, logit_std=std), 500, 8).flatten()
    logits = torch.logit((t - 1e-3) / (1 - 1e-3)).numpy()
    assert stats.kstest(logits, "norm", (mean, std)).pvalue > 1e-3
    assert stats.kstest(logits, "norm", (-mean, 2 * std)).pvalue < 1e-6


@pytest.mark.parametrize("name", ["uniform", "low_discrepancy"])
def test_uniform_times(name):
    t = times(Denoising(StraightPath(), time_sampling=name), 500, 8).flatten()
    assert stats.kstest(t.numpy(), "uniform", (1e-3, 1 - 1e-3)).pvalue > 1e-3
    assert t.min() >= 1e-3 and t.max() <= 1 and t.dtype == torch.float64


def test_every_entry_of_a_ddpm_table_is_trained_on_equally_often():
    """Ho et al. draw t from {1, ..., T}. Samplers call the network at the first entry, so it must be trained there."""
    path = path_from_config({**DDPM, "num_train_timesteps": 10})
    for name in ("uniform", "low_discrepancy"):
        entries = path.timestep(times(Denoising(path, "epsilon", name), 1000, 20).flatten()).round().long()
        counts = torch.bincount(entries, minlength=10)
        assert len(counts) == 10 and stats.chisquare(counts.numpy()).pvalue > 1e-3, counts
    full = Denoising(path_from_config(DDPM), "epsilon", "low_discrepancy")
    (row,) = full.path.timestep(times(full, 1000)).round().long()
    assert sorted(row.tolist()) == list(range(1000))


# --- inputs of the network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "scaled_linear"])
def test_ddpm_is_that_of_diffusers(schedule):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule=schedule)
    objective = Denoising(path_from_config(theirs.config), "epsilon", "low_discrepancy")
    images, noise = data(256).float(), data(256, seed=1).float()
    loss, (x, timestep, _) = loss_and_inputs(objective, zero, {"x": images, "noise": noise}, Step(0))
    assert timestep.dtype == torch.float32 and timestep.shape == (256,)
    assert torch.equal(timestep, timestep.round()) and timestep.min() >= 0 and timestep.max() <= 999
    assert_close(x, theirs.add_noise(images, noise, timestep.long()), rtol=1e-5, atol=2e-6)
    assert_close(loss.value, noise.square().mean())  # the target is the noise itself
    v = Denoising(path_from_config(theirs.config), "v_prediction", "low_discrepancy")
    loss, _ = loss_and_inputs(v, zero, {"x": images, "noise": noise}, Step(0))
    assert_close(loss.value, theirs.get_velocity(images, noise, timestep.long()).square().mean())


def test_rectified_flow_is_that_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    images, noise = data(32).float(), data(32, seed=1).float()
    loss, (x, timestep, _) = loss_and_inputs(Denoising(StraightPath()), zero, {"x": images, "noise": noise}, Step(0))
    theirs = FlowMatchEulerDiscreteScheduler()
    for i in range(32):
        theirs.set_timesteps(sigmas=[float(timestep[i]) / 1000])
        expected = theirs.scale_noise(images[i : i + 1], theirs.timesteps[:1], noise[i : i + 1])
        assert_close(theirs.timesteps[0], timestep[i])
        assert_close(x[i : i + 1], expected)
    assert_close(loss.value, (noise - images).square().mean())


def test_a_batch_may_carry_its_noise():
    images, step = data(8).float(), Step(4)
    network = Function(zero)
    objective = Denoising(StraightPath())
    for noise in (None, images, -images):
        loss_and_inputs(objective, network, {"x": images} | ({} if noise is None else {"noise": noise}), step)
    random, same, opposite = network.calls
    assert torch.equal(random[1], same[1]) and torch.equal(same[1], opposite[1])  # noise does not change the times
    assert_close(same[0], images)
    t = broadcast(same[1] / 1000, images)
    assert_close(opposite[0], (1 - 2 * t) * images)
    assert_close((random[0] - (1 - t) * images) / t, step.randn("noise", images), rtol=1e-3, atol=1e-4)


def test_networks_see_unit_variance_on_the_exploding_path():
    objective = Denoising(VEPath(), "epsilon", "low_discrepancy")
    _, (x, timestep, _) = loss_and_inputs(objective, zero, {"x": 2 * (data(512) - MEAN)}, Step(0))  # unit variance
    assert timestep.max() > 990
    assert_close(x.flatten(1).std(1), torch.ones(512, dtype=x.dtype), rtol=0, atol=0.45)
    assert_close(x.std(), torch.ones((), dtype=x.dtype), rtol=0.02, atol=0)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_the_null_label_replaces_labels_as_often_as_label_dropout_says():
    objective = Denoising(StraightPath(), num_classes=7, label_dropout=0.2)
    batch = {"x": torch.zeros(400, 1, 1, 1), "labels": torch.arange(400) % 7}
    labels = torch.stack([loss_and_inputs(objective, zero, batch, Step(n))[1][2] for n in range(10)])
    null = labels == 7
    assert stats.binomtest(int(null.sum()), null.numel(), 0.2).pvalue > 1e-3
    assert torch.equal(labels[~null], batch["labels"].expand(10, -1)[~null])
    assert not torch.equal(null[0], null[1]) and labels.dtype == torch.long
    for share, expected in ((0.0, batch["labels"]), (1.0, torch.full((400,), 7))):
        certain = Denoising(StraightPath(), num_classes=7, label_dropout=share)
        assert torch.equal(loss_and_inputs(certain, zero, batch, Step(0))[1][2], expected)
    assert loss_and_inputs(Denoising(StraightPath()), zero, batch, Step(0))[1][2] is None


def test_dropping_labels_is_independent_of_times_and_noise():
    objective = Denoising(StraightPath(), num_classes=2, label_dropout=0.5)
    batch = {"x": torch.zeros(2000, 1, 1, 1), "labels": torch.zeros(2000, dtype=torch.long)}
    _, (x, timestep, labels) = loss_and_inputs(objective, zero, batch, Step(0))
    for other in (timestep, x.flatten()):
        assert abs(torch.corrcoef(torch.stack([labels.float(), other]))[0, 1]) < 0.1


# --- randomness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shards", "count"), [(2, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("sampling", ["uniform", "low_discrepancy", "logit_normal"])
def test_draws_do_not_depend_on_how_the_batch_is_cut(shards, count, sampling):
    objective = Denoising(StraightPath(), time_sampling=sampling, num_classes=3, label_dropout=0.5)
    batch = {"x": data(8).float(), "labels": torch.arange(8) % 3}
    whole_loss, whole = loss_and_inputs(objective, zero, batch, Step(5, seed=2))
    losses, parts = [], []
    for shard in range(shards):
        slices = {key: value[shard * count : (shard + 1) * count] for key, value in batch.items()}
        loss, inputs = loss_and_inputs(objective, zero, slices, Step(5, seed=2, shard=shard, shards=shards))
        losses.append(loss.value)
        parts.append(inputs)
    for inputs, slices in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(inputs, torch.cat(slices))
    assert_close(torch.stack(losses).mean(), whole_loss.value)


def test_draws_differ_between_steps_turns_seeds_and_streams_and_repeat_otherwise():
    like = torch.zeros(4, 3)
    draws = [
        Step(number, seed, turn).randn(stream, like)
        for number, seed, turn, stream in itertools.product((0, 1, 11), (0, 1), (0, 1), ("noise", "latent"))
    ]
    for a, b in itertools.combinations(draws, 2):
        assert not torch.isclose(a, b).any()
    assert torch.equal(draws[0], Step(0).randn("noise", like))
    global_state = torch.get_rng_state()
    Step(0).rand("time", 8)
    assert torch.equal(torch.get_rng_state(), global_state)
    # the parts of a key are kept apart: (1, 11) differs from (11, 1), and (1, "a") from ("1a",)
    assert Step(1, 11).seed_of("a") != Step(11, 1).seed_of("a") != Step(1, 1).seed_of(1, "a")


def test_draws_have_the_shape_and_dtype_of_like():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert Step(0).randn("noise", torch.zeros(2, 3, 4, dtype=dtype)).dtype == dtype
    assert Step(0, shards=3, shard=2).randn("noise", torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    assert Step(0, shards=3, shard=2).rand("time", 5).shape == (5,)


# --- gradients and refusals -------------------------------------------------------------------------------------------


def test_the_loss_has_a_gradient_and_its_log_has_none():
    scale = nn.Parameter(torch.ones(()))
    network = Function(lambda x, timestep: x * scale)
    network.scale = scale
    loss, _ = loss_and_inputs(Denoising(StraightPath()), network, {"x": data(4).float()}, Step(0))
    (gradient,) = torch.autograd.grad(loss.value, [scale])
    assert gradient != 0 and not loss.logs["loss"].requires_grad
    assert torch.equal(loss.logs["loss"], loss.value.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "eps"}, r"prediction_type='eps' is not known.*epsilon"),
        ({"time_sampling": "sobol"}, r"time_sampling='sobol' is not known.*low_discrepancy"),
        ({"weighting": "snr"}, r"weighting='snr' is not known.*min_snr"),
        ({"label_dropout": 1.5}, r"label_dropout=1\.5 must be from 0 to 1"),
        ({"label_dropout": -0.1}, r"label_dropout=-0\.1 must be from 0 to 1"),
        ({"label_dropout": float("nan")}, r"label_dropout=nan must be finite, and from 0 to 1"),
        ({"logit_std": 0.0}, r"logit_std=0\.0"),
        ({"snr_gamma": -1.0}, r"snr_gamma=-1\.0"),
    ],
)
def test_choices_and_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Denoising(StraightPath(), **options)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_only_unbounded_pairs_are_refused_and_weights_make_them_possible(name, kind):
    path = PATHS[name]()
    if is_refused(name, kind):
        with pytest.raises(ValueError, match=r"weighting='simple'.*--weighting min_snr.*--prediction_type epsilon"):
            Denoising(path, kind)
    else:
        Denoising(path, kind)
    for weighting in ("min_snr", "sigmoid"):
        assert Denoising(path, kind, weighting=weighting).weight(path.snap(torch.rand(100).double())).isfinite().all()


def test_missing_labels_are_named():
    with pytest.raises(ValueError, match=r"no labels; name the column: --label_column"):
        loss_and_inputs(Denoising(StraightPath(), num_classes=3), zero, {"x": data(2)}, Step(0))


def test_a_table_of_one_step_can_be_trained_on():
    objective = Denoising(DiscretePath(torch.tensor([0.5])), "epsilon")
    assert torch.equal(objective.times(Step(0), 5), torch.ones(5, dtype=torch.float64))


def test_an_unknown_prediction_is_refused_when_the_objective_is_made():
    for weighting in ("simple", "min_snr", "sigmoid"):
        with pytest.raises(ValueError, match="prediction_type='noise'"):
            Denoising(StraightPath(), "noise", weighting=weighting)

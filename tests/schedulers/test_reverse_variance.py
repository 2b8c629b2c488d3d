"""Optimal reverse variances: closed forms on Gaussians, bounds, trajectories, what a scheduler does with them."""

import itertools
import math

import pytest
import torch

import hfgen
from hfgen import DDIMScheduler, DDPMScheduler
from hfgen.paths import path_from_config
from hfgen.registry import PATHS
from hfgen.schedulers.reverse_variance import (
    bounded,
    last_noise,
    measured_variances,
    measurement_times,
    optimal_trajectory,
    tabled_variance,
)
from hfgen.schedulers.table import posterior, scales
from tests.helpers.gaussian import F64, Gaussian, ideal_network, ideal_pipeline

KINDS = {
    "vp": ("epsilon", "sample", "v_prediction", "score"),
    "straight": ("flow_prediction", "sample"),
    "ve": ("epsilon",),
    "cosine": ("v_prediction",),
}
PAIRS = [(path, kind) for path, kinds in KINDS.items() for kind in kinds]


def exact_variance(path, t, std):
    """Var[x_0 | x_t] of data N(mean, std^2), by the precision of the two Gaussians."""
    alpha, sigma, _ = scales(path, t)
    return 1 / (1 / std**2 + (alpha / sigma) ** 2)


def table_of(path, kind, std, count=64):
    times = measurement_times(path, kind, count)
    share = lambda t: scales(path, t).sigma / (scales(path, t).sigma + scales(path, t).alpha)  # noqa: E731
    return [[share(t), exact_variance(path, t, std)] for t in times]


def scheduler_of(path, kind, std=0.4, cls=DDPMScheduler, **options):
    facts = {**PATHS[path], "prediction_type": kind}
    table = table_of(path_from_config(facts), kind, std)
    own = {"variance_type": "analytic", "data_variances": table, "clip_sample": False, **options}
    return cls.from_config({**facts, **own})


@pytest.mark.parametrize(("path", "kind"), PAIRS)
def test_measured_variances_are_the_posteriors_on_a_gaussian(path, kind):
    problem, scheduler = Gaussian(), DDPMScheduler.from_config({**PATHS[path], "prediction_type": kind})
    network = ideal_network(problem, scheduler, kind)
    generator = torch.Generator().manual_seed(0)
    for t in measurement_times(scheduler.path, kind, 7):
        x_0 = problem.mean + problem.std * torch.randn(2000, 16, generator=generator, dtype=F64)
        noise = torch.randn(2000, 16, generator=generator, dtype=F64)

        def predict(x, timestep, t=t):
            factor = float(scheduler.path.input_scale(torch.tensor(t, dtype=F64)))
            return network(x / factor, t)

        times = torch.full((len(x_0),), t, dtype=F64)
        for residual in (False, True):
            found = measured_variances(predict, scheduler.path, kind, x_0, noise, times, residual)
            error = float(found.std()) / math.sqrt(len(found))
            assert not residual or error < 0.01 * float(found.mean())
            assert float(found.mean()) == pytest.approx(exact_variance(scheduler.path, t, problem.std), abs=4 * error)


@pytest.mark.parametrize(("path", "kind"), PAIRS)
@pytest.mark.parametrize("steps", [3, 20])
def test_steps_have_the_variance_of_the_true_reverse_step_of_a_gaussian(path, kind, steps):
    std, scheduler = 0.4, scheduler_of(path, kind)
    for t, s in itertools.pairwise(scheduler.grid(steps)):
        now, then = scales(scheduler.path, t), scales(scheduler.path, s)
        if then.sigma == 0:
            continue
        a = now.alpha / then.alpha  # x_t = a x_s + noise of variance q
        q = now.sigma**2 - (a * then.sigma) ** 2
        prior = then.alpha**2 * std**2 + then.sigma**2
        assert scheduler.reverse_variance(t, s, exact=True) == pytest.approx(1 / (1 / prior + a * a / q), rel=1e-2)


def test_ddim_draws_what_is_left_of_the_posterior_at_every_eta():
    """A chain with the optimal variance of eta keeps all marginals of a Gaussian, and of none other."""
    std, mean = 0.4, 0.6
    for eta in (0.0, 0.5, 1.0):
        scheduler = scheduler_of("vp", "epsilon", cls=DDIMScheduler, optimal_variance=True)
        scheduler._eta = eta
        scheduler.set_timesteps(8)
        point = scales(scheduler.path, scheduler._times[0])
        centre, variance = point.alpha * mean, point.alpha**2 * std**2 + point.sigma**2
        for row, (t, s) in zip(
            [stage.row for stage in scheduler._stages], itertools.pairwise(scheduler._times), strict=True
        ):
            now, then = scales(scheduler.path, t), scales(scheduler.path, s)
            gain = now.alpha * std**2 / (now.alpha**2 * std**2 + now.sigma**2)
            slope = row.next.keep + row.next.gains[0] * gain
            centre = row.next.keep * centre + row.next.gains[0] * (mean + gain * (centre - now.alpha * mean))
            variance = slope**2 * variance + row.noise**2
            if then.sigma > 0:
                assert centre == pytest.approx(then.alpha * mean, abs=1e-9)
                assert variance == pytest.approx(then.alpha**2 * std**2 + then.sigma**2, rel=1e-3), (eta, t)


def test_no_other_variance_has_a_smaller_divergence_from_the_true_step():
    std = 0.4
    schedulers = {kind: DDPMScheduler(variance_type=kind, clip_sample=False) for kind in ("fixed_small", "fixed_large")}
    schedulers["analytic"], totals = scheduler_of("vp", "epsilon", std), {}
    for t, s in itertools.pairwise(schedulers["analytic"].grid(10)):
        now, then = scales(schedulers["analytic"].path, t), scales(schedulers["analytic"].path, s)
        if then.sigma == 0:
            continue
        a = now.alpha / then.alpha
        true = 1 / (1 / (then.alpha**2 * std**2 + then.sigma**2) + a * a / (now.sigma**2 - (a * then.sigma) ** 2))
        divergence = {}
        for kind, scheduler in schedulers.items():
            ratio = true / scheduler.reverse_variance(t, s, exact=True)
            divergence[kind] = (ratio - 1 - math.log(ratio)) / 2
            totals[kind] = totals.get(kind, 0) + divergence[kind]
        assert divergence["analytic"] <= min(divergence.values()) + 1e-5
    assert totals["analytic"] < 1e-3 * min(totals["fixed_small"], totals["fixed_large"])


def test_values_keep_the_bounds_whatever_the_table_says():
    for value in (-1.0, 0.0, 0.3, 1e9):
        table = [[0.01, max(value, 0.0)], [0.5, max(value, 0.0)], [1.0, max(value, 0.0)]]
        scheduler = DDPMScheduler(variance_type="analytic", data_variances=table, clip_sample_range=0.5)
        for t, s in itertools.pairwise(scheduler.grid(25)):
            now, then = scales(scheduler.path, t), scales(scheduler.path, s)
            _, gain, small, large = posterior(now, then)
            v = scheduler.reverse_variance(t, s, exact=True)
            assert small * (1 - 1e-9) <= v <= large * (then.alpha / now.alpha) ** 2 * (1 + 1e-9)
            assert v <= small + gain**2 * 0.25 + 1e-12
        assert bounded(value, scales(scheduler.path, 0.5), None) >= 0


def test_a_table_is_read_between_and_beyond_its_entries():
    path = path_from_config(PATHS["straight"])
    table = [[0.1, 0.01], [0.4, 0.16]]  # V = s^2
    for s in (0.001, 0.05, 0.1, 0.25, 0.4):
        assert tabled_variance(table, scales(path, s)) == pytest.approx(s * s)
    for s in (0.41, 0.9, 1.0):
        assert tabled_variance(table, scales(path, s)) == pytest.approx(0.16)
    assert tabled_variance([[0.3, 0.09]], scales(path, 0.3)) == pytest.approx(0.09)


def test_noise_of_the_last_step_is_clipped_where_it_stays():
    table = [[0.005, 1.0], [1.0, 1.0]]
    for spacing, stays in (("linspace", True), ("trailing", False)):
        scheduler = DDPMScheduler(variance_type="analytic", data_variances=table, timestep_spacing=spacing)
        scheduler.set_timesteps(10)
        t, s = scheduler._times[-3:-1]
        free = math.sqrt(scheduler.reverse_variance(t, s))
        assert free > last_noise() and last_noise() * math.sqrt(2 / math.pi) == pytest.approx(4 / 255)
        assert scheduler._stages[-2].row.noise == pytest.approx(last_noise() if stays else free)
        assert scheduler._stages[-1].row.noise == 0


def brute(points, values, count):
    """The least cost over all choices of times, each step by its own formula."""

    def cost(i, j):
        _, gain, small, _ = posterior(points[i], points[j])
        return math.log(1 + gain**2 * values[i] / small) / 2

    inner = itertools.combinations(range(1, len(points) - 1), count - 2)
    chains = [(0, *middle, len(points) - 1) for middle in inner]
    return min((sum(cost(b, a) for a, b in itertools.pairwise(chain)), chain) for chain in chains)


@pytest.mark.parametrize("count", [2, 3, 4, 6, 9])
def test_the_optimal_trajectory_is_the_best_of_all(count):
    path = path_from_config(PATHS["vp"])
    times = [0.001, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0]
    points = [scales(path, t) for t in times]
    values = [exact_variance(path, t, 0.3) for t in times]
    assert optimal_trajectory(points, values, count) == list(brute(points, values, count)[1])
    assert optimal_trajectory(points, values, 1) == [8]


def test_an_optimal_trajectory_lowers_the_bound_and_starts_and_ends_as_the_paper_says():
    scheduler = scheduler_of("vp", "epsilon", 0.2, trajectory="optimal")
    even = scheduler_of("vp", "epsilon", 0.2, timestep_spacing="linspace")

    def cost(times):
        return sum(
            math.log(scheduler.reverse_variance(t, s, exact=True) / posterior(now, then)[2])
            for (t, s), (now, then) in zip(
                itertools.pairwise(times[:-1]),
                itertools.pairwise([scales(scheduler.path, t) for t in times[:-1]]),
                strict=True,
            )
        )

    for steps in (2, 5, 20):
        times = scheduler.grid(steps)
        assert len(times) == steps + 1 and times[0] == 1.0 and times[-2] == 0.001 and times[-1] == 0
        assert cost(times) <= cost(even.grid(steps)) + 1e-9
    assert cost(scheduler.grid(5)) < cost(even.grid(5))
    assert scheduler.grid(1) == [1.0, 0.0]
    assert scheduler.grid(1000) == DDPMScheduler().grid(1000)
    straight = scheduler_of("straight", "flow_prediction", trajectory="optimal")
    assert straight.grid(7)[0] == straight.start_time and len(set(straight.grid(7))) == 8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variance_type": "analytic"}, r"variance_type='analytic' needs data_variances.*hfgen calibrate"),
        ({"trajectory": "optimal"}, r"trajectory='optimal' needs data_variances"),
        ({"trajectory": "even"}, r"trajectory='even' is not known"),
        ({"data_variances": [[0.5, 1.0], [0.4, 1.0]]}, "s rising"),
        ({"data_variances": [[0.5, -1.0]]}, "at least 0"),
        ({"data_variances": [[0.5, math.nan]]}, "at least 0"),
        ({"data_variances": [[0.5]]}, "pairs"),
        ({"data_variances": []}, "pairs"),
        ({"data_variances": {"a": 1}}, "pairs"),
        ({"data_variances": [[0.5, "1"]]}, "pairs"),
        ({"data_variances": [[1.5, 1.0]]}, r"\(0, 1\]"),
    ],
)
def test_what_is_no_table_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        DDPMScheduler(**options)


def test_ddim_refuses_an_optimal_variance_that_nothing_states():
    for options in ({}, {"variance_type": "fixed_small"}, {"variance_type": "analytic"}):
        with pytest.raises(ValueError, match="optimal_variance=True needs a variance that was measured"):
            DDIMScheduler(optimal_variance=True, **options)


def test_a_measured_variance_belongs_to_the_network():
    pipeline = ideal_pipeline(Gaussian(), "vp", "epsilon", clip_sample=False)
    table = table_of(pipeline.scheduler.path, "epsilon", 0.4, 8)
    pipeline.use_scheduler("dpmsolver++")
    pipeline._state_variance("analytic", table)
    assert isinstance(pipeline.scheduler, hfgen.DPMSolverPlusPlusScheduler)
    for name in ("ddpm", "ddim", "heun", "ddpm"):
        pipeline.use_scheduler(name)
        assert pipeline.scheduler.config["data_variances"] == table
        assert pipeline.scheduler.config["variance_type"] == "analytic"
    noise = [row.noise for row in pipeline.scheduler.plan(pipeline.scheduler.grid(10))]
    pipeline.use_scheduler("ddpm", variance_type="fixed_small")
    assert [row.noise for row in pipeline.scheduler.plan(pipeline.scheduler.grid(10))] < noise
    pipeline.use_scheduler("ddim")
    assert all(row.noise == 0 for row in pipeline.scheduler.plan(pipeline.scheduler.grid(10)))
    pipeline.use_scheduler("ddim", optimal_variance=True)
    assert any(row.noise > 0 for row in pipeline.scheduler.plan(pipeline.scheduler.grid(10)))


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npr", "sn", "ocm"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_heads_of_a_gaussian_draw_with_the_true_variance(kind, prediction):
    """What the perfect head says of N(0.6, 0.4^2), and the steps that follow from it."""
    problem = Gaussian()
    scheduler = DDPMScheduler(prediction_type=prediction, variance_type=kind, clip_sample=False)
    exact, network = scheduler_of("vp", prediction), ideal_network(problem, scheduler, prediction)
    x = torch.randn(64, 1, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(10)
    for t, s in list(itertools.pairwise(scheduler._times))[:-1]:
        output = network(x, t)
        point = scheduler.path(torch.tensor(t, dtype=F64))
        b = {"epsilon": -point.sigma / point.alpha, "v_prediction": -point.sigma, "sample": 1.0}[prediction]
        h = exact_variance(scheduler.path, t, problem.std) / float(b) ** 2
        raw = output.square() + h if kind == "sn" else torch.full_like(output, h)
        found = scheduler.reverse_variance(t, s, output, raw)
        wanted = torch.full_like(found, exact.reverse_variance(t, s))
        torch.testing.assert_close(found, wanted, rtol=5e-3, atol=0.0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_a_head_and_the_noise_of_eta_are_two_parts_of_the_variance(eta):
    """eta^2 times the posterior's own variance, and what x_0 leaves; both by the conditional of a joint Gaussian."""
    scheduler = DDIMScheduler(optimal_variance=True, variance_type="npr", clip_sample=False)
    scheduler.set_timesteps(6)
    t, s = scheduler._times[2:4]
    now, then = scales(scheduler.path, t), scales(scheduler.path, s)
    left = 0.07  # Var[x_0 | x_t]; that of eps is (alpha / sigma)^2 times it
    raw = torch.full((1, 1, 2, 2), (now.alpha / now.sigma) ** 2 * left)
    x, output = torch.zeros(1, 1, 2, 2), torch.cat([torch.zeros(1, 1, 2, 2), raw], 1)
    ends = [
        scheduler.step(output, scheduler.timesteps[2], x, eta=eta, variance_noise=torch.full_like(x, noise)).prev_sample
        for noise in (0.0, 1.0)
    ]
    # x_t = a x_s + b z given x_0: the variance of x_s, when x_t is known, too.
    a, b2 = now.alpha / then.alpha, now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    own = eta**2 / (1 / then.sigma**2 + a**2 / b2)
    gain = then.alpha - math.sqrt(then.sigma**2 - own) * now.alpha / now.sigma
    expected = torch.full_like(x, math.sqrt(own + gain**2 * left))
    torch.testing.assert_close(ends[1] - ends[0], expected, rtol=1e-4, atol=0)


def test_a_head_needs_its_channels_and_a_step_uses_them():
    scheduler = DDPMScheduler(variance_type="npr", clip_sample=False)
    scheduler.set_timesteps(4)
    x, eps = (torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    with pytest.raises(ValueError, match=r"network with 2 output channels, not 1.*hfgen calibrate FOLDER --kind"):
        scheduler.step(eps, scheduler.timesteps[0], x)
    for cls, options in ((DDPMScheduler, {}), (DDIMScheduler, {"optimal_variance": True})):
        scheduler = cls(variance_type="npr", clip_sample=False, **options)
        scheduler.set_timesteps(4)
        assert scheduler.needs_head
        t, drawn = scheduler.timesteps[1], []
        for h in (0.0, 0.5):
            output = torch.cat([eps, torch.full_like(eps, h)], 1)
            drawn.append(scheduler.step(output, t, x, generator=torch.Generator().manual_seed(5)).prev_sample)
        assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    assert not DDIMScheduler(variance_type="npr").needs_head


def test_optimal_trajectories_exist_wherever_a_prediction_starts():
    """On the straight path eps does not determine the data in pure noise: the first time is before it, and one less."""
    for steps, kind, count in ((1000, "epsilon", 999), (1000, "sample", 1000), (2500, "sample", 1000)):
        options = {"path": "straight", "prediction_type": kind, "data_variances": [[0.01, 1e-4], [1.0, 0.2]]}
        scheduler = DDPMScheduler(steps, variance_type="analytic", trajectory="optimal", **options)
        assert len(scheduler.timesteps) == count
        scheduler.set_timesteps()
        assert scheduler.num_inference_steps == count
        scheduler.set_timesteps(7)
        assert len(scheduler.timesteps) == 7

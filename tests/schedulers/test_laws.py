"""Laws of the solvers, on problems whose score is known."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

from hfgen.schedulers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverPlusPlusScheduler,
    RectifiedFlowScheduler,
    ScoreSDEScheduler,
)
from hfgen.schedulers.exponential import phi
from hfgen.schedulers.table import posterior, scales
from tests.helpers.gaussian import F64, Gaussian, Mixture, ideal_network, run, start

Z = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
FLOW = {"path": "straight", "prediction_type": "flow_prediction"}


def rmse(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def final(scheduler, steps, problem=None, x=Z, **options):
    scheduler.set_timesteps(steps)
    return run(scheduler, problem or Mixture(), x, **options)


def orders(make, counts, reference):
    errors = [rmse(final(make(), n), reference) for n in counts]
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.fixture(scope="module")
def flow_end():
    return final(RectifiedFlowScheduler(solver_type="predictor_corrector"), 800)


@pytest.fixture(scope="module")
def lambda_end():
    options = {"path": "linear_vp", "grid_type": "lambda", "final_sigmas_type": "sigma_min"}
    return final(DPMSolverPlusPlusScheduler(**options), 3000)


@pytest.mark.parametrize(
    ("solver", "order", "counts"),
    [
        ("euler", 1, (40, 80)),
        ("adams_bashforth2", 2, (40, 80)),
        ("midpoint", 2, (40, 80)),
        ("heun", 2, (160, 320)),
        ("predictor_corrector", 3, (40, 80)),
    ],
)
def test_order_of_convergence_in_straight_coordinates(solver, order, counts, flow_end):
    rate = orders(lambda: RectifiedFlowScheduler(solver_type=solver), counts, flow_end)[0]
    assert abs(rate - order) < 0.2


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence_of_the_default(order, flow_end):
    rate = orders(lambda: DPMSolverPlusPlusScheduler(solver_order=order, **FLOW), (40, 80), flow_end)[0]
    assert abs(rate - order) < 0.2


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize(
    ("method", "order", "solver_type", "nominal"),
    [
        ("multistep", 1, "midpoint", 1),
        ("multistep", 2, "midpoint", 2),
        ("multistep", 2, "heun", 2),
        ("multistep", 3, "midpoint", 2),  # as published; see `hfgen.schedulers.exponential.multistep`
        ("multistep", 3, "heun", 3),
        ("singlestep", 2, "midpoint", 2),
        ("singlestep", 2, "heun", 2),
        ("singlestep", 3, "midpoint", 3),
        ("singlestep", 3, "heun", 3),
    ],
)
def test_order_of_convergence_in_lambda(algorithm, method, order, solver_type, nominal, lambda_end):
    options = {"path": "linear_vp", "grid_type": "lambda", "final_sigmas_type": "sigma_min", "lower_order_final": False}
    solver = {"algorithm_type": algorithm, "method": method, "solver_order": order, "solver_type": solver_type}
    counts = (240, 480)
    rate = orders(lambda: DPMSolverPlusPlusScheduler(**options, **solver), counts, lambda_end)[0]
    assert abs(rate - nominal) < 0.2


@pytest.mark.parametrize("path", ["discrete", "linear_vp", "cosine_vp", "straight", "ve"])
def test_order_one_is_ddim(path):
    options = {"path": path, "prediction_type": "v_prediction"}
    times = [950, 700, 400, 150, 20]
    results = []
    for scheduler in (
        DDIMScheduler(**options),
        RectifiedFlowScheduler(solver_type="euler", **options),
        *(DPMSolverPlusPlusScheduler(solver_order=1, method=method, **options)
          for method in ("predictor_corrector", "multistep", "singlestep")),
        DPMSolverPlusPlusScheduler(solver_order=1, algorithm_type="dpmsolver", **options),
    ):  # fmt: skip
        scheduler.set_timesteps(timesteps=times if path == "discrete" else [float(t) for t in times])
        results.append(run(scheduler, Mixture(), Z))
        torch.testing.assert_close(results[-1], results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["linear_vp", "cosine_vp", "straight", "ve"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_mean_and_variance_of_a_point(path, eta):
    """Data at one point: each step takes N(alpha_t x_0, sigma_t^2) to N(alpha_s x_0, sigma_s^2)."""
    scheduler = DDIMScheduler(path=path, prediction_type="v_prediction")
    scheduler.set_timesteps(12)
    scheduler._eta = eta
    for row, t, s in zip(scheduler.plan(scheduler._times), scheduler._times, scheduler._times[1:], strict=False):
        now, then = scales(scheduler.path, t), scales(scheduler.path, s)
        assert row.next.keep * now.alpha + row.next.gains[0] == pytest.approx(then.alpha, abs=1e-9)
        assert (row.next.keep * now.sigma) ** 2 + row.noise**2 == pytest.approx(then.sigma**2, abs=1e-9)


def test_eta_one_is_ddpm():
    ddim, ddpm = DDIMScheduler(), DDPMScheduler(clip_sample=False)
    for scheduler in (ddim, ddpm):
        scheduler.set_timesteps(50)
    x, output = torch.randn(2, 2, 3, 4, 4, dtype=F64).unbind(0)
    for t in ddim.timesteps[[0, 20, -1]]:
        a = ddim.step(output, t, x, eta=1.0, generator=torch.Generator().manual_seed(0)).prev_sample
        b = ddpm.step(output, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_posterior_is_bayes():
    """q(x_s | x_t, x_0) from the joint Gaussian of (x_s, x_t) given x_0."""
    path = DDPMScheduler(path="straight").path
    now, then = scales(path, 0.7), scales(path, 0.4)
    keep, gain, small, large = posterior(now, then)
    a = now.alpha / then.alpha
    covariance = a * then.sigma**2
    assert keep == pytest.approx(covariance / now.sigma**2)
    assert small == pytest.approx(then.sigma**2 - covariance**2 / now.sigma**2)
    assert gain == pytest.approx(then.alpha - keep * now.alpha)
    assert large == pytest.approx(now.sigma**2 - a**2 * then.sigma**2)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: DDPMScheduler(path=path, clip_sample=False),
        lambda path: DDIMScheduler(path=path),
        lambda path: DPMSolverPlusPlusScheduler(path=path),
        lambda path: DPMSolverPlusPlusScheduler(path=path, algorithm_type="sde-dpmsolver++", solver_order=2),
        lambda path: ScoreSDEScheduler(path=path),
        lambda path: ScoreSDEScheduler(path=path, corrector_steps=1),
    ],
)
@pytest.mark.parametrize("path", ["linear_vp", "ve"])
def test_sde_and_ode_have_the_same_marginals(make, path):
    problem, scheduler = Gaussian(), make(path)
    scheduler.set_timesteps(300)
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=F64)
    x = run(scheduler, problem, start(scheduler, problem, z), generator=torch.Generator().manual_seed(2))
    assert float(x.mean()) == pytest.approx(problem.mean, abs=0.015)
    assert float(x.std()) == pytest.approx(problem.std, abs=0.015)


def test_the_flow_of_a_gaussian_is_its_own():
    for path in ("discrete", "linear_vp", "cosine_vp", "straight", "ve"):
        problem, scheduler = Gaussian(), DPMSolverPlusPlusScheduler(path=path, prediction_type="v_prediction")
        scheduler.set_timesteps(50)
        x = run(scheduler, problem, start(scheduler, problem, Z))
        torch.testing.assert_close(x, problem.at(Z, 1.0, 0.0), rtol=0, atol=1e-3)


COUNTS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 400, 501, 700, 999)


@pytest.mark.parametrize(
    "make",
    [
        DPMSolverPlusPlusScheduler,
        lambda: RectifiedFlowScheduler(path="discrete", prediction_type="epsilon"),
        lambda: DPMSolverPlusPlusScheduler(timestep_spacing="trailing"),
        lambda: DDIMScheduler(timestep_spacing="trailing"),
        lambda: DDIMScheduler(timestep_spacing="leading"),
        lambda: DDIMScheduler(timestep_spacing="linspace"),
    ],
)
def test_more_steps_are_never_worse(make):
    """For counts that divide 1000 and counts that do not. Evaluations at integer steps only leave an error of 3e-4."""
    reference = final(RectifiedFlowScheduler(path="discrete", prediction_type="epsilon"), 1000)
    errors = [rmse(final(make(), n), reference) for n in COUNTS]
    for few, many in pairwise(errors):
        assert many < max(few, 3e-4), errors


def test_diffusers_ddim_is_worse_with_501_steps_and_ours_is_not():
    reference = final(DDIMScheduler(), 1000)
    ours = rmse(final(DDIMScheduler(timestep_spacing="leading"), 501), reference)
    theirs = diffusers.DDIMScheduler(clip_sample=False)
    theirs.set_timesteps(501)
    x, predict = Z, ideal_network(Mixture(), DDIMScheduler(), "epsilon")
    for t in theirs.timesteps:
        x = theirs.step(predict(x, float(t + 1) / 1000), t, x).prev_sample
    assert ours < 5e-3 and rmse(x, reference) > 0.03


def test_two_steps_beat_one_on_the_straight_path(flow_end):
    for solver in ("euler", "adams_bashforth2", "midpoint", "heun", "predictor_corrector"):
        one, two = (rmse(final(RectifiedFlowScheduler(solver_type=solver), n), flow_end) for n in (1, 2))
        assert two < 0.75 * one
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(4)
    steps = -torch.tensor(scheduler._times, dtype=F64).diff()
    assert steps.min() > 0.4 * steps.max()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim_inversion(kind):
    problem = Mixture(std=0.4)
    x = problem.means + 0.4 * torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=F64)

    def there_and_back(**options):
        backward, noise = DDIMInverseScheduler(prediction_type=kind, **options), x
        backward.set_timesteps(50)
        assert (backward.timesteps.diff() > 0).all()
        predict = ideal_network(problem, backward, kind)
        for t in backward.timesteps:
            noise = backward.step(predict(noise, float(backward.path.time_of(t.double()))), t, noise).prev_sample
        return rmse(final(DDIMScheduler(prediction_type=kind), 50, problem, noise), x)

    error = there_and_back()
    if kind == "sample":  # does not determine eps in clean data
        assert error < 0.1
    else:
        assert error < 1e-2 and error < 0.2 * there_and_back(corrector=False)


def test_phi_functions():
    for k in (1, 2, 3):
        for z in (-3.0, -0.5, 0.0, 1e-9, 0.7, 2.0):
            u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
            value = (torch.exp(z * (1 - u)) * u ** (k - 1) / math.factorial(k - 1)).mean()
            assert phi(k, z) == pytest.approx(float(value), rel=1e-8)


def test_the_default_beats_diffusers_default():
    """The accuracy that `benchmarks/solver_accuracy.py` measures, on a small problem."""
    problem = Mixture(dim=16, std=0.3)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0), dtype=F64)
    reference = final(RectifiedFlowScheduler(path="discrete", prediction_type="epsilon"), 1000, problem, x)
    predict = ideal_network(problem, DDIMScheduler(), "epsilon")
    for steps, share in ((5, 1.0), (10, 0.7), (20, 0.25)):
        theirs, y = diffusers.DPMSolverMultistepScheduler(), x
        theirs.set_timesteps(steps)
        for t in theirs.timesteps:
            y = theirs.step(predict(y, float(t + 1) / 1000), t, y).prev_sample.double()
        ours = final(DPMSolverPlusPlusScheduler(), steps, problem, x)
        assert rmse(ours, reference) <= share * rmse(y, reference)

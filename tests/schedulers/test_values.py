"""Single steps against values that are not computed as the schedulers compute them: closed forms, NumPy, diffusers."""

import math

import diffusers
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hfgen.schedulers import DDIMScheduler, DDPMScheduler, DPMSolverPlusPlusScheduler, ScoreSDEScheduler
from hfgen.schedulers.configuration import default_options
from hfgen.schedulers.thresholding import dynamic_threshold
from tests.helpers.gaussian import F64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def same_step(ours, theirs, output, x, steps=20, **options):
    """Assert that every second step of a grid is that of diffusers, from the same samples."""
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    for t in theirs.timesteps[::2]:
        expected, actual = (s.step(output, t, x, generator=seeded(), **options).prev_sample for s in (theirs, ours))
        assert_close(actual, expected.to(actual), rtol=0, atol=2e-5)


# --- ends of the way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"path": "straight", "method": "multistep"}, 0.999),  # lambda is infinite where alpha is 0
        ({"path": "straight", "method": "singlestep"}, 0.999),
        ({"path": "straight"}, 1.0),
        ({"path": "straight", "prediction_type": "epsilon"}, 0.999),
        ({"path": "straight", "method": "multistep", "algorithm_type": "dpmsolver"}, 0.995),  # alpha = 0.005
        ({"method": "multistep", "algorithm_type": "dpmsolver"}, 1.0),  # alpha = 0.0063 at the end of DDPM's table
    ],
)
def test_sampling_starts_as_late_as_its_method_can(options, start):
    options = {"prediction_type": "flow_prediction" if options.get("path") else "epsilon", **options}
    scheduler = DPMSolverPlusPlusScheduler(**options)
    assert scheduler.start_time == pytest.approx(start, abs=1e-9)
    if scheduler.config.method != "predictor_corrector":
        for grid in ("lambda", "karras"):
            levels = DPMSolverPlusPlusScheduler(**options, grid_type=grid)
            assert levels.grid(10)[0] == pytest.approx(start, abs=1e-3)


@pytest.mark.parametrize("value", [0, -0.5, math.inf, math.nan])
@pytest.mark.parametrize("name", ["sample_max_value", "clip_sample_range", "dynamic_thresholding_ratio"])
def test_limits_of_the_estimate_are_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be above 0"):
        DDIMScheduler(**{name: value})
    with pytest.raises(ValueError, match="ratio at most 1"):
        DDIMScheduler(dynamic_thresholding_ratio=1.0001)
    DDIMScheduler(dynamic_thresholding_ratio=1.0)


# --- shares of noise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.2, 0.5, 0.8])
def test_a_share_of_the_ancestral_noise_is_that_of_diffusers(eta):
    theirs = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    x, output = normal(2, 3, 4, 4, dtype=torch.float32), normal(2, 3, 4, 4, seed=1, dtype=torch.float32)
    same_step(DDIMScheduler.from_config(theirs.config), theirs, output, x, eta=eta)


@pytest.mark.parametrize("path", ["straight", "linear_vp", "ve"])
def test_the_noise_of_ddim_is_a_share_of_the_deviation_of_bayes_posterior(path):
    """The deviation of x_s given x_t and x_0 is that of the residual of a regression of x_s on x_t."""
    scheduler = DDIMScheduler(path=path, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    x = normal(1, 1000)
    for index in (1, 4, 8):
        t, s = (float(scheduler.timesteps[i]) / 1000 for i in (index, index + 1))
        scales = {
            "straight": lambda t: (1 - t, t),
            "linear_vp": lambda t: (math.exp(-t * (19.9 * t / 4 + 0.05)), 0.0),
            "ve": lambda t: (1.0, 0.01 * 5000**t),
        }[path]
        (alpha, sigma), (alpha_s, sigma_s) = scales(t), scales(s)
        if path == "linear_vp":
            sigma, sigma_s = math.sqrt(1 - alpha**2), math.sqrt(1 - alpha_s**2)
        slope = alpha / alpha_s  # x_t = slope x_s + independent noise, given x_0
        joint = np.array([[sigma_s**2, slope * sigma_s**2], [slope * sigma_s**2, sigma**2]])
        deviation = math.sqrt(np.linalg.det(joint) / joint[1, 1])
        for eta in (0.0, 0.3, 0.7):
            with_noise, without = (
                scheduler.step(x, scheduler.timesteps[index], x, eta=eta, variance_noise=z).prev_sample
                for z in (torch.ones_like(x), torch.zeros_like(x))
            )
            assert_close(with_noise - without, torch.full_like(x, eta * deviation), rtol=1e-6, atol=1e-9)


# --- learned variances ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variances_are_diffusers_whatever_the_network_says(kind):
    theirs = diffusers.DDPMScheduler(variance_type=kind, clip_sample=False, timestep_spacing="leading")
    ours = DDPMScheduler.from_config(theirs.config)
    x, mean = normal(4, 3, 4, 4, dtype=torch.float32), normal(4, 3, 4, 4, seed=1, dtype=torch.float32)
    raw = torch.rand(4, 3, 4, 4, generator=seeded()) * (2 if kind == "learned_range" else 0.01)
    raw = raw - 1 if kind == "learned_range" else raw
    same_step(ours, theirs, torch.cat([mean, raw], 1), x, steps=10)


def test_a_learned_range_reaches_from_the_posterior_to_the_step_geometrically():
    """raw = -1 is the variance of q(x_s | x_t, x_0), 1 that of q(x_t | x_s), 0 their geometric mean."""
    scheduler = DDPMScheduler(variance_type="learned_range", path="straight", prediction_type="sample")
    scheduler.set_timesteps(10)
    t, s = 0.6, 0.5
    large = t**2 - ((1 - t) / (1 - s) * s) ** 2
    small = s**2 * large / t**2
    x, output = normal(1, 1, 4, 4, dtype=torch.float32), torch.zeros(1, 1, 4, 4)
    steps = []
    for raw in (-1.0, -0.5, 0.0, 0.5, 1.0):
        both = torch.cat([output, torch.full_like(output, raw)], 1)
        steps.append(scheduler.step(both, 600.0, x, generator=seeded()).prev_sample)
    quiet = DDPMScheduler(path="straight", prediction_type="sample")
    quiet.set_timesteps(10)
    fixed = quiet.step(output, 600.0, x, generator=seeded()).prev_sample
    assert_close(steps[0], fixed, rtol=0, atol=1e-6)
    keep = (1 - t) / (1 - s) * s**2 / t**2
    noise = [(step - keep * x).square().mean().sqrt().item() for step in steps]
    for share, value in zip((0.0, 0.25, 0.5, 0.75, 1.0), noise, strict=True):
        assert value / noise[0] == pytest.approx((large / small) ** (share / 2), rel=1e-5)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 50), (3, 2, 5, 5)])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.995])
def test_a_dynamic_threshold_is_of_each_sample(shape, ratio):
    x = normal(*shape) * torch.tensor([0.2, 1.5, 6.0], dtype=F64).reshape(-1, *[1] * (len(shape) - 1))
    limited = dynamic_threshold(x, ratio, 4.0).numpy()
    for row, result in zip(x.numpy(), limited, strict=True):
        s = min(max(np.quantile(np.abs(row), ratio), 1.0), 4.0)
        np.testing.assert_allclose(result, np.clip(row, -s, s) / s, rtol=1e-12)
    assert abs(limited[0]).max() < 0.9 and abs(limited[2]).max() == 1  # small samples stay, large ones are scaled


def test_a_threshold_below_one_is_the_largest_value():
    x = torch.tensor([[0.1, -0.3, 0.9]], dtype=F64)
    assert_close(dynamic_threshold(x, 0.5, 0.5), torch.tensor([[0.2, -0.6, 1.0]], dtype=F64))


# --- the reverse SDE --------------------------------------------------------------------------------------------------


def two_noises(scheduler, output, t, x, index):
    """Return the same step with the noise of two seeds, and both noises."""
    results = []
    for seed in (1, 2):
        scheduler.set_timesteps(10)
        scheduler._step_index = index
        results.append(scheduler.step(output, t, x, generator=seeded(seed)).prev_sample)
    return results, [torch.randn(x.shape, generator=seeded(seed), dtype=x.dtype) for seed in (1, 2)]


@pytest.mark.parametrize("snr", [0.05, 0.16, 0.4])
def test_a_langevin_step_is_the_papers(snr):
    """x + a score + sqrt(2 a) z with a = 2 (snr |z| / |score|)^2, where |z| = sqrt(d) and |score| = sqrt(d) / sigma."""
    scheduler = ScoreSDEScheduler(path="ve", corrector_steps=1, snr=snr)
    scheduler.set_timesteps(10)
    index = 7  # an odd one: the second evaluation of a step
    t = scheduler.timesteps[index]
    sigma = 0.01 * 5000 ** (float(t) / 1000)
    x, eps = normal(1, 20), normal(1, 20, seed=3)
    step, score = 2 * (snr * math.sqrt(20) / (math.sqrt(20) / sigma)) ** 2, -eps / sigma
    results, noises = two_noises(scheduler, eps, t, x, index)
    for result, z in zip(results, noises, strict=True):
        assert_close(result, x + step * score + math.sqrt(2 * step) * z, rtol=1e-5, atol=1e-5 * sigma)


def test_langevin_steps_alone_keep_the_distribution():
    """Many small steps at one noise level leave N(0, s^2) as it is: the score pulls as much as the noise spreads."""
    scheduler = ScoreSDEScheduler(path="ve", corrector_steps=1, snr=0.1)
    scheduler.set_timesteps(10)
    row = scheduler._stages[7].row if scheduler._stages else scheduler.plan(scheduler._times)[7]
    sigma, (keep, (gain,)), noise = 0.01 * 5000**row.t, row.next, row.noise
    shrink = keep + gain / sigma  # x_0 = 0: the network's eps is x / sigma
    stationary = noise / math.sqrt(1 - shrink**2)
    assert stationary == pytest.approx(sigma, rel=0.02)
    assert 1 - shrink == pytest.approx(2 * 0.1**2)


@pytest.mark.parametrize("path", ["ve", "linear_vp"])
def test_euler_maruyama_has_the_published_coefficients(path):
    """VE: f = 0, g^2 = d(sigma^2)/dt. VP: f = -beta/2, g^2 = beta, beta = 0.1 + 19.9 t."""
    scheduler = ScoreSDEScheduler(path=path)
    scheduler.set_timesteps(10)
    index = 4
    t, s = (float(value) / 1000 for value in scheduler.timesteps[[index, index + 1]])
    if path == "ve":
        sigma = 0.01 * 5000**t
        f, g2 = 0.0, 2 * math.log(5000) * sigma**2
    else:
        beta = 0.1 + 19.9 * t
        sigma = math.sqrt(1 - math.exp(-19.9 * t**2 / 2 - 0.1 * t))
        f, g2 = -beta / 2, beta
    x, eps = normal(1, 20), normal(1, 20, seed=3)
    results, noises = two_noises(scheduler, eps, scheduler.timesteps[index], x, index)
    for result, z in zip(results, noises, strict=True):
        expected = x + (f * x + g2 * eps / sigma) * (s - t) + math.sqrt(g2 * (t - s)) * z
        assert_close(result, expected, rtol=1e-4, atol=1e-4 * sigma)


@pytest.mark.parametrize("t", [900.0, 400.0])
def test_the_last_step_of_the_sde_is_the_estimate_of_clean_data(t):
    """x_0 = (x - sigma eps) / alpha, from any noise."""
    scheduler = ScoreSDEScheduler(path="linear_vp")
    scheduler.set_timesteps(timesteps=[t])
    alpha = math.exp(-(19.9 * (t / 1000) ** 2 / 4 + 0.05 * t / 1000))
    x, eps = normal(1, 20), normal(1, 20, seed=3)
    expected = (x - math.sqrt(1 - alpha**2) * eps) / alpha
    assert_close(scheduler.step(eps, t, x, generator=seeded()).prev_sample, expected, rtol=1e-9, atol=1e-9)


# --- starts and arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["predictor_corrector", "multistep"])
@pytest.mark.parametrize("least", [-1.5, -3.0])
def test_sampling_may_start_at_a_least_lambda(least, method):
    """lambda = log(alpha / sigma) of the linear VP path; on a table the first entry that is not below."""
    options = {"lambda_min_clipped": least, "method": method, "grid_type": "lambda"}
    scheduler = DPMSolverPlusPlusScheduler(path="linear_vp", **options)
    scheduler.set_timesteps(5)
    t = float(scheduler.timesteps[0]) / 1000
    log_alpha = -(19.9 * t**2 / 4 + 0.05 * t)
    assert log_alpha - math.log(math.sqrt(1 - math.exp(2 * log_alpha))) == pytest.approx(least, abs=1e-4)
    theirs = diffusers.DPMSolverMultistepScheduler(lambda_min_clipped=least)
    table = DPMSolverPlusPlusScheduler(**options)
    table.set_timesteps(5)
    first = int(table.timesteps[0])
    assert theirs.lambda_t[first] >= least > theirs.lambda_t[first + 1]


def test_noise_comes_from_one_source():
    scheduler, x = DDIMScheduler(), normal(1, 3)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="either generator or variance_noise"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=1.0, generator=seeded(), variance_noise=x)
    drawn = torch.randn(x.shape, generator=seeded(), dtype=F64)
    both = [
        scheduler.step(x, scheduler.timesteps[0], x, eta=1.0, **source).prev_sample
        for source in ({"generator": seeded()}, {"variance_noise": drawn})
    ]
    assert torch.equal(*both)


def test_betas_are_those_of_the_configuration():
    assert_close(DDPMScheduler().betas, torch.linspace(0.0001, 0.02, 1000), rtol=2e-3, atol=0)


def test_a_negative_learned_variance_adds_no_noise():
    scheduler, x, eps = DDPMScheduler(variance_type="learned"), normal(1, 2, 4, 4), normal(1, 2, 4, 4, seed=1)
    drawn = []
    for raw, seed in ((-1.0, 1), (-1.0, 2), (0.0, 3)):
        scheduler.set_timesteps(10)
        output = torch.cat([eps, torch.full_like(eps, raw)], 1)
        drawn.append(scheduler.step(output, scheduler.timesteps[0], x, generator=seeded(seed)).prev_sample)
    assert drawn[0].isfinite().all()
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_one_method_in_two_forms_is_refused_from_the_second_order_on():
    options = {"method": "singlestep", "algorithm_type": "sde-dpmsolver"}
    assert DPMSolverPlusPlusScheduler(solver_order=1, **options).config.solver_order == 1
    with pytest.raises(ValueError, match="needs method='multistep' or solver_order=1"):
        DPMSolverPlusPlusScheduler(solver_order=2, **options)


@pytest.mark.parametrize(("value", "left"), [(1, True), (2, False), (True, False), (1.0, False)])
def test_an_option_was_left_at_its_default_if_value_and_type_are_those(value, left):
    found = default_options(DDPMScheduler, {"_default_options": {"steps_offset": 1}, "steps_offset": value})
    assert found == ({"steps_offset"} if left else set())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScoreSDEScheduler(snr=0.0),
        lambda: ScoreSDEScheduler(snr=math.inf),
        lambda: ScoreSDEScheduler(corrector_steps=-1),
    ],
)
def test_impossible_options_of_sdes_are_refused(make):
    with pytest.raises(ValueError, match="snr="):
        make()


def test_an_unknown_variance_is_said(caplog):
    DDPMScheduler(variance_type="fixed_large")
    assert not caplog.records
    DDPMScheduler(variance_type="fixed")
    assert "variance_type='fixed' is not known" in caplog.text

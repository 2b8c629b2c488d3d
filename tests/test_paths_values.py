"""Paths and predictions against values of their own: integrals, gradients of log-densities, diffusers, small tables."""

import math

import diffusers
import numpy as np
import pytest
import torch
from scipy import integrate
from torch.testing import assert_close

from hfgen import paths

F64 = torch.float64


def at(path, *times):
    return path(torch.tensor(times, dtype=F64))


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (0.5, 3.0)])
def test_the_linear_vp_path_integrates_its_beta(low, high):
    path = paths.LinearVPPath() if (low, high) == (0.1, 20.0) else paths.LinearVPPath(low, high)
    for t in (0.01, 0.3, 0.75, 1.0):
        area, _ = integrate.quad(lambda s: low + s * (high - low), 0, t)
        point = at(path, t)
        assert point.alpha.item() == pytest.approx(math.exp(-area / 2), rel=1e-12)
        assert point.sigma.item() == pytest.approx(math.sqrt(1 - math.exp(-area)), rel=1e-9)


def test_the_cosine_path_has_the_published_shape():
    """alpha^2 = f(t)/f(0), f = cos^2(pi/2 (t + 0.008)/1.008): at t = 0.496 the angle is pi/4, at t = 1 it is pi/2."""
    start = math.cos(math.pi / 2 * 0.008 / 1.008)
    assert at(paths.CosineVPPath(), 0.496).alpha.item() == pytest.approx(math.sqrt(0.5) / start, rel=1e-12)
    assert at(paths.CosineVPPath(), 0.16, 0.664).alpha.tolist() == pytest.approx(
        [math.cos(math.pi / 12) / start, 0.5 / start], rel=1e-12
    )
    assert at(paths.CosineVPPath(), 1.0).alpha.item() == pytest.approx(0, abs=1e-15)
    wide = paths.CosineVPPath(1.0)  # the angle goes from pi/4 to pi/2
    assert at(wide, 0.0, 1 / 3).alpha.tolist() == pytest.approx([1, math.sqrt(2) / 2], rel=1e-12)


def test_the_straight_and_the_exploding_path_at_times_by_hand():
    point = at(paths.StraightPath(), 0.25)
    assert [value.item() for value in point] == [0.75, 0.25, -1, 1]
    point = at(paths.VEPath(0.5, 8.0), 0.5)  # half of log 16
    assert [value.item() for value in point] == pytest.approx([1, 2, 0, 2 * math.log(16)])
    assert paths.VEPath(0.5, 8.0).input_scale(torch.tensor(0.5, dtype=F64)).item() == pytest.approx(5**-0.5)
    assert at(paths.VEPath(), 0.0, 1.0).sigma.tolist() == pytest.approx([0.01, 50])
    for path in (paths.StraightPath(), paths.LinearVPPath(), paths.CosineVPPath()):
        assert path.input_scale(torch.tensor([0.3, 1.0])).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["straight", "linear_vp", "cosine_vp", "ve", "discrete"])
def test_the_log_snr_is_that_of_the_scales_in_nats(name):
    path = paths.path_from_config({"path": name})
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    alpha, sigma, _, _ = (value.numpy() for value in path(t))
    np.testing.assert_allclose(path.log_snr(t), np.log(alpha**2 / sigma**2), rtol=1e-9)


def test_a_table_by_hand():
    """alpha^2 = 0.64, 0.36, 0.04 at t = 1/3, 2/3, 1, and log alpha is linear between them, from 0 at t = 0."""
    path = paths.DiscretePath(torch.tensor([0.64, 0.36, 0.04], dtype=F64))
    assert at(path, 0.0, 1 / 3, 2 / 3, 1.0).alpha.tolist() == pytest.approx([1, 0.8, 0.6, 0.2])
    middle = at(path, 0.5)
    assert middle.alpha.item() == pytest.approx(math.sqrt(0.48))
    assert middle.d_alpha.item() == pytest.approx(math.sqrt(0.48) * 3 * math.log(0.6 / 0.8))
    assert at(path, 1 / 6).alpha.item() == pytest.approx(math.sqrt(0.8))
    steps = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    assert_close(path.timestep(torch.tensor([1 / 3, 2 / 3, 1.0], dtype=F64)), steps)
    assert_close(path.time_of(steps), torch.tensor([1 / 3, 2 / 3, 1.0], dtype=F64))
    early = torch.tensor([0.0, 0.1, 0.34, 0.6, 0.67, 1.0], dtype=F64)
    assert_close(path.snap(early) * 3, torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0], dtype=F64))
    for alpha, t in (
        (0.9, math.log(0.9) / math.log(0.8) / 3),
        (0.6, 2 / 3),
        (0.3, 2 / 3 + math.log(2) / math.log(3) / 3),
    ):
        log_snr = torch.tensor(math.log(alpha**2 / (1 - alpha**2)), dtype=F64)
        assert path.time(log_snr).item() == pytest.approx(t)


def test_slopes_at_the_entries_of_a_table_are_those_before_them():
    """A step of sampling goes from an entry to the one before it. Rounding must not move a time to the next piece."""
    path = paths.DiscretePath(torch.cumprod(torch.linspace(0.99, 0.7, 1000, dtype=F64), 0)[:60])
    t = torch.arange(1, 61, dtype=F64) / 60
    alpha, slope = path(t).alpha, path(t).d_alpha
    before = torch.cat([torch.ones(1, dtype=F64), alpha[:-1]])
    assert_close(slope / alpha, (alpha.log() - before.log()) * 60, rtol=1e-6, atol=0)


def test_tables_without_signal_go_on_falling():
    path = paths.DiscretePath(torch.tensor([0.5, 0.0, 0.0], dtype=F64))
    alpha = at(path, 1 / 3, 2 / 3, 1.0).alpha
    assert alpha[0].item() == pytest.approx(math.sqrt(0.5)) and alpha[1].item() == pytest.approx(1e-10, rel=1e-4)
    assert 0.999 < alpha[2] / alpha[1] < 1
    faint = paths.DiscretePath(torch.tensor([0.5, 1e-18], dtype=F64))
    assert at(faint, 1.0).alpha.item() == pytest.approx(1e-9)


def test_a_signal_of_1e_20_is_none():
    """Two such entries are no error, and the path goes on falling."""
    path = paths.DiscretePath(torch.tensor([0.5, 1e-20, 1e-20], dtype=F64))
    alpha = at(path, 1 / 3, 2 / 3, 1.0).alpha
    assert alpha[1].item() == pytest.approx(1e-10, rel=1e-5) and alpha[2] < alpha[1] < 1e-10


def test_a_level_beyond_a_table_is_on_the_line_of_its_last_piece():
    path = paths.DiscretePath(torch.tensor([0.64, 0.36, 0.04], dtype=F64))
    for alpha in (0.1, 0.01):
        log_snr = torch.tensor(math.log(alpha**2 / (1 - alpha**2)), dtype=F64)
        expected = 1 + math.log(0.2 / alpha) / math.log(3) / 3  # log alpha falls by log 3 in a third
        assert path.time(log_snr).item() == pytest.approx(expected)
    assert path.time(torch.tensor(1e4, dtype=F64)) == 0


def test_data_have_no_noise_in_float32_either():
    """Rounding must not make the variance at t = 0 negative."""
    for offset in torch.linspace(0.001, 0.2, 100).tolist():
        path = paths.CosineVPPath(offset)
        assert path(torch.zeros(1)).sigma.item() < 1e-3, offset


@pytest.mark.parametrize("table", [[1.0, 0.5], [0.5, 0.5], [0.4, 0.5, 0.3], [], [[0.5, 0.4]]])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(ValueError, match="strictly falling numbers"):
        paths.DiscretePath(torch.tensor(table))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_ends_that_no_path_has_are_refused(low, high):
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        paths.VEPath(low, high)
    with pytest.raises(ValueError, match="0 < beta_min < beta_max"):
        paths.LinearVPPath(low, high)


@pytest.mark.parametrize("offset", [-1e-9, -1.0, math.inf, math.nan])
def test_offsets_that_no_cosine_has_are_refused(offset):
    with pytest.raises(ValueError, match=f"offset={offset}"):
        paths.CosineVPPath(offset)
    assert at(paths.CosineVPPath(0.0), 0.5).alpha.item() == pytest.approx(math.cos(math.pi / 4), rel=1e-12)


# --- predictions ------------------------------------------------------------------------------------------------------


def pair():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=F64).unbind(0)


@pytest.mark.parametrize("name", ["straight", "linear_vp", "cosine_vp", "ve"])
def test_predictions_are_what_their_names_say(name):
    path, (x_0, eps) = paths.path_from_config({"path": name}), pair()
    t = torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    point = path(t)
    alpha, sigma = point.alpha[:, None], point.sigma[:, None]
    x_t = (alpha * x_0 + sigma * eps).requires_grad_()
    (score,) = torch.autograd.grad(torch.distributions.Normal(alpha * x_0, sigma).log_prob(x_t).sum(), x_t)
    x_t, h = x_t.detach(), 1e-6
    moved = [path(t + change) for change in (h, -h)]
    flow = [p.alpha[:, None] * x_0 + p.sigma[:, None] * eps for p in moved]
    radius, angle = torch.hypot(alpha, sigma), torch.atan2(sigma, alpha)
    turned = [radius * ((angle + change).cos() * x_0 + (angle + change).sin() * eps) for change in (h, -h)]
    expected = {
        "sample": x_0,
        "epsilon": (x_t - alpha * x_0) / sigma,
        "score": score,
        "flow_prediction": (flow[0] - flow[1]) / (2 * h),
        "v_prediction": (turned[0] - turned[1]) / (2 * h),  # the derivative in the angle of (alpha, sigma)
    }
    assert expected.keys() == paths.PREDICTIONS.keys()
    for kind, value in expected.items():
        assert_close(paths.compose(kind, point, x_0, eps), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", paths.PREDICTIONS)
def test_coefficients_solve_the_system_that_numpy_solves(kind):
    point = at(paths.LinearVPPath(), 0.2, 0.7)
    rows, determinants = paths.coefficients(kind, point), paths.determinant(kind, point)
    for i in range(2):
        c_x, c_e = (float(c[i]) for c in paths.PREDICTIONS[kind](point))
        system = np.array([[point.alpha[i].item(), point.sigma[i].item()], [c_x, c_e]])
        inverse = np.linalg.inv(system)
        assert [value[i].item() for value in rows] == pytest.approx(inverse.ravel().tolist(), abs=1e-9)
        assert determinants[i].item() == pytest.approx(np.linalg.det(system))


def test_sampling_starts_at_one_unless_noise_alone_says_nothing_of_the_data():
    zero = paths.path_from_config({"beta_schedule": "linear", "rescale_betas_zero_snr": True})
    linear = paths.path_from_config({"beta_schedule": "linear"})  # alpha = 0.006 at the end
    for path, kind, expected in (
        (paths.StraightPath(), "epsilon", 0.999),
        (paths.StraightPath(), "score", 0.999),
        (paths.StraightPath(), "sample", 1.0),
        (paths.StraightPath(), "flow_prediction", 1.0),
        (paths.StraightPath(), "v_prediction", 1.0),
        (paths.CosineVPPath(), "epsilon", 0.999),
        (paths.LinearVPPath(), "epsilon", 1.0),
        (paths.VEPath(), "epsilon", 1.0),
        (linear, "epsilon", 1.0),
        (zero, "epsilon", 0.999),
        (zero, "v_prediction", 1.0),
    ):
        assert paths.start_time(path, kind) == pytest.approx(expected, abs=1e-12), (path, kind)


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("options", [{}, {"num_train_timesteps": 40, "beta_start": 0.004, "beta_end": 0.3}])
def test_betas_are_those_of_diffusers(schedule, options):
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule, **options)
    config = theirs.config
    betas = paths.betas_of(schedule, config.num_train_timesteps, config.beta_start, config.beta_end)
    assert_close(betas.float(), theirs.betas, rtol=2e-5, atol=1e-7)
    path = paths.path_from_config({"beta_schedule": schedule, **options})
    t = torch.arange(1, config.num_train_timesteps + 1, dtype=F64) / config.num_train_timesteps
    assert_close(path(t).alpha.square().float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_a_table_without_signal_at_the_end_is_that_of_diffusers():
    options = {"num_train_timesteps": 30, "beta_start": 0.01, "beta_end": 0.3, "rescale_betas_zero_snr": True}
    theirs = diffusers.DDPMScheduler(**options)
    path = paths.path_from_config({"beta_schedule": "linear", **options})
    t = torch.arange(1, 31, dtype=F64) / 30
    assert_close(path(t).alpha.square().float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"path": "straight"}, {"path": "straight", "num_train_timesteps": 1000}),
        ({"use_flow_sigmas": True, "beta_schedule": "linear"}, {"path": "straight", "num_train_timesteps": 1000}),
        ({"shift": 3.0, "num_train_timesteps": 20}, {"path": "straight", "num_train_timesteps": 20}),
        (
            {"path": "ve", "sigma_max": 9.0},
            {"path": "ve", "num_train_timesteps": 1000, "sigma_min": 0.01, "sigma_max": 9.0},
        ),
        (
            {"path": "ve", "sigma_min": None},
            {"path": "ve", "num_train_timesteps": 1000, "sigma_min": 0.01, "sigma_max": 50.0},
        ),
        ({"path": "linear_vp", "beta_start": 7.0}, {"path": "linear_vp", "num_train_timesteps": 1000}),
    ],
)
def test_the_facts_of_a_configuration(config, expected):
    assert paths.path_facts(config) == expected


@pytest.mark.parametrize("config", [{"beta_schedule": "linear"}, {"trained_betas": [0.1, 0.2]}, {"path": "discrete"}])
def test_betas_mean_a_table_with_every_parameter_explicit(config):
    facts = paths.path_facts(config)
    assert facts["path"] == "discrete" and facts["beta_start"] == 0.0001 and facts["beta_end"] == 0.02
    assert facts["rescale_betas_zero_snr"] is False and facts["trained_betas"] == config.get("trained_betas")


@pytest.mark.parametrize("config", [{}, {"path": "bent"}, {"beta_schedule": "linear", "snr_shift_scale": 3.0}])
def test_a_configuration_without_a_path_that_is_known_is_refused(config):
    with pytest.raises(ValueError, match=r"is not known\. Choose one of: straight, discrete"):
        paths.path_facts(config)
    with pytest.raises(ValueError, match="of this configuration is not known"):
        paths.path_facts(config)
    with pytest.raises(ValueError, match="of ForeignScheduler is not known"):
        paths.path_facts({**config, "_class_name": "ForeignScheduler"})

"""Laws of paths and prediction kinds, in float64."""

import diffusers
import pytest
import torch

from hfgen import paths

F64 = torch.float64
PATHS = {
    "straight": paths.StraightPath(),
    "ve": paths.VEPath(),
    "linear_vp": paths.LinearVPPath(),
    "cosine_vp": paths.CosineVPPath(),
    "discrete": paths.path_from_config({"beta_schedule": "linear"}),
}
KINDS = list(paths.PREDICTIONS)


def times(name: str) -> torch.Tensor:
    """Times inside (0, 1), none at a kink of a discrete path."""
    return torch.linspace(0.02, 0.97, 41, dtype=F64) + (0.37e-3 if name == "discrete" else 0.0)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_decompose_inverts_compose(name, kind):
    t = times(name)
    point = PATHS[name](t)
    x_0, eps = torch.randn(2, len(t), 3, 2, dtype=F64).unbind(0)
    x_t = PATHS[name].mix(x_0, eps, t)
    back = paths.decompose(kind, point, x_t, paths.compose(kind, point, x_0, eps))
    for actual, expected in zip(back, (x_0, eps), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_derivatives_are_autograds(name):
    path, t = PATHS[name], times(name).requires_grad_()
    point = path(t)
    for scale, slope in ((point.alpha, point.d_alpha), (point.sigma, point.d_sigma)):
        needed = scale.requires_grad
        actual = torch.autograd.grad(scale.sum(), t, retain_graph=True)[0] if needed else torch.zeros_like(t)
        torch.testing.assert_close(actual, slope.detach(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_flow_prediction_is_dx_dt(name):
    path, t, h = PATHS[name], times(name), 1e-6
    x_0, eps = torch.randn(2, len(t), 3, dtype=F64).unbind(0)
    slope = (path.mix(x_0, eps, t + h) - path.mix(x_0, eps, t - h)) / (2 * h)
    torch.testing.assert_close(paths.compose("flow_prediction", path(t), x_0, eps), slope, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_time_inverts_log_snr_and_time_of_inverts_timestep(name):
    path, t = PATHS[name], times(name)
    torch.testing.assert_close(path.time(path.log_snr(t)), t, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(path.time_of(path.timestep(t)), t, atol=1e-12, rtol=1e-12)
    assert (path.log_snr(t).diff() < 0).all()


@pytest.mark.parametrize("name", ["linear_vp", "cosine_vp", "discrete"])
def test_vp_paths_keep_the_variance(name):
    point = PATHS[name](times(name))
    torch.testing.assert_close(point.alpha**2 + point.sigma**2, torch.ones_like(point.alpha))


def test_ends():
    for name, path in PATHS.items():
        point = path(torch.tensor([0.0, 1.0], dtype=F64))
        assert point.alpha[0] == pytest.approx(1)
        if name == "ve":
            assert point.sigma.tolist() == pytest.approx([0.01, 50.0])
        else:
            assert point.sigma[0] == pytest.approx(0) and point.alpha[1] < 0.01


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_discrete_path_is_diffusers_table(schedule):
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule)
    path = paths.path_from_config(theirs.config)
    alpha = path(path.time_of(torch.arange(1000, dtype=F64))).alpha
    torch.testing.assert_close(alpha.square().float(), theirs.alphas_cumprod, atol=6e-8, rtol=0)
    assert (path.timestep(path.time_of(torch.arange(1000, dtype=F64))) - torch.arange(1000)).abs().max() < 1e-9


def test_trained_betas_are_the_table():
    path = paths.path_from_config({"trained_betas": [0.1, 0.3, 0.5]})
    alpha = path(path.time_of(torch.arange(3, dtype=F64))).alpha
    torch.testing.assert_close(alpha**2, torch.tensor([0.9, 0.63, 0.315], dtype=F64), atol=1e-7, rtol=0)
    assert path.num_train_timesteps == 3


def test_zero_terminal_snr():
    theirs = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    path = paths.path_from_config(theirs.config)
    alpha = path(path.time_of(torch.arange(1000, dtype=F64))).alpha
    torch.testing.assert_close(alpha.square().float(), theirs.alphas_cumprod, atol=1e-6, rtol=0)
    assert alpha[-1] < 1e-9
    assert paths.start_time(path, "epsilon") < 1 and paths.start_time(path, "v_prediction") == 1


def test_tables_may_run_out_of_signal():
    """diffusers accepts betas so large that alpha underflows or betas exceed 1. The path is invertible even then."""
    path = paths.path_from_config({"beta_schedule": "linear", "beta_start": 0.1, "beta_end": 2.0})
    log_snr = path.log_snr(path.time_of(torch.arange(1000, dtype=F64)))
    assert log_snr.isfinite().all() and (log_snr.diff() < 0).all()


def test_snap_moves_to_the_table():
    path = PATHS["discrete"]
    t = torch.rand(100, dtype=F64)
    index = path.timestep(path.snap(t))
    torch.testing.assert_close(index, index.round())
    assert index.min() >= 0 and index.max() <= 999 and (path.snap(t) >= t - 1e-12).all()
    assert torch.equal(PATHS["straight"].snap(t), t)


def test_a_point_broadcasts_against_images():
    x = torch.zeros(4, 3, 2, 2, dtype=torch.float32)
    point = PATHS["linear_vp"](torch.rand(4, dtype=F64)).like(x)
    assert point.alpha.shape == (4, 1, 1, 1) and point.alpha.dtype == torch.float32


@pytest.mark.parametrize("item", [(5,), (7, 2), (3, 2, 2), (2, 3, 2, 2)])
@pytest.mark.parametrize("name", PATHS)
def test_items_of_any_shape(name, item):
    path, t = PATHS[name], times(name)[:4]
    x_0, eps = torch.randn(2, 4, *item, dtype=F64).unbind(0)
    mixed = torch.stack([path.mix(x, e, s) for x, e, s in zip(x_0, eps, t, strict=True)])
    torch.testing.assert_close(path.mix(x_0, eps, t), mixed)


@pytest.mark.parametrize("name", ["straight", "discrete", "linear_vp", "cosine_vp", "ve"])
def test_the_ends_in_float32_are_those_in_float64(name):
    path = paths.path_from_config({"path": name})
    for t in (0.25, 0.9999999, 1.0):
        single, double = (path(torch.tensor(t, dtype=dtype)) for dtype in (torch.float32, F64))
        for a, b in zip(single, double, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-4)


def test_continuous_paths_have_the_time_steps_of_their_configuration():
    for name in ("straight", "linear_vp", "cosine_vp", "ve"):
        path = paths.path_from_config({"path": name, "num_train_timesteps": 500})
        assert float(path.timestep(torch.tensor(0.5))) == 250 and float(path.time_of(torch.tensor(500.0))) == 1


def test_refusals():
    with pytest.raises(ValueError, match="prediction_type='noise'"):
        paths.prediction_row("noise")
    with pytest.raises(ValueError, match="path='curly'"):
        paths.path_from_config({"path": "curly"})
    with pytest.raises(ValueError, match="beta_schedule='steep'"):
        paths.path_from_config({"beta_schedule": "steep"})
    with pytest.raises(ValueError, match="strictly falling"):
        paths.DiscretePath(torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match="sigma_min"):
        paths.VEPath(1.0, 0.5)
    with pytest.raises(ValueError, match="beta_min"):
        paths.LinearVPPath(1.0, 0.5)


def test_configurations_name_their_path():
    for name, kind in (("straight", paths.StraightPath), ("ve", paths.VEPath), ("discrete", paths.DiscretePath)):
        assert isinstance(paths.path_from_config({"path": name}), kind)
    assert isinstance(paths.path_from_config({"use_flow_sigmas": True}), paths.StraightPath)
    assert isinstance(paths.path_from_config(diffusers.DDIMScheduler().config), paths.DiscretePath)

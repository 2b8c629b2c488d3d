"""Every scheduler fulfils diffusers' contract, on every path, with every prediction kind, for items of any shape."""

import copy
import inspect

import diffusers
import pytest
import torch

from hfgen import paths
from hfgen.schedulers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverPlusPlusScheduler,
    RectifiedFlowScheduler,
    ScoreSDEScheduler,
)
from tests.helpers.gaussian import F64, Gaussian, ideal_network, run, start

ALL = [
    DDPMScheduler,
    DDIMScheduler,
    DDIMInverseScheduler,
    DPMSolverPlusPlusScheduler,
    RectifiedFlowScheduler,
    ScoreSDEScheduler,
]
FORWARD = [cls for cls in ALL if cls is not DDIMInverseScheduler]
PATHS = ["discrete", "straight", "linear_vp", "cosine_vp", "ve"]
KINDS = list(paths.PREDICTIONS)


def loop(scheduler, steps=6, seed=0, shape=(2, 3, 4, 4), dtype=torch.float32):
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype) * scheduler.init_noise_sigma
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t)) * 0.3
        x = scheduler.step(output, t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("cls", ALL)
def test_contract(cls):
    scheduler = cls()
    assert len(scheduler) == 1000 and scheduler.order == 1 and scheduler.step_index is None
    scheduler.set_timesteps(10)
    assert scheduler.num_inference_steps == 10 and scheduler.timesteps.ndim == 1
    x = torch.randn(2, 3, 4, 4)
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]).shape == x.shape
    result = scheduler.step(0.1 * x, scheduler.timesteps[0], x)
    assert result.prev_sample.shape == x.shape and torch.equal(result[0], result.prev_sample)
    scheduler.set_timesteps(10)
    assert isinstance(scheduler.step(0.1 * x, scheduler.timesteps[0], x, return_dict=False), tuple)
    noisy = scheduler.add_noise(x, torch.randn_like(x), scheduler.timesteps[[3, 5]])
    assert noisy.shape == x.shape
    scheduler.set_timesteps()
    assert len(scheduler.timesteps) == scheduler.num_inference_steps


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("path", PATHS)
def test_round_trip_through_a_folder(cls, path, tmp_path):
    scheduler = cls(path=path, prediction_type="v_prediction")
    scheduler.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    options = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    assert {key: loaded.config[key] for key in options} == options
    torch.testing.assert_close(loop(scheduler), loop(loaded), rtol=0, atol=0)


@pytest.mark.parametrize("cls", FORWARD)
@pytest.mark.parametrize("path", PATHS)
def test_every_prediction_kind_gives_one_trajectory(cls, path):
    """Pairs that do not determine x_0 in pure noise start a little later, so all start from the same later point."""
    problem, results = Gaussian(), []
    for kind in KINDS:
        scheduler = cls(path=path, prediction_type=kind, **({"clip_sample": False} if cls is DDPMScheduler else {}))
        first = [998] if path == "discrete" else [990.0]
        rest = [700, 400, 150, 20] if path == "discrete" else [700.0, 400.0, 150.0, 20.0]
        scheduler.set_timesteps(timesteps=first + rest)
        x = start(scheduler, problem, torch.linspace(-2, 2, 5, dtype=F64).reshape(1, 5))
        results.append(run(scheduler, problem, x, generator=torch.Generator().manual_seed(0)))
        assert results[-1].isfinite().all()
        torch.testing.assert_close(results[-1], results[0], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_pair_is_singular_on_its_own_grid(cls, path, kind):
    for steps in (1, 2, 7):
        assert loop(cls(path=path, prediction_type=kind), steps).isfinite().all()


@pytest.mark.parametrize("cls", ALL)
def test_grids_on_a_table_are_whole_and_distinct(cls):
    scheduler = cls(path="discrete", prediction_type="epsilon")
    for steps in (1, 2, 3, 7, 50, 501, 999, 1000):
        scheduler.set_timesteps(steps)
        falls = scheduler.timesteps.diff().abs()
        assert scheduler.timesteps.dtype == torch.int64 and (falls > 0).all()
        assert scheduler.timesteps.min() >= 0 and scheduler.timesteps.max() <= 999
    with pytest.raises(ValueError, match="1001"):
        scheduler.set_timesteps(1001)
    with pytest.raises(ValueError, match="at least 1"):
        scheduler.set_timesteps(0)


@pytest.mark.parametrize("cls", ALL)
def test_swapping_keeps_what_the_network_was_trained_for(cls):
    facts = {"path": "straight", "prediction_type": "flow_prediction", "num_train_timesteps": 500}
    for other in ALL:
        swapped = other.from_config(cls(**facts).config)
        assert {key: swapped.config[key] for key in facts} == facts
    defaults = DDIMScheduler.from_config(RectifiedFlowScheduler().config)
    assert isinstance(defaults.path, paths.StraightPath) and defaults.config.prediction_type == "flow_prediction"


@pytest.mark.parametrize("cls", ALL)
def test_configurations_travel_through_diffusers(cls):
    ours = cls(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", num_train_timesteps=500, path="discrete"
    )
    for theirs in (diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler):
        there = theirs.from_config(ours.config)
        assert there.config.beta_schedule == "squaredcos_cap_v2" and there.config.num_train_timesteps == 500
        there.set_timesteps(5)
        back = cls.from_config(there.config)
        assert back.config.prediction_type == "v_prediction" and back.config.path == "discrete"


def test_flow_matching_configurations_mean_the_straight_path():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for cls in ALL:
        ours = cls.from_config(theirs.config)
        assert isinstance(ours.path, paths.StraightPath) and ours.config.prediction_type == "flow_prediction"
    assert RectifiedFlowScheduler.from_config(theirs.config).config.shift == 3.0
    there = diffusers.DPMSolverMultistepScheduler.from_config(RectifiedFlowScheduler().config)
    assert there.config.use_flow_sigmas and there.config.prediction_type == "flow_prediction"


def test_options_set_explicitly_carry_over_and_defaults_do_not():
    explicit = DDIMScheduler.from_config(diffusers.DDIMScheduler(timestep_spacing="leading", clip_sample=True).config)
    assert explicit.config.timestep_spacing == "leading" and explicit.config.clip_sample
    default = DDIMScheduler.from_config(diffusers.DDIMScheduler().config)
    assert default.config.timestep_spacing == "trailing" and not default.config.clip_sample
    solver = DPMSolverPlusPlusScheduler.from_config(diffusers.DPMSolverMultistepScheduler().config)
    assert solver.config.method == "predictor_corrector" and solver.config.grid_type == "balanced"
    solver = DPMSolverPlusPlusScheduler.from_config(diffusers.DPMSolverMultistepScheduler(solver_order=3).config)
    assert solver.config.method == "multistep" and solver.config.solver_order == 3


@pytest.mark.parametrize("theirs", [diffusers.UniPCMultistepScheduler, diffusers.DEISMultistepScheduler])
@pytest.mark.parametrize("options", [{}, {"solver_order": 3}])
def test_solvers_with_other_names_for_their_rules(theirs, options):
    ours = DPMSolverPlusPlusScheduler.from_config(theirs(**options).config)
    assert ours.config.method == "predictor_corrector" and ours.config.algorithm_type == "dpmsolver++"
    assert ours.config.solver_order == 3
    chosen = DPMSolverPlusPlusScheduler(method="multistep", solver_order=2, prediction_type="v_prediction")
    back = DPMSolverPlusPlusScheduler.from_config(theirs.from_config(chosen.config).config)
    assert back.config.method == "multistep" and back.config.prediction_type == "v_prediction"
    assert back.config.solver_type == "midpoint"


@pytest.mark.parametrize("options", [{}, {"thresholding": True, "sample_max_value": 1.5}])
@pytest.mark.parametrize("item", [(48,), (16, 3), (2, 2, 3, 4)])
@pytest.mark.parametrize("cls", ALL)
def test_items_of_any_shape_have_the_steps_of_images(cls, item, options):
    """With the same numbers in another shape, vectors, sequences and volumes become the same samples as images."""
    if options and cls in (RectifiedFlowScheduler, ScoreSDEScheduler):
        pytest.skip("without thresholding")
    images, items = loop(cls(**options)), loop(cls(**options), shape=(2, *item))
    torch.testing.assert_close(items, images.reshape(2, *item), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("item", [(6,), (3, 2), (2, 3, 2, 2)])
def test_learned_variances_of_items_of_any_shape_have_their_channels_first(item):
    scheduler = DDPMScheduler(variance_type="learned_range")
    x = torch.randn(2, *item)
    output = torch.cat([0.1 * x, -torch.ones_like(x)], 1)
    small = DDPMScheduler().step(0.1 * x, 500, x, generator=torch.Generator().manual_seed(0)).prev_sample
    sample = scheduler.step(output, 500, x, generator=torch.Generator().manual_seed(0)).prev_sample
    torch.testing.assert_close(sample, small)


@pytest.mark.parametrize("cls", FORWARD)
def test_half_precision_samples(cls):
    x = loop(cls(), dtype=torch.float16)
    assert x.dtype == torch.float16
    torch.testing.assert_close(x.float(), loop(cls()), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("cls", [DDPMScheduler, ScoreSDEScheduler])
def test_lists_of_generators_make_a_batch_of_singles(cls):
    scheduler = cls()
    scheduler.set_timesteps(10)
    x, t = torch.randn(2, 3, 4, 4), scheduler.timesteps[2]
    both = scheduler.step(0.1 * x, t, x, generator=[torch.Generator().manual_seed(i) for i in range(2)]).prev_sample
    for i in range(2):
        one = scheduler.step(
            0.1 * x[i : i + 1], t, x[i : i + 1], generator=torch.Generator().manual_seed(i)
        ).prev_sample
        torch.testing.assert_close(both[i : i + 1], one)


@pytest.mark.parametrize("options", [{}, {"method": "multistep"}])
def test_image_to_image_starts_in_the_middle(options):
    """The rows after a late start are those of a grid that begins there."""
    scheduler = DPMSolverPlusPlusScheduler(**options)
    scheduler.set_timesteps(8)
    late = scheduler.timesteps[4:]
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(timesteps=late)
    x = y = torch.randn(1, 3, 4, 4, dtype=F64)
    for t in late:
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
        y = fresh.step(torch.tanh(y), t, y).prev_sample
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler, DPMSolverPlusPlusScheduler])
def test_limits_bound_the_estimate(cls):
    options = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
    scheduler = cls(**options)
    scheduler.set_timesteps(5)
    x = 3 * torch.randn(2, 3, 8, 8)
    result = scheduler.step(torch.randn_like(x), scheduler.timesteps[0], x)
    if result.pred_original_sample is not None:
        assert result.pred_original_sample.abs().max() <= 1
    assert result.prev_sample.isfinite().all()


def test_learned_variances():
    for kind in ("learned", "learned_range"):
        scheduler = DDPMScheduler(variance_type=kind)
        x = torch.randn(2, 3, 4, 4)
        raw = torch.full_like(x, -1.0 if kind == "learned_range" else float(scheduler._get_variance(500)))
        output = torch.cat([0.1 * x, raw], 1)
        small = DDPMScheduler().step(0.1 * x, 500, x, generator=torch.Generator().manual_seed(0)).prev_sample
        sample = scheduler.step(output, 500, x, generator=torch.Generator().manual_seed(0)).prev_sample
        torch.testing.assert_close(sample, small)
        with pytest.raises(ValueError, match="output channels"):
            scheduler.step(x, 500, x)


def test_inside_diffusers_pipelines():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(8, 1, 1, block_out_channels=(8,), down_block_types=("DownBlock2D",),
                                 up_block_types=("UpBlock2D",), norm_num_groups=4, layers_per_block=1)  # fmt: skip
    cases = [("DDPMPipeline", cls) for cls in FORWARD] + [("DDIMPipeline", DDIMScheduler)]
    for name, cls in cases:
        pipeline = getattr(diffusers, name)(unet, diffusers.DDPMScheduler())
        pipeline.scheduler = cls(path="discrete", prediction_type="epsilon")
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
        assert images.shape == (1, 8, 8, 1)


def test_refusals():
    for make, message in (
        (lambda: DPMSolverPlusPlusScheduler(algorithm_type="euler"), "algorithm_type='euler'"),
        (lambda: DPMSolverPlusPlusScheduler(solver_order=4), "solver_order=4"),
        (lambda: DPMSolverPlusPlusScheduler(use_karras_sigmas=True, use_lu_lambdas=True), "only one"),
        (lambda: DPMSolverPlusPlusScheduler(method="psychic"), "method='psychic'"),
        (lambda: DPMSolverPlusPlusScheduler(method="predictor_corrector", algorithm_type="dpmsolver"), "multistep"),
        (lambda: RectifiedFlowScheduler(solver_type="rk9"), "solver_type='rk9'"),
        (lambda: RectifiedFlowScheduler(shift=0.0), "shift=0.0"),
        (lambda: ScoreSDEScheduler(corrector_steps=-1), "corrector_steps=-1"),
        (lambda: DDIMScheduler(prediction_type="noise"), "prediction_type='noise'"),
        (lambda: DDIMScheduler(timestep_spacing="wide"), "timestep_spacing='wide'"),
        (lambda: DDIMScheduler().set_timesteps(5, timesteps=[1]), "not both"),
        (lambda: DDIMScheduler().set_timesteps(timesteps=[1, 5]), "falling"),
        (lambda: DDIMScheduler().set_timesteps(timesteps=[1000]), "1000 time steps"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
@pytest.mark.parametrize("begin", range(11))
def test_solvers_with_two_evaluations_start_anywhere_on_the_grid(solver, begin):
    """Also at the second evaluation of a step: samples are those of the data, to the accuracy of the grid."""
    problem, scheduler = Gaussian(), RectifiedFlowScheduler(solver=solver)
    scheduler.set_timesteps(40)
    assert scheduler.order == 2
    z = torch.linspace(-2, 2, 5, dtype=F64)
    late = scheduler.timesteps[begin:]
    x = problem.at(z, *(float(v) for v in scheduler.path(late[0].double() / 1000)[:2]))
    for t in late:
        point = scheduler.path(t.double() / 1000)
        x_0 = problem.x_0(x, float(point.alpha), float(point.sigma))
        x = scheduler.step((x - point.alpha * x_0) / point.sigma - x_0, t, x).prev_sample
    torch.testing.assert_close(x, problem.at(z, 1.0, 0.0), rtol=0, atol=5e-3)


def test_a_begin_index_starts_there():
    scheduler, other = (RectifiedFlowScheduler(solver="heun") for _ in range(2))
    x, results = torch.linspace(-1, 1, 5), []
    for each, begin in ((scheduler, 4), (other, None)):
        each.set_timesteps(8)
        if begin is not None:
            each.set_begin_index(begin)
        y = x
        for t in each.timesteps[4:]:
            y = each.step(0.3 * y, t, y).prev_sample
        results.append(y)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("algorithm", ["dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"])
@pytest.mark.parametrize("path", PATHS)
def test_the_last_step_to_clean_data_adds_no_noise(algorithm, path):
    scheduler = DPMSolverPlusPlusScheduler(
        method="multistep", algorithm_type=algorithm, path=path, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(12)
    rows = scheduler.plan(scheduler._times)
    assert rows[-1].noise == 0 and (rows[-2].noise > 0) == algorithm.startswith("sde")


@pytest.mark.parametrize("options", [{"solver_order": 2}, {"solver_order": 3}, {"algorithm_type": "dpmsolver"}])
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("path", ["straight", "cosine_vp"])
def test_methods_in_lambda_start_where_there_is_a_signal(method, path, options):
    scheduler = DPMSolverPlusPlusScheduler(method=method, path=path, prediction_type="v_prediction", **options)
    scheduler.set_timesteps(8)
    assert 990 < scheduler.timesteps[0] < 1000
    with pytest.raises(ValueError, match=r"can't start at time step 1000\.0, where alpha is 0"):
        scheduler.set_timesteps(timesteps=[1000.0, 500.0])


def test_sigmas_are_times_of_the_straight_path():
    for cls in FORWARD:
        scheduler = cls(path="straight", prediction_type="flow_prediction")
        scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.2])
        assert scheduler.timesteps.unique().flip(0).tolist()[:3] == [900.0, 500.0, 200.0]
        with pytest.raises(ValueError, match="Give timesteps on other paths"):
            cls(path="ve").set_timesteps(sigmas=[0.9, 0.5])
        with pytest.raises(ValueError, match="Give one of"):
            scheduler.set_timesteps(4, sigmas=[0.9, 0.5])


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (RectifiedFlowScheduler, {"solver": "heun"}),
        (RectifiedFlowScheduler, {"solver": "midpoint"}),
        (ScoreSDEScheduler, {"corrector_steps": 1}),
        (ScoreSDEScheduler, {"corrector_steps": 3}),
    ],
)
def test_every_row_of_the_grid_is_a_start(cls, options):
    """Also the last one, whose time step several evaluations have: the sample has the mean of the data."""
    problem = Gaussian()
    scheduler = cls(path="straight", prediction_type="flow_prediction", **options)
    scheduler.set_timesteps(8)
    for begin in range(len(scheduler.timesteps)):
        late = scheduler.timesteps[begin:]
        scheduler.set_timesteps(8)
        x = problem.at(torch.zeros(2000, dtype=F64), *(float(v) for v in scheduler.path(late[0].double() / 1000)[:2]))
        generator = torch.Generator().manual_seed(0)
        for t in late:
            predict = ideal_network(problem, scheduler, "flow_prediction")
            x = scheduler.step(predict(x, float(t) / 1000), t, x, generator=generator).prev_sample
        assert x.mean() == pytest.approx(problem.mean, abs=0.05), begin


@pytest.mark.parametrize("timestep", [float("nan"), 5000, -5, float("inf")])
@pytest.mark.parametrize("path", ["straight", "discrete", "ve"])
def test_time_steps_beyond_the_path_are_refused(path, timestep):
    scheduler = RectifiedFlowScheduler(path=path)
    scheduler.set_timesteps(4)
    x = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match=r"timestep=.* is beyond the path"):
        scheduler.add_noise(x, x, torch.tensor([1.0, timestep]))
    with pytest.raises(ValueError, match=r"timestep=.* is beyond the path"):
        scheduler.get_velocity(x, x, torch.tensor([timestep, 1.0]))
    with pytest.raises(ValueError, match=r"timestep=.* is beyond the path"):
        scheduler.step(x, timestep, x)
    assert scheduler.add_noise(x, x, scheduler.timesteps[:2]).isfinite().all()
    assert scheduler.step(x, scheduler.timesteps[1] - 0.5, x).prev_sample.isfinite().all()  # between those of the grid

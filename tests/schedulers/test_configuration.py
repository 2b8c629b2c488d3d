"""Configurations at the border: facts are explicit and survive, options go over alike from memory and from folders."""

import itertools
import json

import diffusers
import pytest
import torch

import hfgen
from hfgen.paths import path_from_config
from hfgen.registry import PATHS, SAMPLERS
from hfgen.schedulers.configuration import network_facts
from tests.helpers.exchange import reload
from tests.helpers.gaussian import Gaussian, ideal_pipeline

OURS = ("DDPMScheduler", "DDIMScheduler", "DPMSolverPlusPlusScheduler", "RectifiedFlowScheduler", "ScoreSDEScheduler")
SOLVERS = ("UniPCMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep")


def options_of(scheduler):
    return {key: value for key, value in scheduler.config.items() if key[0] != "_"}


def default(path="straight", kind="flow_prediction"):
    """Return the scheduler that training saves by default."""
    cls = hfgen.RectifiedFlowScheduler if path == "straight" else hfgen.DPMSolverPlusPlusScheduler
    return cls.from_config({**PATHS[path], "prediction_type": kind})


@pytest.mark.parametrize(("path", "kind"), [("straight", "flow_prediction"), ("vp", "epsilon"), ("cosine", "epsilon")])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_saved_default_is_taken_by_diffusers_and_comes_back(name, path, kind, tmp_path):
    scheduler, cls = default(path, kind), getattr(diffusers, f"{name}Scheduler")
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    for config in (scheduler.config, reload(scheduler).config, saved, cls.load_config(tmp_path)):
        there = cls.from_config(config)
        assert options_of(there) == options_of(cls.from_config(scheduler.config))
        assert network_facts(there.config) == network_facts(scheduler.config)
        assert options_of(type(scheduler).from_config(there.config)) == options_of(scheduler)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("source", "target"), itertools.product(OURS, OURS))
def test_a_swap_is_the_same_from_memory_and_from_a_folder(source, target, path):
    explicit = {"DDIMScheduler": {"clip_sample": False}, "RectifiedFlowScheduler": {"solver": "predictor_corrector"}}
    for options in ({}, explicit.get(source, {"prediction_type": "v_prediction"})):
        made = getattr(hfgen, source)(**PATHS[path], **options)
        from_memory = getattr(hfgen, target).from_config(made.config)
        from_folder = getattr(hfgen, target).from_config(reload(made).config)
        assert options_of(from_folder) == options_of(from_memory)
        assert network_facts(from_memory.config) == network_facts(made.config)


def test_options_that_were_set_go_over_even_if_they_equal_a_default():
    ddim = hfgen.DDIMScheduler(clip_sample=False)
    for scheduler in (ddim, reload(ddim), reload(hfgen.RectifiedFlowScheduler.from_config(ddim.config))):
        assert hfgen.DDPMScheduler.from_config(scheduler.config).config.clip_sample is False
    assert hfgen.DDPMScheduler.from_config(hfgen.DDIMScheduler().config).config.clip_sample is True
    flow = hfgen.RectifiedFlowScheduler(solver="euler", power=2.0)
    between = hfgen.DPMSolverPlusPlusScheduler.from_config(flow.config)
    assert between.config.method == "predictor_corrector" and between.config.solver_type == "midpoint"
    assert options_of(hfgen.RectifiedFlowScheduler.from_config(between.config)) == options_of(flow)


@pytest.mark.parametrize("cls", [diffusers.DDPMScheduler, hfgen.DDPMScheduler])
def test_a_ddpm_configuration_stays_on_its_path(cls):
    scheduler = hfgen.RectifiedFlowScheduler.from_config(cls().config)
    assert (scheduler.config.path, scheduler.config.prediction_type) == ("discrete", "epsilon")
    assert scheduler.path(torch.tensor(1.0)).alpha > 0.006


def test_facts_of_flow_matching_and_ve_survive_every_exchange():
    facts = {"num_train_timesteps": 500, "shift": 3.0}
    flow = diffusers.FlowMatchEulerDiscreteScheduler(**facts)
    pipeline = ideal_pipeline(Gaussian())
    pipeline.scheduler = flow
    for name in SAMPLERS:
        pipeline.use_scheduler(name)
        assert network_facts(pipeline.scheduler.config) == network_facts(flow.config)
        assert pipeline.scheduler.path.num_train_timesteps == 500 and pipeline.scheduler.timesteps.max() <= 500
    assert pipeline.scheduler.config.flow_shift == 3.0
    pipeline.scheduler = hfgen.ScoreSDEScheduler(path="ve", sigma_min=0.02, sigma_max=80.0)
    for name in (*SAMPLERS, *SAMPLERS):
        pipeline.use_scheduler(name)
        pipeline.scheduler = reload(pipeline.scheduler)
        assert (pipeline.scheduler.path.sigma_min, pipeline.scheduler.path.sigma_max) == (0.02, 80.0)


def test_folders_of_0_1_0_keep_their_solver():
    saved = {
        "_class_name": "RectifiedFlowScheduler",
        "_diffusers_version": "0.42.1",
        "solver_type": "heun",
        "shift": 2.0,
        "power": 1.0,
        "path": "straight",
        "prediction_type": "flow_prediction",
        "num_train_timesteps": 1000,
        "use_flow_sigmas": True,
        "flow_shift": 2.0,
    }
    scheduler = hfgen.RectifiedFlowScheduler.from_config(saved)
    assert (scheduler.config.solver, scheduler.config.shift) == ("heun", 2.0)
    assert "solver_type" not in scheduler.config
    assert hfgen.DPMSolverPlusPlusScheduler.from_config(saved).config.solver_type == "midpoint"
    sde = hfgen.ScoreSDEScheduler.from_config({"path": None, "beta_schedule": "linear", "sigma_min": 0.01})
    assert sde.config.path == "discrete" and "sigma_min" not in sde.config
    for made in (
        hfgen.RectifiedFlowScheduler(solver_type="euler"),
        hfgen.RectifiedFlowScheduler.from_config(saved, solver_type="euler"),
    ):
        assert made.config.solver == "euler" and reload(made).config.solver == "euler"


def test_a_scheduler_of_diffusers_in_a_saved_pipeline_keeps_which_options_were_set(tmp_path):
    network = hfgen.DiTModel(8, 1, 1, hidden_size=32, num_layers=1, num_attention_heads=2)
    pipeline = hfgen.DenoisingPipeline(network, hfgen.DDIMScheduler())
    for theirs in (diffusers.DDIMScheduler(), diffusers.DDIMScheduler(clip_sample=True, timestep_spacing="leading")):
        pipeline.scheduler = theirs
        pipeline.save_pretrained(tmp_path)
        loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path).scheduler
        expected = options_of(hfgen.DDIMScheduler.from_config(theirs.config))
        assert options_of(hfgen.DDIMScheduler.from_config(loaded.config)) == expected


def test_configurations_without_a_path_are_refused():
    for theirs in (
        diffusers.EDMEulerScheduler(),
        diffusers.CMStochasticIterativeScheduler(),
        diffusers.IPNDMScheduler(),
        diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0),
    ):
        with pytest.raises(ValueError, match="path=None"):
            hfgen.DDIMScheduler.from_config(theirs.config)
        with pytest.raises(ValueError, match="path=None"):
            path_from_config(theirs.config)
    with pytest.raises(ValueError, match="contradict"):
        hfgen.DPMSolverPlusPlusScheduler(path="discrete", use_flow_sigmas=True)


def test_a_learned_variance_belongs_to_the_network():
    pipeline = ideal_pipeline(Gaussian(), "vp", "epsilon", variance_type="learned_range", clip_sample=False)
    half = pipeline.denoiser.forward

    def forward(*args, **kwargs):
        output = half(*args, **kwargs)
        output.sample = torch.cat([output.sample, torch.zeros_like(output.sample)], 1)
        return output

    plain = ideal_pipeline(Gaussian(), "vp", "epsilon", clip_sample=False)
    pipeline.denoiser.forward = forward
    for name in SAMPLERS:
        if name == "ddpm":
            continue
        draws = []
        for each in (pipeline, plain):
            each.use_scheduler(name)
            generator = torch.Generator().manual_seed(0)
            draws.append(each(2, num_inference_steps=4, generator=generator, output_type="latent").images)
        assert torch.equal(*draws)


def test_an_option_that_a_scheduler_does_not_have_is_refused():
    pipeline = ideal_pipeline(Gaussian())
    with pytest.raises(ValueError, match=r"'dpmsolver\+\+' has no option solver_ordr\. It has: num_train"):
        pipeline.use_scheduler("dpmsolver++", solver_ordr=3)
    pipeline.use_scheduler("rectified_flow", solver_type="heun")
    assert pipeline.scheduler.config.solver == "heun"

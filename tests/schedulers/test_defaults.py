"""Defaults: those of diffusers' schedulers, except for the few in `CHANGED`, and the published ones of the others."""

import inspect

import diffusers
import pytest

import hfgen
from hfgen.schedulers.configuration import present_names

CHANGED = {
    "DDPMScheduler": ("DDPMScheduler", {"timestep_spacing": "trailing"}),
    "DDIMScheduler": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    "DDIMInverseScheduler": ("DDIMInverseScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    "DPMSolverPlusPlusScheduler": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
}
"""Class -> that of diffusers, and the defaults that differ."""

LIMITS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
OWN = {
    "DDPMScheduler": {"data_variances": None, "trajectory": "spaced"},
    "DDIMScheduler": {"optimal_variance": False, "variance_type": None, "data_variances": None},
    "DDIMInverseScheduler": {"corrector": True, **LIMITS},
    "DPMSolverPlusPlusScheduler": {"method": None, "grid_type": None},
}
"""Class -> the defaults of options that diffusers does not have, besides the path."""

PATH = {"path": None, "sigma_min": None, "sigma_max": None}
TABLE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}


def defaults(cls):
    cls()  # the defaults go together
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", CHANGED)
def test_defaults_are_those_of_diffusers(name):
    theirs, changed = CHANGED[name]
    found, expected = defaults(getattr(hfgen, name)), defaults(getattr(diffusers, theirs))
    own = {**OWN[name], **PATH}
    assert found.keys() - expected.keys() == own.keys()
    assert found == {key: expected[key] for key in found if key in expected} | changed | own
    assert all(expected[key] != value for key, value in changed.items())


def test_defaults_of_flow_matching_and_of_the_sde():
    flow = {"solver": "predictor_corrector", "shift": 1.0, "power": 1.0, "solver_type": None}
    flow |= {"prediction_type": "flow_prediction"}
    assert defaults(hfgen.RectifiedFlowScheduler) == {**TABLE, **PATH, **flow, "path": "straight"}
    sde = {"corrector_steps": 0, "snr": 0.16, "prediction_type": "epsilon"}  # the r of Song et al.
    sde |= {"timestep_spacing": "linspace", "steps_offset": 0}
    assert defaults(hfgen.ScoreSDEScheduler) == {**TABLE, **PATH, **sde}


CHAINS = {
    "GradientDescentScheduler": {"step_size": 0.05, "momentum": 0.0, "tolerance": 0.0, "initial_scale": 1.0},
    "HamiltonianScheduler": {"step_size": 0.01, "leapfrog_steps": 10, "temperature": 1.0, "initial_scale": 1.0},
    "LangevinScheduler": {
        "step_size": 0.01, "temperature": 1.0, "quiet": 0.0, "clip": None, "bound": None, "initial_scale": 1.0,
    },
}  # fmt: skip
"""Class -> the defaults of what follows an energy: at T = 1, where samples have the density exp(-E) / Z."""


def test_defaults_of_chains_and_of_flow_maps():
    for name, expected in CHAINS.items():
        assert defaults(getattr(hfgen, name)) == expected
    annealed = {"steps_per_level": 3, "snr": 0.1, "prediction_type": "epsilon", "path": "ve"}
    assert defaults(hfgen.AnnealedLangevinScheduler) == {**TABLE, **PATH, **annealed}
    few = {"start_ratio": None, "shift": 1.0, "prediction_type": "flow_prediction", "path": "straight"}
    assert defaults(hfgen.ConsistencyScheduler) == {**TABLE, **PATH, **few}


def test_no_scheduler_is_without_a_test_of_its_defaults():
    flows = {"RectifiedFlowScheduler", "ScoreSDEScheduler", "AnnealedLangevinScheduler", "ConsistencyScheduler"}
    found = {name for name in dir(hfgen) if name.endswith("Scheduler")}
    assert found == {*CHANGED, *CHAINS, *flows}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("AnnealedLangevinScheduler", 50),
        ("ConsistencyScheduler", 1),
        ("GradientDescentScheduler", 50),
        ("HamiltonianScheduler", 100),
        ("LangevinScheduler", 100),
        ("DDPMScheduler", 1000),
        ("ScoreSDEScheduler", 1000),
        ("DDIMScheduler", 50),
        ("DDIMInverseScheduler", 50),
        ("DPMSolverPlusPlusScheduler", 20),
        ("RectifiedFlowScheduler", 20),
    ],
)
def test_numbers_of_steps_without_a_choice(name, steps):
    scheduler = getattr(hfgen, name)()
    scheduler.set_timesteps()
    assert scheduler.num_inference_steps == steps


def test_a_present_name_wins_over_a_former_one():
    former = {"_class_name": "RectifiedFlowScheduler", "solver_type": "heun", "shift": 2.0}
    assert present_names(former) == {"_class_name": "RectifiedFlowScheduler", "solver": "heun", "shift": 2.0}
    both = {**former, "solver": "euler"}
    assert present_names(both) == both
    assert present_names({**former, "_class_name": "DDIMScheduler"}) == {**former, "_class_name": "DDIMScheduler"}

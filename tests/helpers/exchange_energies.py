"""The law of exchange for energies: chains and descents by every route, with a perfect energy of a Gaussian."""

import itertools
from typing import Any, NamedTuple

import diffusers
import torch
from torch import nn

import hfgen
from hfgen.models.energy import EnergyOutput
from hfgen.registry import ENERGY_SAMPLERS
from tests.helpers.exchange import ROUTES, latents, product, reload
from tests.helpers.gaussian import Gaussian, ideal_pipeline

DATA = Gaussian(0.5, 0.1)
STEP = 0.002
"""h, a fifth of the variance: Langevin steps alone make the variance 1 / (1 - h / (2 s^2)) = 1.11 times too large."""


class EnergyCase(NamedTuple):
    """A scheduler of energies with its options, how it was made, and the scheduler that the pipeline had."""

    name: str
    options: dict[str, Any]
    route: str
    former: str

    @property
    def deviation(self) -> float:
        """The standard deviation of what is drawn: exp(-E / T) / Z is T times as wide as at T = 1, a descent ends at
        the minimum."""
        temperature = 0.0 if self.name == "GradientDescentScheduler" else self.options.get("temperature", 1.0)
        return DATA.std * temperature**0.5

    @property
    def steps(self) -> int:
        """Steps that forget the start: fewer of moves of several leapfrog steps, which go further."""
        return 40 if self.options.get("leapfrog_steps", 1) > 1 else 150


CHAINS = ("GradientDescentScheduler", "LangevinScheduler", "HamiltonianScheduler")


def chains() -> list[tuple[str, dict[str, Any]]]:
    """Return the schedulers of energies with the values of their options."""
    table = {
        "GradientDescentScheduler": product(momentum=(0.0, 0.35), tolerance=(0.0, 0.01)),
        "LangevinScheduler": [
            *product(temperature=(1.0, 0.25), quiet=(0.0, 0.5)),
            {"temperature": 0.0},
            {"clip": 30.0},
            {"bound": 1.0},
            {"initial_scale": 2.0},
        ],
        "HamiltonianScheduler": [
            *product(leapfrog_steps=(1, 4), temperature=(1.0, 0.25)),
            {"leapfrog_steps": 4, "initial_scale": 0.5},
        ],
    }
    return [(name, {"step_size": STEP, **options}) for name, choices in table.items() for options in choices]


def energy_cases() -> list[EnergyCase]:
    """Return the whole product."""
    return [EnergyCase(*chain, route, former) for chain in chains() for route in ROUTES for former in CHAINS]


class Parabola(nn.Module):
    """E(x) = |x - mean|^2 / (2 s^2) and its gradient, in closed form."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, sample, with_gradient=False):
        away = (sample - DATA.mean) / DATA.std
        gradient = away / DATA.std if with_gradient else None
        return EnergyOutput(energy=away.square().flatten(1).sum(1) / 2, gradient=gradient)


def energy_pipeline(former: str = "GradientDescentScheduler") -> Any:
    """Return a pipeline for that energy of single numbers, with a scheduler of this class."""
    scheduler = getattr(hfgen, former)(STEP)
    pipeline = hfgen.EnergyPipeline(hfgen.TorchModel(Parabola(), (1,)), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _made(case: EnergyCase, pipeline: Any) -> Any:
    """Return the scheduler of the case by its route; None where the pipeline has been given it."""
    cls = getattr(hfgen, case.name)
    if case.route == "swapped":
        names = [name for name, (class_name, preset) in ENERGY_SAMPLERS.items() if class_name == case.name]
        chosen = next((name for name in names if name in ("langevin", "hmc", "gradient_descent")), names[0])
        return pipeline.use_scheduler(chosen, **case.options)
    made = cls(**case.options)
    if case.route == "saved":
        return reload(made)
    if case.route == "there and back":
        between = [getattr(hfgen, name) for name in CHAINS if name != case.name]
        for other in [*between, diffusers.DDIMScheduler]:
            made = cls.from_config(other.from_config(made.config).config)
    return made


def energy_verdict(case: EnergyCase) -> str:
    """Return "right", "refused", or what is wrong with the samples of this case."""
    pipeline = energy_pipeline(case.former)
    try:
        made = _made(case, pipeline)
    except ValueError as error:  # moves at T = 0 are not accepted by any rule
        cold = case.options.get("temperature") == 0.0 and "temperature=0.0 must be positive" in str(error)
        return "refused" if cold else f"{case}: {error}"
    if made is not None:
        pipeline.scheduler = made
    noise = latents().reshape(-1, 1)
    generator = torch.Generator().manual_seed(0)
    x = pipeline(latents=noise, num_inference_steps=case.steps, generator=generator, output_type="latent").images
    mean, deviation = float(x.double().mean()), float(x.double().std())
    right = abs(mean - DATA.mean) < 0.015 and abs(deviation - case.deviation) < 0.1 * case.deviation + 1e-3
    return "right" if right else f"{case}: mean {mean:.4f}, deviation {deviation:.4f}, not {case.deviation:.4f}"


def crossings() -> list[tuple[str, Any]]:
    """Return what each must be refused by name: what it is, and a function. A path is no energy, nor the other way."""
    of_paths = ("DDPMScheduler", "DDIMScheduler", "DPMSolverPlusPlusScheduler", "RectifiedFlowScheduler")
    of_paths += ("ScoreSDEScheduler", "ConsistencyScheduler")
    theirs = (diffusers.DDIMScheduler, diffusers.UniPCMultistepScheduler, diffusers.FlowMatchEulerDiscreteScheduler)
    paths = [getattr(hfgen, name) for name in of_paths] + list(theirs)
    chain_classes = [getattr(hfgen, name) for name in CHAINS]
    found = []
    for cls, given in itertools.product(chain_classes, ("stated", "of the call")):
        found.append((f"{cls.__name__} {given} to a denoiser", lambda c=cls, g=given: _draw(_denoiser(), c(), g)))
    for cls, given in itertools.product(paths, ("stated", "of the call")):
        found.append((f"{cls.__name__} {given} to an energy", lambda c=cls, g=given: _draw(energy_pipeline(), c(), g)))
    for cls, chain in itertools.product(paths[: len(of_paths)], chain_classes):
        name = f"{cls.__name__} from the configuration of {chain.__name__}"
        found.append((name, lambda c=cls, d=chain: c.from_config(d().config)))
    return found


def _denoiser() -> Any:
    return ideal_pipeline(DATA, "vp", "epsilon")


def _draw(pipeline: Any, scheduler: Any, given: str) -> None:
    """Draw two steps with a scheduler, given in place of the pipeline's or to the call."""
    if given == "stated":
        pipeline.scheduler = scheduler
        pipeline(2, num_inference_steps=2, output_type="latent")
    else:
        pipeline(2, num_inference_steps=2, output_type="latent", scheduler=scheduler)

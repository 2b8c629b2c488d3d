"""The cases of the law that an exchange of schedulers keeps the distribution: schedulers, options, networks, routes."""

import itertools
import tempfile
from typing import Any, NamedTuple

import diffusers
import torch

import hfgen
from hfgen.paths import PREDICTIONS
from hfgen.registry import PATHS, SAMPLERS
from tests.helpers.exchange_variances import SPACINGS, VARIANCES, knowing_pipeline
from tests.helpers.gaussian import Gaussian, Mixture1D, ideal_pipeline

KINDS = tuple(PREDICTIONS)
ROUTES = ("fresh", "saved", "swapped", "there and back")
PROBLEMS = {"gaussian": Gaussian(0.5, 0.1), "wide": Gaussian(0.1, 0.3), "mixture": Mixture1D((-0.3, 0.7), 0.1)}
SIDE = 16


class Case(NamedTuple):
    """A scheduler with its options, the path and prediction kind of the network, how the scheduler was made, and what
    the network knows of variances (one of `VARIANCES`), or None."""

    name: str
    options: dict[str, Any]
    path: str
    kind: str
    route: str
    variance: str | None = None

    @property
    def theirs(self) -> bool:
        """Whether the scheduler is one of diffusers'."""
        return self.name.startswith("diffusers.")

    @property
    def draws_known(self) -> bool:
        """Whether steps have the variance that the network knows; elsewhere it is not used."""
        return self.variance is not None and (self.name == "DDPMScheduler" or "optimal_variance" in self.options)

    @property
    def problem(self) -> str:
        """The data. Wide ones tell the best variance of a step from those that only bound it."""
        return "wide" if self.draws_known else "gaussian"

    @property
    def steps(self) -> int:
        """Steps of the case: more for methods of first order, and for those of second order with one at the end; all of
        the training for a network that knows the variances of these."""
        if self.draws_known:
            return {"learned": 1000, "learned_range": 100}.get(self.variance, 50)
        options = {**self.options, "solver": self.options.get("solver", "")}
        first = self.name in FIRST_ORDER or "sde" in options.get("algorithm_type", "") or "shift" in options
        first = first or options["solver"] in ("euler", "flow_map")
        return 100 if first or options.get("solver_order") == 1 else 50

    @property
    def tolerance(self) -> float:
        """Largest relative error of the deviation. With the smallest variance it would be .064 to .18."""
        if self.draws_known:  # the times of the least bound are not those of the best deviation
            return 0.1 if "trajectory" in self.options else 0.06
        if self.name == "AnnealedLangevinScheduler":  # three steps are few at the level where the data end
            return 0.4
        return 30 / self.steps if self.steps == 100 else 0.35


FIRST_ORDER = {"AnnealedLangevinScheduler", "DDPMScheduler", "DDIMScheduler", "ScoreSDEScheduler"} | {
    f"diffusers.{name}Scheduler"
    for name in ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "EulerDiscrete", "EulerAncestralDiscrete")
}
GRIDS = ("balanced", "lambda", "karras", "spacing")


def product(**values: tuple) -> list[dict[str, Any]]:
    """Return every choice of a value for each option."""
    return [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]


def ours() -> list[tuple[str, dict[str, Any]]]:
    """Return our schedulers with the values of their options."""
    algorithms = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
    rules, orders = ("midpoint", "heun"), (1, 2, 3)
    table = {
        "DDPMScheduler": product(
            variance_type=("fixed_small", "fixed_large"), timestep_spacing=SPACINGS, clip_sample=(True, False)
        ),
        "DDIMScheduler": [
            *product(timestep_spacing=SPACINGS, set_alpha_to_one=(True, False), clip_sample=(True, False)),
            {"thresholding": True},
        ],
        "RectifiedFlowScheduler": [
            *product(solver=("predictor_corrector", "adams_bashforth2", "euler", "midpoint", "heun"), power=(1.0, 2.0)),
            *product(solver=("predictor_corrector", "euler"), shift=(0.5, 2.0)),
            {"solver": "flow_map"},
        ],
        "AnnealedLangevinScheduler": product(steps_per_level=(3, 8), snr=(0.1, 0.3)),
        "ScoreSDEScheduler": product(corrector_steps=(0, 1), timestep_spacing=SPACINGS),
        "DPMSolverPlusPlusScheduler": [
            {},
            *product(solver_order=orders, grid_type=GRIDS),
            *product(
                method=("multistep", "singlestep"),
                solver_order=orders,
                solver_type=rules,
                algorithm_type=algorithms,
                grid_type=GRIDS,
            ),
            *product(
                method=("multistep",), solver_order=(2, 3), lower_order_final=(False,), euler_at_final=(True, False)
            ),
            *product(method=("predictor_corrector", "multistep", "singlestep"), final_sigmas_type=("sigma_min",)),
            *product(timestep_spacing=SPACINGS),
            {"thresholding": True},
            *({flag: True} for flag in ("use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas")),
        ],
    }
    return [(name, options) for name, choices in table.items() for options in choices]


def knowing() -> list[tuple[str, dict[str, Any], str]]:
    """Return schedulers, options and kinds of variance that the network knows: those that draw with it, and others."""
    cases = []
    for variance in VARIANCES:
        own = product(timestep_spacing=SPACINGS, clip_sample=(True, False))
        own += [{"trajectory": "optimal"}] if variance == "analytic" else []
        optimal = [] if variance.startswith("learned") else product(optimal_variance=(True,), clip_sample=(True, False))
        table: dict[str, list[dict[str, Any]]] = {
            "DDPMScheduler": [{"variance_type": variance, **options} for options in own],
            "DDIMScheduler": [{}, *optimal],
            "DPMSolverPlusPlusScheduler": [{}, {"method": "multistep", "algorithm_type": "sde-dpmsolver++"}],
            "RectifiedFlowScheduler": [{}],
            "ScoreSDEScheduler": [{}],
            "AnnealedLangevinScheduler": [{}],
        }
        cases += [(name, options, variance) for name, choices in table.items() for options in choices]
    return cases


def theirs() -> list[tuple[str, dict[str, Any]]]:
    """Return diffusers' schedulers with the values of their options."""
    sde = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
    table: dict[str, list[dict[str, Any]]] = {
        "DDIM": product(timestep_spacing=SPACINGS, clip_sample=(True, False)),
        "DDIMParallel": [{}],
        "DDPM": product(timestep_spacing=SPACINGS, variance_type=("fixed_small", "fixed_large")),
        "DDPMParallel": [{}],
        "EulerDiscrete": [*product(timestep_spacing=SPACINGS), {"use_karras_sigmas": True}],
        "EulerAncestralDiscrete": product(timestep_spacing=SPACINGS),
        "HeunDiscrete": [{}, {"use_karras_sigmas": True}],
        "KDPM2Discrete": [{}],
        "KDPM2AncestralDiscrete": [{}],
        "LMSDiscrete": [{}, {"use_karras_sigmas": True}],
        "PNDM": [{}, {"skip_prk_steps": True}],
        "DPMSolverMultistep": [
            *product(solver_order=(1, 2, 3), solver_type=("midpoint", "heun")),
            *product(solver_order=(1, 2), algorithm_type=("sde-dpmsolver++",)),
            {**sde, "solver_order": 2},
            {"use_karras_sigmas": True},
            {"use_lu_lambdas": True},
            {"timestep_spacing": "trailing"},
        ],
        "DPMSolverSinglestep": [
            *product(solver_order=(1, 2, 3), solver_type=("midpoint", "heun")),
            {"use_karras_sigmas": True},
        ],
        "DEISMultistep": [{}, {"solver_order": 2}],
        "UniPCMultistep": [*product(solver_order=(1, 2, 3), solver_type=("bh1", "bh2")), {"use_karras_sigmas": True}],
        "SASolver": [{}],
        "FlowMatchEulerDiscrete": [{}, {"shift": 2.0}],
        "FlowMatchHeunDiscrete": [{}],
        "FlowMatchLCM": [{}],
        "EDMEuler": [{}],
        "EDMDPMSolverMultistep": [{}],
        "CMStochasticIterative": [{}],
        "CogVideoXDDIM": [{}],
        "DDIMInverse": [{}],
        "IPNDM": [{}],
        "LCM": [{}],
        "TCD": [{}],
        "SCM": [{}],
        "LTXEulerAncestralRF": [{}],
    }
    return [(f"diffusers.{name}Scheduler", options) for name, choices in table.items() for options in choices]


TABLE_ONLY = {"DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "EulerDiscrete", "HeunDiscrete", "LMSDiscrete"}
SOLVERS = {"DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver"}
NO_SAMPLE = {"PNDM", "EulerAncestralDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"}


def accepted(case: Case) -> bool:
    """Return whether the case draws; all others are refused."""
    if not case.theirs:
        single = case.options.get("method") == "singlestep" and case.options.get("algorithm_type") == "sde-dpmsolver"
        return not (single and case.options["solver_order"] > 1)
    name = case.name.removeprefix("diffusers.").removesuffix("Scheduler")
    straight = case.options.keys() & {"use_karras_sigmas", "use_lu_lambdas"} and name != "UniPCMultistep"
    straight = straight or case.options.get("algorithm_type") == "sde-dpmsolver"
    if case.options.get("solver_type") == "bh1" or (case.path == "straight" and straight):
        return False  # not finite in diffusers itself
    if (name, case.options, case.path) == ("PNDM", {}, "cosine"):
        return False
    if case.path in ("vp", "cosine"):
        kinds = {"epsilon", "v_prediction"} | ({"sample"} if name in TABLE_ONLY | SOLVERS else set())
        return name in TABLE_ONLY | SOLVERS | NO_SAMPLE and case.kind in kinds
    if case.path != "straight":
        return False
    if name in SOLVERS:
        return case.kind in {"sample", "flow_prediction"} | (set() if name == "UniPCMultistep" else {"epsilon"})
    return name in ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete") and case.kind == "flow_prediction"


def reload(scheduler: Any) -> Any:
    """Return a scheduler from the folder that it was saved to."""
    with tempfile.TemporaryDirectory() as folder:
        scheduler.save_pretrained(folder)
        return type(scheduler).from_pretrained(folder)


def give_scheduler(pipeline: Any, case: Case) -> None:
    """Give the pipeline, whose scheduler states the network's facts, the scheduler of the case by its route."""
    facts, model = {**PATHS[case.path], "prediction_type": case.kind}, pipeline.scheduler
    if case.theirs:
        cls = getattr(diffusers, case.name.removeprefix("diffusers."))
        source = reload(model) if case.route in ("saved", "swapped") else model
        made = cls.from_config(source.config, **case.options)
        made = reload(made) if case.route == "saved" else made
        if case.route == "there and back":  # through ours, and to theirs again
            made = cls.from_config(type(model).from_config(made.config).config, **case.options)
        pipeline.scheduler = made
        return
    cls = getattr(hfgen, case.name)
    if case.route == "swapped":
        name = next(name for name, (class_name, _) in SAMPLERS.items() if class_name == case.name)
        return pipeline.use_scheduler(name, **case.options)
    # With known variances from the model's own: a class without the option keeps the fact that channels are two halves.
    made = cls(**facts, **case.options) if case.variance is None else cls.from_config(model.config, **case.options)
    if case.route == "saved":
        made = reload(made)
    if case.route == "there and back":  # through a class of diffusers that takes the configuration
        algorithm = "algorithm_type" in case.options  # not every solver of theirs has every algorithm
        between = diffusers.DDIMScheduler if algorithm else diffusers.UniPCMultistepScheduler
        made = cls.from_config(between.from_config(made.config).config)
    pipeline.scheduler = made


def latents() -> torch.Tensor:
    """Return noise (4, 1, SIDE, SIDE) whose mean and deviation are those of a normal distribution."""
    count = 4 * SIDE**2
    share = (torch.randperm(count, generator=torch.Generator().manual_seed(0)) + 0.5) / count
    return (torch.erfinv(2 * share - 1) * 2**0.5).view(4, 1, SIDE, SIDE)


def verdict(case: Case, problem: str | None = None, pipelines: dict | None = None) -> str:
    """Return "right", "refused", or what is wrong with the samples of this case, of a problem or of its own."""
    problem = case.problem if problem is None else problem
    pipelines = {} if pipelines is None else pipelines
    key = (problem, case.path, case.kind, case.variance)
    if key not in pipelines:
        place = PROBLEMS[problem], case.path, case.kind, SIDE
        pipeline = ideal_pipeline(*place) if case.variance is None else knowing_pipeline(*place, case.variance)
        pipelines[key] = pipeline, pipeline.scheduler
    pipeline, model = pipelines[key]
    pipeline.scheduler = model
    try:
        give_scheduler(pipeline, case)
        generator = torch.Generator().manual_seed(0)
        x = pipeline(
            4, num_inference_steps=case.steps, generator=generator, latents=latents(), output_type="latent"
        ).images
    except (ValueError, NotImplementedError) as error:
        return f"{case} is not refused but right" if accepted(case) else "refused" if str(error) else "no message"
    if not accepted(case):
        return f"{case} is drawn and not refused"
    mean, deviation = float(x.double().mean()), float(x.double().std())
    target = PROBLEMS[problem]
    wrong = abs(mean - target.mean) > 0.03 or abs(deviation / target.std - 1) > case.tolerance
    return f"{case}: mean {mean:.3f}, deviation {deviation:.4f}" if wrong or not x.isfinite().all() else "right"

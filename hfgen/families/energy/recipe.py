"""The recipe of an energy model: network, objective and scheduler that belong together, and refusals."""

import copy
from pathlib import Path
from typing import Any

import torch

import hfgen

from ...options import DataArgs
from ...registry import ENERGY_SAMPLERS, resolve, sampler
from ...utils.seeds import seed_initialisation
from ..diffusion.recipe import check_guidance
from ..finish import Finished
from ..rollback import check_rollback
from .divergence import DivergenceMonitor
from .options import MOVES, ChainArgs, EnergyArgs, EnergyObjectiveArgs, EnergySolverArgs, EnergyTrainArgs, GuardArgs

TITLES = {
    "equilibrium": "Equilibrium matching",
    "energy_matching": "Energy matching",
    "contrastive": "Contrastive divergence",
    "score": "Noise-conditional score",
}

SAMPLERS_OF = {
    "equilibrium": "nesterov",
    "energy_matching": "langevin",
    "contrastive": "langevin",
    "score": "annealed_langevin",
}
"""Objective -> the scheduler that draws samples by default."""

DESCENT_STEP = 0.05
"""Step of descents and chains on an energy of equilibrium matching: a quarter of `decay`, by default."""

DEFAULT_GAP_STEPS = 500
"""Steps between measurements of the gap where no checkpoints are saved."""

COLD = 0.001
"""Temperature of chains on such an energy."""


class EnergyRecipe:
    """Network, objective and scheduler of an energy model.

    Attributes:
        title, kind: names of the model.

    Args:
        data_args, network_args, objective_args, chain_args, guard_args, solver_args, args: the options.

    Raises:
        ValueError: options that do not go together, before any data are read.
    """

    kind = "energy"

    def __init__(
        self,
        data_args: DataArgs,
        network_args: EnergyArgs,
        objective_args: EnergyObjectiveArgs,
        chain_args: ChainArgs,
        guard_args: GuardArgs,
        solver_args: EnergySolverArgs,
        args: EnergyTrainArgs,
    ):
        self.network_args, self.objective_args, self.chain_args = network_args, objective_args, chain_args
        self.guard_args, self.solver_args, self.args = guard_args, solver_args, args
        self.title = TITLES[objective_args.objective]
        self._check_form()
        self.scheduler()
        if self.chains and self.gap_steps:
            check_rollback(self.on_alarm, self.gap_steps, args, "on_divergence", "gap_steps")
        check_guidance(solver_args.guidance_scale, network_args.class_conditional, objective_args.label_dropout)
        if data_args.resolution is not None:
            with torch.device("meta"):
                hfgen.build_denoiser(network_args.model, network_args.model_size, data_args.resolution, 3)

    @property
    def chains(self) -> bool:
        """Whether the objective draws negatives by chains."""
        return self.objective_args.objective in ("contrastive", "energy_matching")

    @property
    def gap_steps(self) -> int:
        """Number of steps between measurements of the gap; 0: never."""
        given = self.guard_args.gap_steps
        return (self.args.checkpointing_steps or DEFAULT_GAP_STEPS) if given is None else given

    @property
    def on_alarm(self) -> str:
        """What follows a divergence."""
        return self.guard_args.on_divergence or ("rollback" if self.args.checkpointing_steps else "stop")

    def monitor(self, objective: Any, data: Any, output: Path) -> DivergenceMonitor | None:
        """Return the monitor of a training with chains; None for a regression, which does not diverge so."""
        if not self.chains:
            return None
        kept = objective.state.get("chains")
        return DivergenceMonitor(self.guard_args, self.gap_steps, self.on_alarm, kept, data, output, self.args.seed)

    @staticmethod
    def finished(pipeline: Any, monitor: DivergenceMonitor | None) -> Finished:
        """Return the finished pipeline, with what the monitor measured."""
        if monitor is None:
            return Finished(pipeline)
        return Finished(pipeline, {"energies": monitor.alarms()}, monitor.entries())

    def network(self, resolution: Any, channels: int, classes: int | None) -> hfgen.EnergyModel:
        """Return the energy of these images."""
        args, objective = self.network_args, self.objective_args
        seed_initialisation(self.args.seed)
        options = (args.form, classes, self.args.gradient_checkpointing, objective.label_dropout > 0)
        return hfgen.build_energy(args.model, args.model_size, resolution, channels, *options)

    def objective(self, item_shape: tuple[int, ...], classes: int | None) -> Any:
        """Return the objective for items of this shape."""
        args = self.objective_args
        told = {"num_classes": classes, "label_dropout": args.label_dropout if classes is not None else 0.0}
        if args.objective == "score":
            return hfgen.NoiseConditionalScore(args.sigma_min, args.sigma_max, **told)
        if args.objective == "equilibrium":
            return hfgen.EquilibriumMatching(args.decay, coupling=args.coupling, **told)
        contrast = self._contrast(item_shape, told)
        if args.objective == "contrastive":
            return contrast
        flow = hfgen.EquilibriumMatching(args.decay, coupling=args.coupling, **told)
        return hfgen.EnergyMatching(flow, contrast, args.flow_steps, args.contrast)

    def scheduler(self) -> Any:
        """Return the scheduler that draws samples.

        Raises:
            ValueError: options that it does not have, or a number of steps that it does not take.
        """
        args, objective = self.solver_args, self.objective_args
        name = args.scheduler or SAMPLERS_OF[objective.objective]
        if (name == "annealed_langevin") != (objective.objective == "score"):
            raise ValueError(
                f"--scheduler {name} and --objective {objective.objective} do not go together: annealed_langevin goes "
                "through the levels of noise that score learns, and the others know no levels."
            )
        _refuse_idle(args, name)
        cls, preset = sampler(name, ENERGY_SAMPLERS)
        levels = {"sigma_min": objective.sigma_min, "sigma_max": objective.sigma_max, "path": "ve"}
        options = levels if name == "annealed_langevin" else self._chain_options(name)
        made = resolve(cls).from_config({**options, **preset})
        if args.num_inference_steps is not None:
            copy.deepcopy(made).set_timesteps(args.num_inference_steps)
        return made

    def _chain_options(self, name: str) -> dict[str, Any]:
        args, chain = self.solver_args, self.chain_args
        step = args.step_size or (chain.chain_step_size if self.chains else DESCENT_STEP)
        if name in ("gradient_descent", "nesterov"):
            momentum = {"momentum": args.momentum} if name == "nesterov" else {}
            return {"step_size": step, "tolerance": args.tolerance, **momentum}
        cold = chain.chain_temperature if self.chains else COLD
        options = {"step_size": step, "temperature": cold if args.temperature is None else args.temperature}
        if name == "langevin" and self.chains:
            options |= {"clip": chain.chain_clip, "bound": chain.chain_bound}
        return options

    def _contrast(self, item_shape: tuple[int, ...], told: dict[str, Any]) -> hfgen.ContrastiveDivergence:
        args = self.chain_args
        sizes = (args.chain_steps, args.chain_step_size, args.chain_temperature, args.chain_clip, args.chain_bound)
        kept = hfgen.PersistentChains(args.num_chains, item_shape) if args.start == "persistent" else None
        numbers = (args.restart, args.energy_penalty, args.data_noise)
        return hfgen.ContrastiveDivergence(hfgen.Langevin(*sizes), args.start, kept, *numbers, **told)

    def _check_form(self) -> None:
        """Raise ValueError for a field where an energy is needed."""
        if self.network_args.form == "field" and self.chains:
            raise ValueError(
                f"--form field has no energy, and --objective {self.objective_args.objective} compares energies. Use "
                "--form dot or scalar."
            )
        if self.network_args.form == "field" and self.solver_args.scheduler in ("mala", "hmc"):
            raise ValueError(f"--scheduler {self.solver_args.scheduler} accepts moves by their energy: --form dot.")


def _refuse_idle(args: EnergySolverArgs, name: str) -> None:
    """Raise ValueError for options that the scheduler of this name, which may be the default one, does not have."""
    defaults = EnergySolverArgs()
    for option, names in {
        "step_size": ("gradient_descent", "nesterov", *MOVES),
        "temperature": MOVES,
        "momentum": ("nesterov",),
        "tolerance": ("gradient_descent", "nesterov"),
    }.items():
        value = getattr(args, option)
        if value != getattr(defaults, option) and name not in names:
            raise ValueError(f"--{option} {value} does nothing with --scheduler {name}, which is chosen. Leave it out.")

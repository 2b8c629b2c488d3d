"""Options of energy models. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...command_line.option_rules import NEVER
from ...options import DataArgs, Options, SampleArgs, TrainArgs, option, variant
from ...registry import ENERGY_SAMPLERS
from ...utils.ranges import ABOVE_0, AT_LEAST_0, BELOW_1, COUNT, COUNT_OR_0, PROBABILITY, SHARE
from ..diffusion.options import DenoiserArgs, NoiseArgs

REGRESSIONS = {"objective": ("equilibrium", "energy_matching")}
CHAINS = {"objective": ("contrastive", "energy_matching")}
LEVELS = {"objective": ("score",)}
PERSISTENT = {"start": ("persistent",)}
MOVES = ("langevin", "mala", "hmc")


@dataclasses.dataclass
class EnergyArgs(Options):
    """Network"""

    COMMON = ("model", "model_size", "form", "class_conditional")

    model: Literal["patch_unet", "unet", "dit", "uvit"] = variant(
        DenoiserArgs, "model", "patch_unet", "architecture of the denoiser f that the energy is made of"
    )
    model_size: Literal["xs", "s", "m", "l"] = variant(DenoiserArgs, "model_size", "s")
    form: Literal["dot", "scalar", "field"] = option(
        "dot",
        "the energy; dot: <x, f(x)>; scalar: the sum of f(x); field: none, f(x) stands for the gradient, which trains "
        "two to three times as fast",
    )
    class_conditional: bool = variant(DenoiserArgs, "class_conditional", False)


@dataclasses.dataclass
class EnergyObjectiveArgs(Options):
    """Objective"""

    COMMON = ("objective", "label_dropout")

    objective: Literal["equilibrium", "energy_matching", "contrastive", "score"] = option(
        "equilibrium",
        "equilibrium: flow matching without a clock; energy_matching: the same, then with contrastive divergence; "
        "contrastive: contrastive divergence; score: denoising at many levels of noise (NCSN)",
    )
    decay: float = option(
        0.2, "time from which on the slope of the energy falls to zero at the data", REGRESSIONS, range=SHARE
    )
    coupling: Literal["independent", "optimal"] = option(
        "independent",
        "noise of an image; optimal: the nearest in the batch (mini-batch optimal transport)",
        REGRESSIONS,
    )
    sigma_min: float = option(0.01, "least noise, for pixels in [-1, 1]", LEVELS, range=ABOVE_0)
    sigma_max: float = option(10.0, "most noise", LEVELS, range=ABOVE_0)
    flow_steps: int = option(
        1000,
        "optimiser steps before contrastive divergence sets in",
        {"objective": ("energy_matching",)},
        range=COUNT_OR_0,
    )
    contrast: float = option(
        1.0, "weight of contrastive divergence", {"objective": ("energy_matching",)}, range=AT_LEAST_0
    )
    label_dropout: float = variant(NoiseArgs, "label_dropout", 0.1)


@dataclasses.dataclass
class ChainArgs(Options):
    """Chains of the training"""

    ONLY_WITH = CHAINS
    COMMON = ("start",)

    start: Literal["persistent", "data", "noise"] = option(
        "persistent", "where chains begin; persistent: where earlier steps left them; data: CD-k"
    )
    num_chains: int = option(4096, "chains that are kept", PERSISTENT, range=COUNT)
    restart: float = option(0.05, "share of chains that begin anew from noise in a step", PERSISTENT, range=PROBABILITY)
    chain_steps: int = option(20, "Langevin steps of a chain in an optimiser step", range=COUNT)
    chain_step_size: float = option(0.05, "size of a Langevin step", range=ABOVE_0)
    chain_temperature: float = option(0.001, "temperature T: the model's density is exp(-E / T)", range=AT_LEAST_0)
    chain_clip: float | None = option(
        1.0, "largest root mean square of a gradient in a chain; null: any", range=ABOVE_0
    )
    chain_bound: float | None = option(1.0, "chains are clamped to [-bound, bound]; null: not clamped", range=ABOVE_0)
    energy_penalty: float = option(0.1, "weight of squared energies, which keeps them near zero", range=AT_LEAST_0)
    data_noise: float = option(0.03, "noise in the data, for pixels in [-1, 1]", range=AT_LEAST_0)


@dataclasses.dataclass
class GuardArgs(Options):
    """Guard against divergence"""

    ONLY_WITH = CHAINS
    COMMON = ()

    gap_steps: int | None = option(
        None,
        "compare the energies of samples and of data every so many steps; 0: never; default: checkpointing_steps",
        resumable=True,
        range=COUNT_OR_0,
    )
    most_gap: float = option(
        1.0,
        "difference of these energies, per dimension, above which training has diverged",
        resumable=True,
        range=ABOVE_0,
    )
    on_divergence: Literal["stop", "continue", "rollback"] | None = option(
        None,
        "rollback: continue from the last healthy checkpoint with half the learning rate, at most three times; "
        "default: rollback where checkpoints are saved, else stop",
        resumable=True,
    )


@dataclasses.dataclass
class EnergySolverArgs(Options):
    """Sampling by steps"""

    COMMON = ("scheduler",)

    scheduler: Literal[tuple(ENERGY_SAMPLERS)] | None = option(
        None,
        "chain or descent; default: nesterov for equilibrium, annealed_langevin for score, else langevin",
        resumable=True,
    )
    num_inference_steps: int | None = option(
        None, "steps of the scheduler; default: its own", resumable=True, range=COUNT
    )
    step_size: float | None = option(
        None, "size of a step; default: 0.05 for equilibrium, else chain_step_size", resumable=True, range=ABOVE_0
    )
    temperature: float | None = option(
        None,
        "of samples; default: chain_temperature, or 0.001",
        {"scheduler": (*MOVES, None)},
        resumable=True,
        range=AT_LEAST_0,
    )
    momentum: float = option(
        0.35, "Nesterov's momentum", {"scheduler": ("nesterov", None)}, resumable=True, range=BELOW_1
    )
    tolerance: float = option(
        0.0,
        "an image is finished when the root mean square of its gradient is at most this; 0: all steps are made",
        {"scheduler": ("gradient_descent", "nesterov", None)},
        resumable=True,
        range=AT_LEAST_0,
    )
    guidance_scale: float = option(
        1.0, "guidance of samples by class; 1: none", {"class_conditional": (True,)}, resumable=True, range=AT_LEAST_0
    )


@dataclasses.dataclass
class EnergyTrainArgs(TrainArgs):
    """Training"""

    optimizer: Literal["adamw", "muon", "rmsprop"] = variant(TrainArgs, "optimizer", "muon", "optimiser of the energy")
    gradient_checkpointing: bool = variant(
        TrainArgs,
        "gradient_checkpointing",
        False,
        "recompute activations: slower, less memory",
        only_with={"form": ("field",)},
    )
    torch_compile: bool = variant(
        TrainArgs,
        "torch_compile",
        False,
        "compile the networks; an energy is differentiated twice, which compiled networks can't be",
        only_with=NEVER,
    )


DESCRIPTION = "Train an energy of images: equilibrium matching, energy matching, contrastive divergence, NCSN."
EXAMPLE = "hfgen train energy --config energy_digits --max_train_steps 500"
GROUPS = (
    DataArgs,
    EnergyArgs,
    EnergyObjectiveArgs,
    ChainArgs,
    GuardArgs,
    EnergySolverArgs,
    SampleArgs,
    EnergyTrainArgs,
)

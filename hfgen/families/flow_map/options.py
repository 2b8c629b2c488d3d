"""Options of flow maps. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...command_line.option_rules import AnyOf, ValueRule
from ...options import DataArgs, Options, SampleArgs, SolverArgs, TrainArgs, option, variant
from ...utils.ranges import AT_LEAST_0, COUNT_OR_0, PROBABILITY, SHARE
from ..diffusion.options import DenoiserArgs
from ..reflow.options import MeasureArgs

FLOW = ValueRule("the folder of a rectified flow", "FOLDER", bool)


@dataclasses.dataclass
class FlowMapArgs(Options):
    """Flow map"""

    COMMON = ("pipeline", "method", "tangent", "learned_guidance_scale")

    pipeline: str | None = option(
        None, "folder of a trained rectified flow to start from; default: a new network", resumable=True, path=True
    )
    teacher: bool = option(
        True, "learn from the velocities of the pipeline, not from pairs of image and noise", AnyOf(("pipeline",))
    )
    method: Literal["improved_mean_flow", "mean_flow", "consistency", "shortcut", "flow_matching"] = option(
        "improved_mean_flow", "which intervals are learnt, and from what"
    )
    tangent: Literal["jvp", "difference"] = option(
        "difference", "change of the velocity along a trajectory; difference: over a step, jvp: its derivative"
    )
    step_share: float = option(0.05, "the step, as a share of the interval", {"tangent": ("difference",)}, range=SHARE)
    curriculum_steps: int = option(
        0,
        "optimiser steps over which flow matching becomes the method; 0: none",
        {"method": ("improved_mean_flow", "mean_flow", "consistency")},
        range=COUNT_OR_0,
    )
    flow_share: float = option(0.5, "share of images with intervals of length 0, as in flow matching", range=SHARE)
    learned_guidance_scale: float = option(
        1.0, "guidance of the velocities that are learnt, so that sampling needs none; 1: none", range=AT_LEAST_0
    )
    adaptive_power: float = option(
        0.5, "power p of the weight error^-p of an image; 0: all weigh the same", range=AT_LEAST_0
    )
    time_sampling: Literal["low_discrepancy", "uniform", "logit_normal"] = option(
        "low_discrepancy", "distribution of the times at which intervals begin"
    )
    gap_steps: int = option(
        100,
        "compare one step with the teacher's samples from the same noise every so many steps; 0: never",
        {"pipeline": FLOW, "teacher": (True,)},
        resumable=True,
        range=COUNT_OR_0,
    )
    label_dropout: float = option(
        0.1, "share of images that are trained on without their class, for guidance", range=PROBABILITY
    )


@dataclasses.dataclass
class NewNetworkArgs(DenoiserArgs):
    """Network"""

    ONLY_WITH = {"pipeline": (None,)}  # noqa: RUF012


@dataclasses.dataclass
class FlowMapSolverArgs(SolverArgs):
    """Sampling by steps"""

    scheduler: str | None = variant(SolverArgs, "scheduler", "flow_map")
    num_inference_steps: int | None = variant(SolverArgs, "num_inference_steps", 4)


@dataclasses.dataclass
class FlowMapTrainArgs(TrainArgs):
    """Training"""

    init_from: str | None = variant(TrainArgs, "init_from", None, only_with={"pipeline": (None,)})


DESCRIPTION = "Train a flow map, which draws images in one, two or a few steps, from a trained rectified flow or anew."
EXAMPLE = "hfgen train flow_map --pipeline outputs/quickstart --max_train_steps 500"
GROUPS = (FlowMapArgs, DataArgs, NewNetworkArgs, FlowMapSolverArgs, SampleArgs, MeasureArgs, FlowMapTrainArgs)

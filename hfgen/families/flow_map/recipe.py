"""The recipe of a flow map: its network and its teacher, the objective, and measurements in few steps."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import hfgen

from ...data.images import ImageData
from ...metrics.feature_network import FeatureNetwork
from ...models.flow_map_network import with_two_times
from ...options import TrainArgs
from ...paths import path_from_config, prediction_row
from .. import few_steps
from ..finish import Finished
from ..reflow.recipe import load_teacher
from ..teacher_gap import TeacherGap
from ..trained_pipeline import shown_name
from .options import FlowMapArgs, NewNetworkArgs


@dataclasses.dataclass(frozen=True)
class Start:
    """What the training of a flow map begins with.

    Attributes:
        networks: "denoiser", and "teacher" if there is one.
        flow: the trained pipeline; None: there is none.
        classes, names: number and names of the classes.
    """

    networks: dict[str, Any]
    flow: Any
    classes: int | None
    names: list[str] | None

    def pipeline(self, networks: Mapping[str, Any], scheduler: Any) -> Any:
        """Return the pipeline of a flow map: like that of the flow, if there is one."""
        if self.flow is not None:
            return self.flow.with_denoiser(networks["denoiser"], scheduler)
        return hfgen.DenoisingPipeline(networks["denoiser"], scheduler, self.classes, self.names)

    @property
    def judged(self) -> Any:
        """What says the shape of the images that are measured, as `sample_shape`."""
        return self.flow or self.networks["denoiser"]


def load_flow(args: FlowMapArgs, output: str) -> Any:
    """Return the pipeline to start from, or None.

    Raises:
        ValueError: the pipeline is no rectified flow, or lies in the folder of the output.
    """
    if args.pipeline is None:
        return None
    flow = load_teacher(args.pipeline, output)
    point = path_from_config(flow.scheduler.config)(torch.tensor([0.2, 0.7], dtype=torch.float64))
    kind = flow.scheduler.config.prediction_type
    if not all(map(torch.equal, prediction_row(kind)(point), (point.d_alpha, point.d_sigma))):
        raise ValueError(
            f"{args.pipeline} predicts {kind}, and a flow map is made of velocities. Train a flow with "
            "--prediction_type flow_prediction."
        )
    with_two_times(flow.denoiser)  # refuses a network that can't be one, before images are read
    return flow


def start_of(flow: Any, args: FlowMapArgs, network_args: NewNetworkArgs, train_args: TrainArgs, run: Any) -> Start:
    """Return the networks: that of the flow with a second time, or a new one for the data of the run.

    Raises:
        ValueError: the flow draws images of another shape, or the data have no labels for classes.
    """
    if flow is None:
        classes, data = run.num_classes(network_args.class_conditional), run.data
        network = hfgen.build_denoiser(
            network_args.model,
            network_args.model_size,
            data.resolution,
            data.channels,
            classes,
            null_class=args.label_dropout > 0,
            two_times=True,
        )
        networks, names = {"denoiser": network}, data.label_names if classes else None
    else:
        network, classes, names = with_two_times(flow.denoiser), flow.config.num_classes, flow.config.label_names
        network = copy.deepcopy(network) if network is flow.denoiser else network
        networks = {"denoiser": network, **({"teacher": flow.denoiser} if args.teacher else {})}
    if train_args.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return Start(networks, flow, classes, names)


def check(args: FlowMapArgs, network_args: NewNetworkArgs) -> None:
    """Raise ValueError for options that do not go together, before anything is read."""
    classes = 1 if args.pipeline is not None or network_args.class_conditional else None
    objective(args, Start({}, None, classes, None))


def objective(args: FlowMapArgs, start: Start) -> hfgen.FlowMap:
    """Return the objective of these options.

    Raises:
        ValueError: they do not go together, or guidance of a network without classes or without their null class.
    """
    values = dataclasses.asdict(args)
    scale, taught = values.pop("learned_guidance_scale"), args.pipeline is not None and args.teacher
    del values["pipeline"], values["gap_steps"]
    values["teacher"] = "teacher" if taught else None
    if start.flow is not None and start.flow.null_label is None:
        values["label_dropout"] = 0.0
    if scale != 1 and (start.classes is None or not values["label_dropout"]):
        raise ValueError(
            f"--learned_guidance_scale {scale:g} needs a network that knows classes (--class_conditional), and "
            "--label_dropout above 0."
        )
    return hfgen.FlowMap(**values, num_classes=start.classes, guidance_scale=scale)


def gap_of(args: FlowMapArgs, start: Start, pipeline: Callable[[Any], Any], output: str) -> TeacherGap:
    """Return the comparison of one step with the teacher's; without a teacher it is never called."""
    taught = "teacher" in start.networks
    return TeacherGap(args.gap_steps if taught else 0, start.flow, pipeline, output, args.learned_guidance_scale)


def measure(
    start: Start,
    pipeline: Any,
    gap: TeacherGap,
    args: FlowMapArgs,
    data: ImageData,
    features: Sequence[FeatureNetwork],
    count: int,
    batch_size: int,
) -> Finished:
    """Measure a flow map in few steps, beside the flow that it was made of; return it with rows for the card.

    Args:
        start: what the training began with.
        pipeline: the flow map.
        gap: what was compared on the way.
        args: the options.
        data, features, count, batch_size: see `few_steps.compare`.
    """
    taught = "teacher" in start.networks
    rows = {
        "flow": "none: a new network"
        if start.flow is None
        else f"{shown_name(args.pipeline)}, {'teacher' if taught else 'start'}",
        "evaluations of the network": "one a step, for any number of steps",
        "guidance inside": f"{args.learned_guidance_scale:g}",
        **gap.facts(),
    }
    finished = few_steps.compare(start.flow, pipeline, data, features, count, 1.0, batch_size)
    return dataclasses.replace(finished, facts={**rows, **finished.facts})

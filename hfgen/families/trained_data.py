"""The data of a run and of its pipelines: pipelines record what they were trained on, and runs that start from a
trained pipeline take its data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hfgen

from ..console.notes import tell
from ..data.batches import Items
from ..data.training_data import choose_data, record_of
from ..options import DataArgs


def record_data(run: Any, pipeline: Any, data: Items) -> Any:
    """Record in one of hfgen's pipelines what it was trained on, and return the pipeline.

    A pipeline of another class has no place for the record, and stays as it is.

    Args:
        run: the `Run`. The data that it has loaded count: a family may train on a part of them.
        pipeline: networks were trained for it, or it was fitted.
        data: what was trained on, if the run has loaded nothing.
    """
    if isinstance(pipeline, hfgen.HFGenPipeline):
        pipeline.training_data = record_of(run.data_args, run.__dict__.get("data", data))
    return pipeline


def take_data_of(
    run: Any, pipeline: Any, given: Mapping[str, Any], adapt: Callable[[DataArgs], DataArgs] = lambda args: args
) -> None:
    """Give a run the data that a pipeline was trained on, load them, and tell where the options come from.

    Call it before `run.data` and `run.config` are used.

    Args:
        run: the `Run`; its `data_args`, `groups` and `data` are set.
        pipeline: the trained pipeline.
        given: options of data by name, which win.
        adapt: changes the options before the images are loaded.

    Raises:
        ValueError: what the pipeline was trained on is not known or not here; says what to give.
    """
    source = pipeline.config.get("_name_or_path") or f"the {type(pipeline).__name__}"
    choice, before = choose_data(pipeline.training_data, source, given), run.data_args
    args = type(before)(**{**dataclasses.asdict(before), **dataclasses.asdict(adapt(choice.args))})
    run.groups = tuple(args if group is before else group for group in run.groups)
    run.data_args, data = args, run.load(args, choice.own)
    for note in choice.check(data):
        tell(note)
    run.data = data if run.adaptation is None else run.adaptation.data_of(data)


def check_shape(data: Any, shape: Sequence[int]) -> None:
    """Refuse images (C, H, W) of a run of another shape than those of a trained pipeline. Raises ValueError."""
    if tuple(shape) != tuple(data.item_shape):
        raise ValueError(
            f"The pipeline has images of shape {tuple(shape)}, and those of {data.name} have shape "
            f"{tuple(data.item_shape)}. Give the data that it was trained on: --dataset."
        )


def check_classes(data: Any, teacher: Any, needed: bool = True) -> None:
    """Refuse data whose classes are not those of a trained pipeline, by number and name.

    Args:
        data: the images of a run. They may have only the first of the pipeline's classes.
        teacher: the pipeline.
        needed: whether the run trains with the labels; otherwise the data may have none.

    Raises:
        ValueError: no labels, more classes, or another class under a number.
    """
    classes, names = teacher.config.num_classes, teacher.config.label_names
    if classes is None or (data.num_classes is None and not needed):
        return
    advice = "Give the data that it was trained on: --dataset, --label_column."
    if data.num_classes is None or data.num_classes > classes:
        has = "no labels" if data.num_classes is None else f"{data.num_classes} classes"
        raise ValueError(f"The teacher knows {classes} classes, and {data.name} has {has}. {advice}")
    for number, (known, here) in enumerate(zip(names or (), data.label_names or (), strict=False)):
        if known != here:
            raise ValueError(f"Class {number} is {known!r} for the teacher and {here!r} in {data.name}. {advice}")

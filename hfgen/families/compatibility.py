"""What networks, an objective and data that somebody put together must have in common, before any long work starts."""

import contextlib
import inspect
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..console.notes import tell
from ..console.text import with_article
from ..data.batches import Items
from ..data.partial_labels import num_unlabelled
from ..models.torch_model import TorchModel
from ..objectives.base import Objective
from ..registry import PIPELINES


def check_compatible(networks: Mapping[str, nn.Module], objective: Objective, data: Items) -> None:
    """Refuse networks that do not fit the objective or the data: their classes, how they are called, and the shape of
    what they model. Of an own class of networks only the classes can be known.

    Args:
        networks: all that the objective trains, and perhaps others.
        objective: the objective.
        data: the data.

    Raises:
        ValueError: names the network, what it has and what it needs.
    """
    _check_classes(networks, objective, data)
    if objective.call is None:
        return
    for name in dict.fromkeys(objective.players):
        network = networks[name]
        if type(network).__module__.startswith(("hfgen.models.", "diffusers.")) and type(network) is not TorchModel:
            _check_call(name, network, objective)
            _check_shape(name, network, data)


def _check_classes(networks: Mapping[str, nn.Module], objective: Objective, data: Items) -> None:
    classes = getattr(getattr(objective, "condition", None), "num_classes", None)
    if classes is None:
        return
    kind, there = type(objective).__name__, data.num_classes
    if there is not None and there > classes:
        raise ValueError(
            f"{kind} has num_classes={classes}, and the labels of {data.name} are of {there} classes. Give "
            f"num_classes={there}."
        )
    dropout = getattr(objective, "label_dropout", 0)
    null = dropout > 0 or num_unlabelled(data) > 0
    embeds = classes + null  # one more: the null class
    for name in dict.fromkeys(objective.players):
        known = getattr(getattr(networks[name], "config", None), "num_class_embeds", None)
        if known and known < embeds:
            raise ValueError(
                f"{name} has num_class_embeds={known}, and {kind} {classes} classes"
                f"{' and a null class' * null}. Build it with num_class_embeds={embeds}."
            )


def _check_call(name: str, network: nn.Module, objective: Objective) -> None:
    """Raise ValueError if a network takes other arguments than the objective calls it with."""
    parameters = list(inspect.signature(type(network).forward).parameters.values())[2:]  # after self and the items
    known = {one.name for one in parameters}
    needed = {one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD}
    foreign = type(network).__module__.startswith("diffusers.")  # whose networks may need conditions besides
    if set(objective.call) <= known and (foreign or needed <= set(objective.call)):
        return
    kind, takes = type(objective).__name__, ", ".join(["items", *objective.call])
    raise ValueError(
        f"{kind} calls {name} with {takes}, and {type(network).__name__} takes items"
        f"{', ' * bool(needed)}{', '.join(sorted(needed))}. It is a network for another objective."
    )


def _check_shape(name: str, network: nn.Module, data: Items) -> None:
    """Raise ValueError if a network models items of another shape than those of the data."""
    shape, items = getattr(network, "sample_shape", None), tuple(data.item_shape)
    if shape is not None and tuple(shape) != items:
        raise ValueError(
            f"{name} ({type(network).__name__}) models items of shape {tuple(shape)}, and those of {data.name} have "
            f"shape {items}. Build the network for these, or change the data (resolution, grayscale)."
        )


@contextlib.contextmanager
def explaining(networks: Mapping[str, nn.Module], objective: Objective, data: Items) -> Iterator[None]:
    """Inside the block of a training, an error that `_explained` knows is a ValueError with its sentence."""
    try:
        yield
    except (TypeError, AttributeError, LookupError, RuntimeError) as error:
        if (sentence := _explained(error, networks, objective, data)) is not None:
            raise sentence from error
        raise


def _explained(
    error: Exception, networks: Mapping[str, nn.Module], objective: Objective, data: Items
) -> ValueError | None:
    """Return a sentence for an error that came up within the first loss of a training: parts that do not belong
    together fail there, and say only which tensors do not fit. None for any other error.

    Args:
        error: was raised while training.
        networks, objective, data: of the training.
    """
    if isinstance(error, ValueError | torch.OutOfMemoryError):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        step, player = frame.f_locals.get("step"), frame.f_locals.get("player")
        if frame.f_code is type(objective).loss.__code__ and getattr(step, "number", None) == 0 and player in networks:
            what = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            return ValueError(
                f"{type(objective).__name__} has no loss for {player} ({type(networks[player]).__name__}) on items of "
                f"shape {tuple(data.item_shape)}: {what}. Give a network, an objective and data that belong "
                "together."
            )
    return None


def check_pipeline(pipeline: Any, objective: Any) -> None:
    """Refuse a pipeline that can't give the network its condition, and warn of one that can't be loaded again.

    Raises:
        ValueError: the objective trains under a condition, and the pipeline knows none or another.
    """
    if pipeline is None:
        return
    kind = type(getattr(objective, "condition", None))
    if hasattr(pipeline, "condition") and type(pipeline.condition) is not kind:
        given = "no condition" if pipeline.condition is None else type(pipeline.condition).__name__
        trained = "no condition" if kind is type(None) else kind.__name__
        raise ValueError(
            f"The objective trains under {trained}, and {type(pipeline).__name__} samples under {given}. Give both the "
            "same classes (num_classes), a pipeline of your own for another condition, or no pipeline."
        )
    if (name := type(pipeline).__name__) not in PIPELINES:
        tell(
            f"HFGenPipeline.from_pretrained can't load {with_article(name)} until its class is registered: "
            "hfgen.registry.register."
        )

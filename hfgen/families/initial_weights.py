"""The weights that a training begins with, from a saved pipeline: fine-tuning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import hfgen

from ..console.notes import tell
from .trained_pipeline import load_trained

CLASS_WORDS = ("class", "prefix")
"""Parts of the names of tables of classes."""


def begin_with(source: str, output: Any, networks: Mapping[str, nn.Module], label_names: list[str] | None) -> None:
    """Copy the weights of a saved pipeline into the networks of a training that have the same names.

    Classes are matched by name. What the pipeline lacks begins anew: networks, and rows of classes. It is said.

    Args:
        source: folder of the pipeline, or its name on the Hub.
        output: folder of the run.
        networks: by name.
        label_names: names of the classes that the networks know; None: none.

    Raises:
        ValueError: no network is in the pipeline, or one has another architecture; names the weights.
    """
    pipeline = load_trained(source, output, hfgen.HFGenPipeline, "to begin with")
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    if not parts.keys() & networks.keys():
        raise ValueError(
            f"--init_from {source}: its {type(pipeline).__name__} has {', '.join(parts)}, and this training "
            f"{', '.join(networks)}. Give a pipeline of the same family."
        )
    for name, network in networks.items():
        if name not in parts:
            tell(f"{name} begins anew: {source} has none.")
            continue
        known = pipeline.config.get("label_names") or _numbers(pipeline.config.get("num_classes"))
        new = _copy(parts[name], getattr(network, name, network), known or [], label_names or [], f"{source}, {name}")
        tell(f"{name} begins with the weights of {source}{f'; {new}' if new else ''}")


def _numbers(count: int | None) -> list[str]:
    return [str(number) for number in range(count or 0)]


@torch.no_grad()
def _copy(saved: nn.Module, network: nn.Module, known: list[str], wanted: list[str], where: str) -> str:
    """Copy weights, and return what begins anew, for people.

    Args:
        saved, network: from and to.
        known, wanted: names of their classes.
        where: names the weights, for messages.
    """
    source, target = saved.state_dict(), network.state_dict()
    tables = _class_tables(saved, network, source, target)
    if wrong := [name for name in target if name not in tables and _shape(source, name) != tuple(target[name].shape)]:
        name = wrong[0]
        raise ValueError(
            f"{where}: {name} has the shape {_shape(source, name)}, and {tuple(target[name].shape)} in this training. "
            "Give the options of the network (--model, --model_size, --resolution, ...) that it was trained with."
        )
    for name, value in target.items():
        if name not in tables:
            value.copy_(source[name])
        elif name in source:
            _copy_rows(source[name], value, known, wanted)
    new = [name for name in wanted if name not in known]
    return f"new classes begin anew: {', '.join(new)}" if tables and new else ""


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def _class_tables(
    saved: nn.Module, network: nn.Module, source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> set[str]:
    """Return the names of weights with a row for each class, whose number may be another or 0 in the saved network."""
    before, now = (getattr(each, "config", {}).get("num_class_embeds") for each in (saved, network))
    tables = {f"{name}.weight" for name, part in network.named_modules() if isinstance(part, nn.Embedding)}
    tables = {name for name in tables if any(word in name for word in CLASS_WORDS) and len(target[name]) == now}
    rows = {name: source[name].shape if name in source else (0, *target[name].shape[1:]) for name in tables}
    fits = {name: rows[name][1:] == target[name].shape[1:] and rows[name][0] in (before, 0, 1) for name in tables}
    return {name for name in tables if fits[name]}


def _copy_rows(source: Tensor, target: Tensor, known: list[str], wanted: list[str]) -> None:
    """Copy the rows of classes that both know by name, and that of 'no class', the last one."""
    numbers = {name: number for number, name in enumerate(known)}
    for row, name in enumerate(wanted):
        if name in numbers:
            target[row] = source[numbers[name]]
    if len(source) > len(known) and len(target) > len(wanted):
        target[-1] = source[-1]

"""The weights that a training begins with, from a saved pipeline: fine-tuning."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import hfgen

from ..console.notes import tell
from ..console.text import with_article
from .trained_pipeline import load_trained

ROW_OPTIONS = ("num_class_embeds", "num_classes", "vocab_size")
"""Arguments of networks that set how many rows tables of classes, or of words, have."""

SHOWN = 10
"""Names of new rows that are told, at most."""


def load_base(source: str | None, output: Any) -> Any:
    """Return the pipeline of `--init_from`; None: the option is not given.

    Raises:
        ValueError: the pipeline would be overwritten by that of the folder `output`, or can't be loaded.
    """
    return source and load_trained(source, output, hfgen.HFGenPipeline, "to begin with", "init_from")


class InitialWeights:
    """A saved pipeline whose weights a training begins with, those of the networks with the same place in its pipeline.

    Classes, and words, are matched by name. What the saved pipeline lacks begins anew: networks, and rows of tables. It
    is said.

    Args:
        source: folder of the pipeline, or its name on the Hub, for messages.
        pipeline: the pipeline.
    """

    def __init__(self, source: str, pipeline: Any):
        self.source, self.pipeline = source, pipeline

    def given_to(
        self,
        make: Callable[[], Mapping[str, nn.Module]],
        players: Collection[str],
        pipeline: Callable[[Any], Any] | None,
        data: Any,
    ) -> Callable[[], Mapping[str, nn.Module]]:
        """Return `make` with networks that begin so, each time.

        Args:
            make: returns the networks of the training, by name.
            players: names of those that are trained.
            pipeline: networks -> their pipeline; None: they have the place of their name.
            data: what is trained on, with names of its classes or words.
        """
        names = getattr(data, "words", None) or getattr(data, "label_names", None) or []

        def begun() -> Mapping[str, nn.Module]:
            networks = make()
            trained = {name: network for name, network in networks.items() if name in players}
            self._copy_into(_places(trained, None if pipeline is None else pipeline(networks)), names)
            return networks

        return begun

    def _copy_into(self, places: Mapping[str, nn.Module], names: list[str]) -> None:
        """Copy the weights, and say what begins how.

        Args:
            places: networks by their names in the pipeline.
            names: of classes of the data, or of words.

        Raises:
            ValueError: no network is in the saved pipeline, or one has another architecture; names the weights.
        """
        saved, source, config = _modules(self.pipeline), self.source, self.pipeline.config
        if not saved.keys() & places.keys():
            raise ValueError(
                f"--init_from {source}: its {type(self.pipeline).__name__} has {', '.join(saved)}, and this training "
                f"{', '.join(places)}. Give a pipeline of the same family."
            )
        known = config.get("words") or config.get("label_names")
        known = known or [str(number) for number in range(config.get("num_classes") or 0)]
        for name, network in places.items():
            if name not in saved:
                tell(f"{name} begins anew: {source} has none.")
                continue
            notes = _copy(saved[name], network, known, names, f"--init_from {source}: {name}")
            tell("; ".join([f"{name} begins with the weights of {source}", *notes]))


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _places(networks: Mapping[str, nn.Module], made: Any) -> dict[str, nn.Module]:
    """Return networks, or the modules in them, by their names in the pipeline `made`; others by their own."""
    if made is None:
        return dict(networks)
    inside = {id(part) for network in networks.values() for part in network.modules()}
    found = {name: part for name, part in _modules(made).items() if id(part) in inside}
    held = {id(part) for target in found.values() for part in target.modules()}

    def is_apart(network: nn.Module) -> bool:
        return not any(id(part) in held for part in network.modules())

    outside = {name: network for name, network in networks.items() if is_apart(network)}
    for name, network in networks.items():  # such as learnt pseudo-inputs, of which the pipeline has the prior alone
        if name not in outside and id(network) not in held:
            parts = {f"{name}.{child}": part for child, part in network.named_children() if is_apart(part)}
            outside |= {child: part for child, part in parts.items() if any(True for _ in part.parameters())}
    return {**found, **outside}


@torch.no_grad()
def _copy(saved: nn.Module, network: nn.Module, known: list[str], names: list[str], where: str) -> list[str]:
    """Copy weights, and return what else is to be said, for people.

    Args:
        saved, network: from and to.
        known, names: names of the rows of their tables.
        where: names the network, for messages.
    """
    kinds = [type(each).__name__ for each in (saved, network)]
    if kinds[0] != kinds[1]:
        there, here = map(with_article, kinds)
        raise ValueError(
            f"{where} is {there} in the saved pipeline, and {here} in this training. Give a pipeline with the same "
            "network, or the options of the network (--model, ...) that it was trained with."
        )
    source, target = saved.state_dict(), network.state_dict()
    tables = _tables(network, target) | _tables(saved, source)
    for name in {**source, **target}:
        shapes = [tuple(weights[name].shape) if name in weights else None for weights in (source, target)]
        if name not in tables and shapes[0] != shapes[1]:
            there, here = ("no such weights" if shape is None else f"the shape {shape}" for shape in shapes)
            raise ValueError(
                f"{where}.{name} has {there} in the saved pipeline, and {here} in this training. Give the options of "
                "the network (--model, --model_size, --resolution, ...) that it was trained with."
            )
    wanted = names if tables & target.keys() and _knows_rows(network) else []
    for name, value in target.items():
        if name not in tables:
            value.copy_(source[name])
        elif name in source:
            _copy_rows(source[name], value, known, wanted, where)
    return _notes(saved, network, known, wanted)


def _settings(network: nn.Module) -> Mapping[str, Any]:
    """Return the configuration of a network; {} if it has none, or one of `transformers`, whose rows are tokens."""
    config = getattr(network, "config", {})
    return config if isinstance(config, Mapping) else {}


def _knows_rows(network: nn.Module) -> bool:
    """Return whether a network is told of classes or words."""
    config = _settings(network)
    return any(config.get(option) is not None for option in ROW_OPTIONS)


def _tables(network: nn.Module, weights: Mapping[str, Tensor]) -> set[str]:
    """Return the names of weights with a row for each class or word: those that have one more in a network with one
    more of these. In a `TorchModel`, which is not built from its configuration alone, they are the embeddings of as
    many rows; a module without a configuration has none."""
    config = _settings(network)
    found: set[str] = set()
    if isinstance(network, hfgen.TorchModel):
        embeddings = {name: part for name, part in network.named_modules() if isinstance(part, nn.Embedding)}
        rows = config["num_class_embeds"]
        return {f"{name}.weight" for name, part in embeddings.items() if part.num_embeddings == rows}
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    for option in ROW_OPTIONS:
        if option in config:
            with torch.device("meta"):
                larger = type(network)(**{**options, option: (config[option] or 1) + 1}).state_dict()
            found |= {name for name, value in weights.items() if name in larger and larger[name].shape != value.shape}
    return found


def _copy_rows(source: Tensor, target: Tensor, known: list[str], wanted: list[str], where: str) -> None:
    """Copy the rows of names that both know, and that of 'no class', the last one."""
    if source.shape[1:] != target.shape[1:]:
        raise ValueError(
            f"{where}: a row of its classes or words has the shape {tuple(source.shape[1:])} in the saved pipeline, "
            f"and {tuple(target.shape[1:])} in this training. Give the options of the network that it was trained with."
        )
    numbers = {name: number for number, name in enumerate(known)}
    for row, name in enumerate(wanted):
        if name in numbers:
            target[row] = source[numbers[name]]
    if len(source) > len(known) and len(target) > len(wanted):
        target[-1] = source[-1]


def _notes(saved: nn.Module, network: nn.Module, known: list[str], wanted: list[str]) -> list[str]:
    """Return what begins anew, and the settings that differ though the weights have the same shapes."""
    notes = []
    seen = set(known)
    if new := [name for name in wanted if name not in seen]:
        more = f" and {len(new) - SHOWN:,} more" if len(new) > SHOWN else ""
        kind = "words" if "vocab_size" in _settings(network) else "classes"
        notes.append(f"new {kind} begin anew: {', '.join(new[:SHOWN])}{more}")
    before, now = _settings(saved), _settings(network)
    for option, value in now.items():
        if not option.startswith("_") and option not in ROW_OPTIONS and _plain(before.get(option)) != _plain(value):
            notes.append(f"{option} was {before.get(option)!r}, and is {value!r} now")
    return notes


def _plain(value: Any) -> Any:
    """Return a setting as JSON gives it back, where tuples are lists."""
    return json.loads(json.dumps(value, default=str))

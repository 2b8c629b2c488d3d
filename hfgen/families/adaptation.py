"""Trainings on a base, which stays as it is: an adapter (LoRA), and prior preservation."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..console.notes import tell
from ..data.batches import Items
from ..data.relabelled import classes_after, labelled, relabelled
from ..models.class_rows import ClassRows, class_table
from ..options import TrainArgs
from ..pipelines.adapter_file import is_adaptable
from ..pipelines.adapter_layers import adapted_layers, inject_factors
from ..pipelines.classes import names_of_classes
from ..saving.errors import INDEX
from .adapter_options import AdapterArgs
from .estimate import parameters
from .trained_data import check_shape
from .trained_pipeline import shown_name

ADAPTER = "default"
"""Name of the adapter that is trained, as in diffusers' scripts."""

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
"""Parts of names of layers that belong to attention."""

KINDS = {
    "attention": lambda name, layer: isinstance(layer, nn.Linear) and ATTENTION.search(name) is not None,
    "linear": lambda name, layer: isinstance(layer, nn.Linear),
    "convolutions": lambda name, layer: not isinstance(layer, nn.Linear),
}
"""Kinds of layers in --lora_targets: (full name, layer) -> whether it is of this kind."""


def with_defaults(groups: Sequence[Any], given: Collection[str]) -> list[Any]:
    """Return groups of options with the optimiser that adapters have by default, AdamW.

    Muon's steps are orthogonal matrices, and the factors of an adapter have too few rows for these.
    """
    adapts = any(isinstance(group, AdapterArgs) and group.lora_rank is not None for group in groups)
    args = next((group for group in groups if isinstance(group, TrainArgs)), None)
    if not adapts or args is None or args.optimizer != "muon" or "optimizer" in given:
        return list(groups)
    adamw = dataclasses.replace(args, optimizer="adamw")
    return [adamw if group is args else group for group in groups]


def check_training(args: AdapterArgs, train_args: TrainArgs) -> None:
    """Refuse what no adapter can be trained with, and a class for a training that has those of its data.

    Raises:
        ValueError: Muon, parts of networks that are split over processes, a folder that holds a pipeline, or a
            `new_class` without a base to keep.
    """
    if args.new_class is not None and not args.keeps_base:
        raise ValueError(
            f"--new_class {args.new_class} does nothing without --lora_rank or --prior_weight. Leave it out, or give "
            "one of them."
        )
    if args.lora_rank is None:
        return
    if (Path(train_args.output_dir) / INDEX).exists():
        raise ValueError(
            f"--output_dir {train_args.output_dir} holds a pipeline, beside which an adapter would lie. Give "
            "another one."
        )
    if (sharding := train_args.sharding) != "none":
        raise ValueError(f"--sharding {sharding} splits networks; --lora_rank trains few weights. Leave it out.")
    if train_args.optimizer == "muon":
        raise ValueError("--optimizer muon trains whole matrices, --lora_rank their factors. Use --optimizer adamw.")


def layers_to_adapt(network: nn.Module, targets: str) -> list[str]:
    """Return the full names of the layers of a network that `--lora_targets` means, in the network's order.

    Args:
        network: the network.
        targets: kinds of layers, or the ends of names, separated by commas.

    Raises:
        ValueError: one of them means no layer; names the kinds that there are.
    """
    layers = {name: part for name, part in network.named_modules() if is_adaptable(part)}
    found: set[str] = set()
    for word in (part.strip() for part in targets.split(",")):
        kind = KINDS.get(word)
        those = {
            name
            for name, layer in layers.items()
            if (kind(name, layer) if kind else bool(word) and f".{name}".endswith(f".{word}"))
        }
        if not those:
            counts = {key: sum(test(name, layer) for name, layer in layers.items()) for key, test in KINDS.items()}
            there = (
                ", ".join(f"{count} of {key}" for key, count in counts.items() if count) or "none that can be adapted"
            )
            raise ValueError(
                f"--lora_targets {targets}: {word!r} is no layer of {type(network).__name__}. Its layers: {there}; by "
                f"name, such as: {', '.join(list(layers)[:3]) or 'none'}."
            )
        found |= those
    return [name for name in layers if name in found]


class Adaptation:
    """A training on a base: its classes come first, and with a rank an adapter of its network learns alone.

    Args:
        args: the options.
        source: folder of the base, or its name on the Hub.
        base: the pipeline.

    Raises:
        ValueError: the pipeline takes no adapters.
    """

    def __init__(self, args: AdapterArgs, source: str, base: Any):
        if not hasattr(base, "load_lora_weights"):
            raise ValueError(
                f"--lora_rank and --prior_weight need a denoiser, and {source} holds a {type(base).__name__}. Give "
                "another --init_from, or fine-tune all weights: leave them out."
            )
        self.args, self.source, self.base = args, source, base
        (self.component,) = base._lora_loadable_modules
        if args.lora_rank is not None:
            layers_to_adapt(self.network, args.lora_targets)  # refused before data are read

    @property
    def network(self) -> nn.Module:
        """Return the network of the base."""
        return getattr(self.base, self.component)

    @property
    def names(self) -> list[str]:
        """Return the names of the base's classes, [] if it has none."""
        return names_of_classes(*map(self.base.config.get, ("num_classes", "label_names")))

    def data_of(self, data: Items) -> Items:
        """Return the data with the numbers of the base's classes, and new classes after them.

        Raises:
            ValueError: images of another shape, or no labels where the base has classes.
        """
        check_shape(data, self.base.sample_shape)
        if (name := self.args.new_class) is not None:
            if not self.names:
                raise ValueError(f"--new_class {name}: the pipeline {self.source} has no classes. Leave it out.")
            data = labelled(data, name)
        return relabelled(data, classes_after(self.names, data)) if self.names else data

    def new_network(self, classes: int | None, gradient_checkpointing: bool = False) -> nn.Module:
        """Return a network as the base's, not trained, for so many classes.

        Raises:
            ValueError: there are more than the base's, and its network does not take their number.
        """
        config = {key: value for key, value in self.network.config.items() if not key.startswith("_")}
        if classes is not None and (more := classes - self.base.config.num_classes):
            if self.args.lora_rank is not None and class_table(self.network) is None:
                raise ValueError(f"{type(self.network).__name__} has no table of classes that rows can be added to.")
            config["num_class_embeds"] += more
        network = type(self.network).from_config(config)
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        return network

    def given_to(
        self, make: Callable[[], Mapping[str, nn.Module]], players: Collection[str], pipeline: Any, data: Items
    ) -> Callable[[], Mapping[str, nn.Module]]:
        """Return `make` with an adapter on the network that learns, and all else frozen; without a rank, `make`.

        Args:
            make: returns networks that begin as the base.
            players: names of those that are trained.
            pipeline: networks -> their pipeline.
            data: what is trained on.
        """
        if self.args.lora_rank is None:
            return make

        def adapted() -> Mapping[str, nn.Module]:
            networks = make()
            made = None if pipeline is None else getattr(pipeline(networks), self.component, None)
            if made is None or [networks[name] for name in players] != [made]:
                raise ValueError(
                    f"--lora_rank adapts one network, the {self.component} of a pipeline, and this training has "
                    f"{', '.join(players)}. Give the pipeline, and train this network alone."
                )
            if not adapted_layers(made):
                self._adapt(made, getattr(data, "label_names", None) or [])
            return networks

        return adapted

    def _adapt(self, network: nn.Module, names: Sequence[str]) -> None:
        """Freeze a network, and give it an adapter that learns, with rows for the classes that the base lacks."""
        args, layers = self.args, layers_to_adapt(network, self.args.lora_targets)
        network.requires_grad_(False)
        alpha = args.lora_rank if args.lora_alpha is None else args.lora_alpha
        base = shown_name(self.source)
        inject_factors(network, layers, args.lora_rank, alpha, ADAPTER, base_model_name_or_path=base)
        new = [name for name in names if name not in self.names] if self.names else []
        if new and class_table(network) is None:
            raise ValueError(f"{type(network).__name__} has no one table of classes, for the rows of {', '.join(new)}.")
        if new:
            _learn_rows(network, len(self.names), len(new))
        learnt = sum(p.numel() for p in network.parameters() if p.requires_grad)
        tell(
            f"an adapter of rank {args.lora_rank} on {len(layers)} layers learns: {learnt:,} weights, beside "
            f"{parameters(network) - learnt:,} that stay"
            + (f"; their rows begin as that of no class: {', '.join(new)}" if new else "")
        )


@torch.no_grad()
def _learn_rows(network: nn.Module, known: int, count: int) -> None:
    """Let `count` rows after the `known` ones of a network's table of classes learn. They begin with the row of no
    class, or with the mean of the others."""
    place, table = class_table(network)
    weight = table.weight
    kept = torch.cat([weight[:known], weight[known + count :]])
    own = nn.Embedding(*kept.shape, _weight=kept).requires_grad_(False)
    rows = ClassRows(own, known)
    start = kept[-1] if len(kept) > known else kept.mean(0)
    rows.rows[ADAPTER] = nn.Parameter(start.expand(count, -1).clone())
    network.set_submodule(place, rows)


def save_trained(pipeline: Any, folder: Any) -> None:
    """Save what was trained of a pipeline: its adapter, or the whole."""
    active = getattr(pipeline, "get_active_adapters", list)()
    if active:
        pipeline.save_lora_weights(folder)
    else:
        pipeline.save_pretrained(folder)


def adapter_of(pipeline: Any) -> dict[str, str]:
    """Return what cards say of the adapter that was trained, "base" and "adapter"; {} if a whole pipeline was."""
    active = getattr(pipeline, "get_active_adapters", list)()
    if not active:
        return {}
    network = getattr(pipeline, pipeline._lora_loadable_modules[0])
    config, layers = network.peft_config[active[0]], adapted_layers(network)
    counts = [sum(map(parameters, (part.lora_A[active[0]], part.lora_B[active[0]]))) for part in layers.values()]
    text = f"LoRA of rank {config.r}, alpha {config.lora_alpha:g}, {len(layers)} layers, {sum(counts):,} parameters"
    return {"base": str(config.base_model_name_or_path), "adapter": text}

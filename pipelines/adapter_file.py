"""Files of low-rank adapters, as diffusers writes them: reading without code, and checks against a network."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from hfgen.disk.reading import check_regular, is_finite
from hfgen.models.class_rows import class_table
from hfgen.saving.errors import ADAPTER, one_line_errors

ADAPTER_CONFIG = "lora_adapter_metadata"
"""Entry of the file's header with rank, alpha and layers, as diffusers writes it."""

ADAPTER_FACTS = "hfgen"
"""Entry of the header with what else hfgen knows of an adapter."""

CLASS_ROWS = "class_rows"
"""Name of the rows of an adapter's own classes among its weights."""

PLAIN_CONFIG = ("use_dora", "use_rslora", "lora_bias", "alpha_pattern", "modules_to_save")
"""Options of peft that change what the two factors mean, or add weights; such files are refused."""

FACTOR = re.compile(r"(.+)\.lora_(A|B)\.weight")


class AdapterWeights(NamedTuple):
    """An adapter as its file has it.

    Attributes:
        factors: layer -> (A (r, in, ...), B (out, r, ...)).
        rows: the rows of its own classes (K, D), None if it has none.
        alpha: the scale of B A is alpha / r; None: 1.
        facts: what hfgen has written about it: `base`, `network`, `path`, `prediction_type`, `classes`.
        source: the file, for messages.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    rows: Tensor | None
    alpha: float | None
    facts: dict[str, Any]
    source: str


def adapter_file(source: str | os.PathLike, weight_name: str | None, hub: Mapping[str, Any]) -> pathlib.Path:
    """Return the file of an adapter in a folder or repository, or the file that is named itself.

    Args:
        source: a folder, a file, or the name of a repository.
        weight_name: the file's name; None: diffusers' own.
        hub: options of huggingface_hub for a repository.

    Raises:
        ValueError: there is no adapter, or its weights are pickled.
        OSError: the Hub can't be reached, and the cache does not hold it.
    """
    path, name = pathlib.Path(source), weight_name or ADAPTER
    named = path.name if path.is_file() else name
    if not named.endswith(".safetensors"):
        raise ValueError(
            f"{path if path.is_file() else name} may hold pickles, which hfgen never reads. Give a file of safetensors."
        )
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / name).exists():
            there = sorted(file.name for file in path.glob("*lora*"))
            raise ValueError(f"{path} holds no adapter: there is no {name} in it{_others(there)}.")
        return path / name
    from huggingface_hub import hf_hub_download

    with one_line_errors(str(source), "an adapter", name):
        return pathlib.Path(hf_hub_download(str(source), name, **hub))


def _others(names: list[str]) -> str:
    return f"; {', '.join(names)} {'is' if len(names) == 1 else 'are'} not read" if names else ""


def read_adapter(file: pathlib.Path, component: str) -> AdapterWeights:
    """Return the adapter in a file of safetensors.

    Args:
        file: the file.
        component: the component of the pipeline that it is for: weights of others are refused.

    Raises:
        ValueError: the file is damaged, or holds something else than the two factors of layers of this component.
        OSError: it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(file)
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
            header = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    config = _entry(header, ADAPTER_CONFIG, file)
    return adapter_of(tensors, config, _entry(header, ADAPTER_FACTS, file), component, str(file))


def _entry(header: Mapping[str, str], key: str, file: pathlib.Path) -> dict[str, Any]:
    """Return the object in an entry of a header. Raises ValueError for anything else."""
    try:
        value = json.loads(header.get(key, "{}"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{file} is damaged: its entry {key} is no object of JSON.")
    return value


def adapter_of(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], facts: Mapping[str, Any], component: str, source: str
) -> AdapterWeights:
    """Return the adapter that tensors by name are; `config` and `facts` are the entries of a file's header.

    Raises:
        ValueError: as `read_adapter`.
    """
    start, pairs, rows = f"{component}.", {}, None
    for name, tensor in tensors.items():
        match = FACTOR.fullmatch(name.removeprefix(start))
        if not name.startswith(start) or not (match or name == start + CLASS_ROWS):
            raise ValueError(
                f"{source} holds {name[:80]!r}, which is no low-rank factor of a layer of the {component}."
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{source} holds {name} with values that are no finite numbers.")
        if match is None:
            rows = tensor
        else:
            pairs.setdefault(match[1], {})[match[2]] = tensor
    if half := [layer for layer, pair in pairs.items() if len(pair) != 2]:
        raise ValueError(f"{source} holds one of the two factors of {half[0]} and not the other.")
    if not pairs:
        raise ValueError(f"{source} holds no low-rank factors of the {component}.")
    if odd := [key for key in PLAIN_CONFIG if config.get(start + key)]:
        raise ValueError(f"{source} was trained with {', '.join(odd)}, which hfgen does not read; only plain LoRA.")
    alpha = config.get(f"{start}lora_alpha")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not is_finite(alpha)):
        raise ValueError(f"{source} says lora_alpha={alpha!r}, which is no finite number.")
    _check_facts(facts, rows, source)
    return AdapterWeights(
        {layer: (pair["A"], pair["B"]) for layer, pair in pairs.items()}, rows, alpha, {**facts}, source
    )


def _check_facts(facts: Mapping[str, Any], rows: Tensor | None, source: str) -> None:
    """Raise ValueError for names of classes that do not belong to the rows, or facts that are no texts."""
    names = facts.get("classes", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{source} names classes that are no texts.")
    if len(set(names)) != len(names) or len(names) != (0 if rows is None else rows.shape[0] if rows.ndim == 2 else -1):
        raise ValueError(f"{source} does not hold one row for each of its classes: {', '.join(names)[:80] or 'none'}.")
    for key in ("base", "network", "path", "prediction_type"):
        if not isinstance(facts.get(key), str | None):
            raise ValueError(f"{source} says {key}={facts[key]!r}, which is no text.")


def check_adapter(weights: AdapterWeights, network: nn.Module, scheduler: Any, names: list[str]) -> None:
    """Refuse an adapter of another base.

    Args:
        weights: the adapter.
        network: the one that it would change.
        scheduler: of the pipeline, whose path and kind of prediction the adapter was trained for.
        names: of the classes that the pipeline has.

    Raises:
        ValueError: names what differs: network, layers, shapes, path, prediction, or a class that is there already.
    """
    facts, layers = weights.facts, dict(network.named_modules())
    base = f" It was trained for {facts['base']}." if facts.get("base") else ""
    kind = facts.get("network")
    missing = [layer for layer in weights.factors if not is_adaptable(layers.get(layer))]
    if missing:
        other = f", a {kind}" if kind and kind != type(network).__name__ else ""
        raise ValueError(
            f"{weights.source} is an adapter of another network{other}: {type(network).__name__} has no layer "
            f"{missing[0]}{f', nor {len(missing) - 1} others' if len(missing) > 1 else ''}.{base}"
        )
    for layer, (first, second) in weights.factors.items():
        found = tuple(first.shape), tuple(second.shape)
        wanted = factor_shapes(layers[layer], first.shape[0] if first.ndim else 0)
        if found != wanted or first.shape[0] < 1:
            raise ValueError(
                f"{weights.source} is an adapter of another network: the factors of {layer} have the shapes {found[0]} "
                f"and {found[1]}, and {type(network).__name__} needs {wanted[0]} and {wanted[1]}.{base}"
            )
    for key in ("path", "prediction_type"):
        here = getattr(scheduler, "config", {}).get(key)
        if facts.get(key) is not None and here is not None and facts[key] != here:
            raise ValueError(
                f"{weights.source} was trained with {key}={facts[key]}, and this pipeline has {here}.{base}"
            )
    _check_classes_of(weights, network, names, base)


def _check_classes_of(weights: AdapterWeights, network: nn.Module, names: list[str], base: str) -> None:
    """Raise ValueError for rows of classes that the network's table does not take."""
    if weights.rows is None:
        return
    classes = weights.facts["classes"]
    if there := [name for name in classes if name in names]:
        raise ValueError(f"{weights.source} adds the class {there[0]!r}, which this pipeline has already.{base}")
    table = class_table(network)
    if not names or table is None:
        raise ValueError(
            f"{weights.source} adds the classes {', '.join(classes)}, and this pipeline has no classes.{base}"
        )
    if table[1].embedding_dim != weights.rows.shape[1]:
        raise ValueError(
            f"{weights.source} is an adapter of another network: its classes have {weights.rows.shape[1]} channels, "
            f"and those of {type(network).__name__} have {table[1].embedding_dim}.{base}"
        )


def is_adaptable(layer: nn.Module | None) -> bool:
    """Return whether a layer takes a low-rank adapter: linear ones and convolutions of one group, also those that have
    adapters."""
    layer = getattr(layer, "base_layer", layer)
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and getattr(layer, "groups", 1) == 1


def factor_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the factors A and B of this rank for a layer."""
    shape = getattr(layer, "base_layer", layer).weight.shape
    return (rank, *shape[1:]), (shape[0], rank, *[1] * len(shape[2:]))

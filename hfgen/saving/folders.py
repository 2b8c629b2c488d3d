"""Checks of a saved pipeline's folder before anything is built from it: bounded in time and memory."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

JSON_BYTES = 4 << 20
"""Most bytes of an index or configuration."""

LARGEST = 1 << 24
"""Largest whole number in a configuration."""

BOUNDS = MappingProxyType({"num_train_timesteps": 100_000, "max_train_samples": 1 << 62, "noise_seed": 1 << 63})
"""Largest whole numbers under some keys: tables of all time steps are kept, data may be many, seeds have 63 bits."""


def read_json(path: Path, most_bytes: int = JSON_BYTES, bounds: Mapping[str, int] = BOUNDS) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: the file.
        most_bytes: its largest size.
        bounds: the largest whole number by key; `LARGEST` for all other keys.

    Raises:
        ValueError: the file is too long, is not JSON, holds no object, or a number out of bounds.
        OSError: the file can't be read.
    """
    if (size := path.stat().st_size) > most_bytes:
        raise ValueError(f"{path} has {size} bytes; no such file has more than {most_bytes}.")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object.")
    for key, value in _numbers(values):
        if abs(value) > bounds.get(key, LARGEST):
            raise ValueError(f"{path} has {key}={value}, which is out of all bounds.")
    return values


def _numbers(values: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield every whole number in nested lists and objects with its key."""
    for name, value in values.items() if isinstance(values, dict) else ((key, value) for value in values):
        if isinstance(value, dict | list):
            yield from _numbers(value, name)
        elif isinstance(value, int):
            yield name, value


def shapes_of(folder: Path, variant: str | None = None, stem: str = "diffusion_pytorch_model") -> dict[str, list[int]]:
    """Return the shapes of a component's weights by name, from the headers of its safetensors files.

    Args:
        folder: the component's.
        variant: of the files; files without it where there are none with it.
        stem: beginning of the files' names: diffusers', or `model` for transformers.

    Raises:
        ValueError: a header or the list of files is damaged, or names files elsewhere or of another kind.
        OSError: there are no weights.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in _weight_files(folder, variant, stem):
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
    return shapes


def _weight_files(folder: Path, variant: str | None, stem: str) -> list[Path]:
    """Return the files of the variant if there are any, else those without; several if weights are in shards."""
    for suffix in [f".{variant}", ""] if variant else [""]:
        single = folder / f"{stem}{suffix}.safetensors"
        index = folder / f"{stem}.safetensors.index{suffix}.json"
        if index.is_file():
            return _shards(index)
        if single.is_file():
            return [single]
    raise OSError(f"{folder} has no file named {stem}.safetensors; no other weights are read.")


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) and all(map(_is_text, places.values())) else {""}
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r} as a file of weights; only safetensors beside it are read.")
    return [index.parent / name for name in sorted(names)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def check_network(folder: Path, network: type, variant: str | None = None) -> None:
    """Refuse a network whose configuration and weights do not describe the same thing, without holding either.

    The configuration is built on the meta device, where tensors have no contents. Building stops as soon as there are
    more parameters than weights.

    Raises:
        ValueError: they differ, or nothing can be built from the configuration.
        OSError: a file is missing.
    """
    config, shapes = read_json(folder / "config.json"), shapes_of(folder, variant)
    refuse_quantised(folder, config)
    check_shapes(folder, built_shapes(lambda: network.from_config(config), network.__name__, folder, shapes), shapes)


def refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError if a component's configuration says that its weights are quantised."""
    if "quantization_config" in config:
        raise ValueError(f"{folder} holds quantised weights, which hfgen does not read; quantise after loading.")


def check_shapes(folder: Path, built: Mapping[str, list[int]], shapes: Mapping[str, list[int]]) -> None:
    """Raise ValueError for the first name whose shape in the network (`built`) is not that of the weights."""
    for name in sorted(built.keys() | shapes.keys()):
        if built.get(name) != shapes.get(name):
            raise ValueError(
                f"{folder}: config.json and weights do not belong together. {name} should have shape "
                f"{built.get(name, 'none at all')} and has {shapes.get(name, 'none at all')}."
            )


def built_shapes(
    build: Callable[[], Any], name: str, folder: Path, shapes: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """Return the shapes of a network's state, built on the meta device. A tensor with several names has its first one.

    Args:
        build: makes the network.
        name: of its class.
        folder: of its configuration, for messages.
        shapes: of the weights; building stops when there are more parameters.

    Raises:
        ValueError: nothing can be built.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    here, count = threading.get_ident(), 0

    def on_parameter(module: Any, name: str, parameter: Any) -> None:
        nonlocal count
        if threading.get_ident() == here:
            count += 1
            if count > 2 * len(shapes):  # parameters may be registered a second time, when they are replaced
                raise ValueError(f"more than {len(shapes)} parameters, and the weights have no more")

    handle = register_module_parameter_registration_hook(on_parameter)
    try:
        with torch.device("meta"):
            network = build()
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{folder}/config.json describes no {name}: {reason}") from error
    finally:
        handle.remove()
    state = network.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: list(tensor.shape) for name, tensor in state.items() if first[id(tensor)] == name}

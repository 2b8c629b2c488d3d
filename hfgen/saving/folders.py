"""What a saved pipeline's folder claims, checked before anything is built from it: bounded in time and memory."""

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

JSON_BYTES = 4 << 20
"""No index or configuration is longer."""

LARGEST = 1 << 24
"""No whole number in a configuration is larger."""

TIME_STEPS = 100_000
"""Schedulers keep tables of so many time steps at most."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: too long, not JSON, not an object, or with numbers that no configuration has.
        OSError: it can't be read.
    """
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; no configuration has more than {JSON_BYTES}.")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object.")
    for key, value in _numbers(values):
        if abs(value) > (TIME_STEPS if key == "num_train_timesteps" else LARGEST):
            raise ValueError(f"{path} has {key}={value}, which is out of all bounds.")
    return values


def _numbers(values: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in nested lists and objects, with the key it stands under."""
    for name, value in values.items() if isinstance(values, dict) else ((key, value) for value in values):
        if isinstance(value, dict | list):
            yield from _numbers(value, name)
        elif isinstance(value, int):
            yield name, value


def shapes_of(folder: Path, variant: str | None = None) -> dict[str, list[int]]:
    """Shapes of the weights in a component's folder, by name, from the headers of its safetensors files.

    Raises:
        ValueError: a header or the list of files is damaged, or names files elsewhere or of another kind.
        OSError: there are no weights.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in _weight_files(folder, variant):
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
    return shapes


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files of the variant where there is one, else those without; several where weights are in shards."""
    for suffix in [f".{variant}", ""] if variant else [""]:
        single = folder / f"diffusion_pytorch_model{suffix}.safetensors"
        listed = folder / f"diffusion_pytorch_model.safetensors.index{suffix}.json"
        if listed.is_file():
            return _shards(listed)
        if single.is_file():
            return [single]
    raise OSError(f"{folder} has no file named diffusion_pytorch_model.safetensors; no other weights are read.")


def _shards(listed: Path) -> list[Path]:
    places = read_json(listed).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) and all(map(_is_text, places.values())) else {""}
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{listed} names {name!r} as a file of weights; only safetensors beside it are read.")
    return [listed.parent / name for name in sorted(names)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def check_network(folder: Path, network: type, variant: str | None = None) -> None:
    """Refuse a network whose configuration and weights do not describe the same thing, without holding either.

    The configuration is built on the meta device, where tensors have no contents, and given up as soon as it has more
    parameters than the weights.

    Raises:
        ValueError: they differ, or nothing can be built from the configuration.
        OSError: a file is missing.
    """
    config, shapes = read_json(folder / "config.json"), shapes_of(folder, variant)
    if "quantization_config" in config:
        raise ValueError(f"{folder} holds quantised weights, which hfgen does not read; quantise after loading.")
    try:
        built = _shapes_from(network, config, len(shapes))
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{folder}/config.json describes no {network.__name__}: {reason}") from error
    for name in sorted(built.keys() | shapes.keys()):
        if built.get(name) != shapes.get(name):
            raise ValueError(
                f"{folder}: config.json and weights do not belong together. {name} should have shape "
                f"{built.get(name, 'none at all')} and has {shapes.get(name, 'none at all')}."
            )


def _shapes_from(network: type, config: Mapping[str, Any], most: int) -> dict[str, list[int]]:
    """Shapes of the state of a network with this configuration."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    here, count = threading.get_ident(), 0

    def counted(module: Any, name: str, parameter: Any) -> None:
        nonlocal count
        if threading.get_ident() == here:
            count += 1
            if count > 2 * most:  # parameters may be registered a second time, when they are replaced
                raise ValueError(f"more than {most} parameters, and the weights have no more")

    handle = register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            state = network.from_config(config).state_dict()
    finally:
        handle.remove()
    return {name: list(value.shape) for name, value in state.items()}

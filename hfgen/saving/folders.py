"""Checks of a saved pipeline's folder before anything is built from it: bounded in time and memory."""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..console.text import escaped
from ..disk.reading import JSON_BYTES, check_regular, is_finite, numbers_in, read_object
from .option_types import check_option_types

LARGEST = 1 << 24
"""Largest number in a configuration."""

LARGEST_SIDE = 1 << 14
"""Most pixels of a side of samples, of which no weight speaks."""

BOUNDS = MappingProxyType(
    {
        "num_train_timesteps": 100_000,
        "num_samples": 100_000,
        "max_train_samples": 1 << 62,
        "noise_seed": 1 << 63,
        "sample_size": LARGEST_SIDE,
        "resolution": LARGEST_SIDE,
    }
)
"""Largest numbers under some keys: tables of all time steps are kept, latents of an image are held, data may be many,
seeds have 63 bits."""

LEAST = MappingProxyType({"sample_size": 1, "num_train_timesteps": 1})
"""Least numbers under some keys."""

MAY_BE_INFINITE = ("lambda_min_clipped",)
"""Options of diffusers whose default is infinite."""

DTYPES = MappingProxyType(
    {
        **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"},
        **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    }
)
"""Dtypes of weights that are read, by their names in safetensors."""


def read_json(path: Path, most_bytes: int = JSON_BYTES, bounds: Mapping[str, int] = BOUNDS) -> dict[str, Any]:
    """Return the object in a JSON file of a pipeline's folder.

    Args:
        path: the file.
        most_bytes: its largest size.
        bounds: the largest number by key; `LARGEST` for all other keys.

    Raises:
        ValueError: the file is no regular file or too long, is not JSON, holds no object, or a number out of bounds.
        OSError: the file can't be read.
    """
    values = read_object(path, most_bytes)
    for key, value in numbers_in(values):
        if key not in MAY_BE_INFINITE and not is_finite(value):
            raise ValueError(f"{_shown(path, key, value)}, which is no finite number.")
        if not isinstance(value, bool) and is_finite(value) and abs(value) > bounds.get(key, LARGEST):
            raise ValueError(f"{_shown(path, key, value)}, which is out of all bounds.")
        if value < LEAST.get(key, value):
            raise ValueError(f"{_shown(path, key, value)}, which must be at least {LEAST[key]}.")
    return values


def _shown(path: Path, key: str, value: Any) -> str:
    return f"{path} has {escaped(key)[:200]}={value}"


def shapes_of(folder: Path, variant: str | None = None, stem: str = "diffusion_pytorch_model") -> dict[str, list[int]]:
    """Return the shapes of a component's weights by name; arguments and errors are those of `weights_of`."""
    return {name: list(tensor.shape) for name, tensor in weights_of(folder, variant, stem).items()}


def weights_of(folder: Path, variant: str | None = None, stem: str = "diffusion_pytorch_model") -> dict[str, Any]:
    """Return shapes and dtypes of a component's weights by name, as tensors without contents.

    They come from the headers of its safetensors files.

    Args:
        folder: the component's.
        variant: of the files; files without it where there are none with it.
        stem: beginning of the files' names: diffusers', or `model` for transformers.

    Raises:
        ValueError: a header or the list of files is damaged, or names files elsewhere or of another kind.
        OSError: there are no weights.
    """
    import torch

    weights: dict[str, Any] = {}
    for file, opened in _opened(_weight_files(folder, variant, stem)):
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            part = opened.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise ValueError(f"{file} holds {name} as {part.get_dtype()}; hfgen reads {', '.join(DTYPES)}.")
            dtype = getattr(torch, DTYPES[part.get_dtype()])
            weights[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return weights


def _opened(files: list[Path]) -> Iterator[tuple[Path, Any]]:
    """Yield each file of weights, opened. Raises ValueError for a damaged one, or one that is no regular file."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        check_regular(file)
        try:
            with safe_open(file, framework="pt") as opened:
                yield file, opened
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from error


def check_values(
    folder: Path,
    built: Mapping[str, Any],
    variant: str | None = None,
    stem: str = "diffusion_pytorch_model",
    infinite: tuple[str, ...] = (),
) -> None:
    """Refuse weights that are not finite, or are in another kind of dtype than the network has: whole numbers where it
    has fractions, or the other way round. A tensor at a time is in memory.

    Args:
        folder, variant, stem: see `weights_of`.
        built: the network's state, whose dtypes count.
        infinite: names of tensors in which infinity has a meaning.

    Raises:
        ValueError: names file and tensor.
    """
    for file, opened in _opened(_weight_files(folder, variant, stem)):
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            tensor = opened.get_tensor(name)
            wanted = built[name].dtype if name in built else tensor.dtype
            fractions = tensor.is_floating_point()
            if fractions != wanted.is_floating_point or not (fractions or tensor.dtype == wanted):
                found, wanted = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, wanted))
                raise ValueError(f"{file} holds {name} as {found}, and its configuration makes it {wanted}.")
            tensor = tensor.to(wanted)
            if fractions and bool(tensor.isnan().any() if name in infinite else not tensor.isfinite().all()):
                raise ValueError(f"{file} holds {name} with values that are not finite. Load other weights.")


def _weight_files(folder: Path, variant: str | None, stem: str) -> list[Path]:
    """Return the files of the variant if there are any, else those without; several if weights are in shards."""
    for suffix in [f".{variant}", ""] if variant else [""]:
        single = folder / f"{stem}{suffix}.safetensors"
        index = folder / f"{stem}.safetensors.index{suffix}.json"
        if index.exists():
            return _shards(index)
        if single.exists():
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
        ValueError: they differ, nothing can be built from the configuration, or weights are not finite.
        OSError: a file is missing.
    """
    config, weights = read_json(folder / "config.json"), weights_of(folder, variant)
    refuse_quantised(folder, config)
    check_option_types(folder / "config.json", config, network)
    built = built_state(lambda: network.from_config(config), network.__name__, folder, len(weights))
    check_shapes(folder, built, weights)
    check_dtype(folder, config, weights, variant)
    check_values(folder, built, variant, infinite=getattr(network, "may_be_infinite", ()))


def check_dtype(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Any], variant: str | None) -> None:
    """Raise ValueError for weights of another dtype than the configuration says, if it does.

    Variants share a configuration, which speaks of one of them.
    """
    said = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values() if tensor.is_floating_point()}
    if said and variant is None and found - {said}:
        raise ValueError(f"{folder}: config.json says {said}, and there are weights in {', '.join(sorted(found))}.")


def refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError if a component's configuration says that its weights are quantised."""
    if "quantization_config" in config:
        raise ValueError(f"{folder} holds quantised weights, which hfgen does not read; quantise after loading.")


def check_shapes(folder: Path, built: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Raise ValueError for the first name whose shape in the network (`built`) is not that of the weights."""
    shapes = [{name: list(tensor.shape) for name, tensor in part.items()} for part in (built, weights)]
    for name in sorted(built.keys() | weights.keys()):
        wanted, found = (part.get(name) for part in shapes)
        if wanted != found:
            raise ValueError(
                f"{folder}: config.json and weights do not belong together. {name} should have shape "
                f"{'none at all' if wanted is None else wanted} and has {'none at all' if found is None else found}."
            )


def built_state(build: Callable[[], Any], name: str, folder: Path, most: int) -> dict[str, Any]:
    """Return a network's state, built on the meta device. A tensor with several names has its first one.

    Args:
        build: makes the network.
        name: of its class.
        folder: of its configuration, for messages.
        most: number of weights; building stops when there are more parameters.

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
            if count > 2 * most:  # parameters may be registered a second time, when they are replaced
                raise ValueError(f"more than {most} parameters, and the weights have no more")

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
    return {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}

"""The identity of what a run is made of, as plain values: objects, and the revision of the code."""

import dataclasses
import functools
import hashlib
import pathlib
import subprocess
import types
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

import hfgen

from ..data.tensors import digest_of
from ..paths import Path

DEPTH = 6
"""Objects within objects that are followed."""


def identity_of(value: Any, depth: int = DEPTH) -> Any:
    """Return what defines a value, as JSON can hold it.

    A module is its class, a digest of its structure as torch prints it, the shape of each tensor in its state, and the
    configurations of diffusers' models in it. A tensor is its shape and a digest. A function is its name, and as an
    attribute also the numbers and texts that it holds: its defaults, and variables of the functions around it. Any
    other object is its class with its attributes, except for names that begin with an underscore, and for lists,
    dictionaries and sets: an object may fill them while it is used. Of a path these are also some of its values.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "digest": digest_of({"value": value})}
    if isinstance(value, nn.Module):
        structure = hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
        shapes = {key: list(tensor.shape) for key, tensor in value.state_dict().items() if isinstance(tensor, Tensor)}
        return {"class": type(value).__name__, "structure": structure, "shapes": shapes, "configs": _configs(value)}
    if depth == 0:
        return type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): identity_of(each, depth - 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [identity_of(each, depth - 1) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    if isinstance(value, functools.partial):
        attributes = {"func": value.func, "args": value.args, **value.keywords}
    elif dataclasses.is_dataclass(value):
        attributes = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        attributes = {name: each for name, each in getattr(value, "__dict__", {}).items() if name[0] != "_"}
        attributes = {name: each for name, each in attributes.items() if not isinstance(each, list | dict | set)}
    parts = {name: identity_of(each, depth - 1) for name, each in attributes.items()}
    if isinstance(value, Path):
        parts["values"] = _values(value)
    held = {f"{name} holds": _held(each) for name, each in attributes.items() if hasattr(each, "__code__")}
    return {"class": type(value).__name__, **parts, **held}


def _values(path: Path) -> list[float]:
    """Return alpha and sigma of a path at eight times, to six decimals: the same on every machine."""
    point = path(torch.linspace(0.125, 1, 8, dtype=torch.float64))
    return [round(value, 6) for value in (*point.alpha.tolist(), *point.sigma.tolist())]


def _configs(module: nn.Module) -> dict[str, Any]:
    """Return the configurations of the modules in a module that have one, without what diffusers adds to them."""
    found = {name: getattr(part, "config", None) for name, part in module.named_modules()}
    return {
        name: {key: identity_of(value) for key, value in config.items() if key[0] != "_"}
        for name, config in found.items()
        if isinstance(config, Mapping)
    }


def _held(function: Any) -> list[Any]:
    """Return the numbers, texts and tensors among the defaults of a function, and among the variables around it."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *cells]
    return [identity_of(value) for value in values if isinstance(value, bool | int | float | str | tuple | Tensor)]


def revision() -> Mapping[str, str]:
    """Return {"revision": the git commit of hfgen's checkout, "+" for changes since}; {} if it was installed
    otherwise."""
    root = pathlib.Path(hfgen.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return MappingProxyType({})
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return {"revision": subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}
    except (OSError, subprocess.CalledProcessError):  # no git here, or none that may read it
        return MappingProxyType({})

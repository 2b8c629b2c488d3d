"""The identity of what a run is made of, as plain values: objects, and the revision of the code."""

import dataclasses
import dis
import functools
import hashlib
import pathlib
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
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

    A module is its class, a digest of its structure as torch prints it, the shape of each tensor in its state, the
    configurations of diffusers' models in it, and the functions that its parts hold. A tensor is its shape and a
    digest. A function is its name, and as an attribute also the numbers and texts that it holds: its defaults, and
    variables of the functions around it; and its code if its name does not tell it from others, see `code_of`. Any
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
        parts = {"class": type(value).__name__, "structure": structure, "shapes": shapes, "configs": _configs(value)}
        return {**parts, "functions": _functions(value)}
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
    codes = {f"{name} does": code for name, each in attributes.items() if (code := code_of(each)) is not None}
    return {"class": type(value).__name__, **parts, **held, **codes}


def code_of(value: Any, depth: int = DEPTH) -> Any:
    """Return what a function does, or functions in a tuple: {version of Python: digest}; None for anything else.

    Only functions without a name of their own are compared by what they do: lambdas, functions inside of others, and
    those of a notebook or script, where the next cell may define the name again. The digest is that of the compiled
    code with its constants, defaults, the variables around it and the global variables that it reads. Another version
    of Python compiles otherwise, and can't be compared.
    """
    if isinstance(value, tuple):
        codes = [code_of(each, depth) for each in value]
        return codes if any(code is not None for code in codes) else None
    function = getattr(value, "__func__", value)
    if not isinstance(function, types.FunctionType):
        return None
    if "<" not in function.__qualname__ and function.__module__ != "__main__":
        return None
    if (function.__module__ or "").split(".")[0] == "hfgen":  # its version is in the checkpoint
        return None
    seen = repr(_compiled(function.__code__, function.__doc__)) + repr(_read(function, depth))
    return {sys.implementation.cache_tag: hashlib.blake2b(seen.encode(), digest_size=8).hexdigest()}


def _compiled(code: types.CodeType, doc: str | None = None) -> Any:
    """Return what compiled code does: no names of its variables, no docstring, no place in a file."""
    constants = [_compiled(each) if isinstance(each, types.CodeType) else each for each in code.co_consts]
    constants = [sorted(map(repr, each)) if isinstance(each, frozenset) else each for each in constants]
    return code.co_code.hex(), [None if doc is not None and each == doc else each for each in constants], code.co_names


def _read(function: types.FunctionType, depth: int) -> list[Any]:
    """Return the plain values, tensors and functions that a function reads: its defaults, and variables around it."""
    if depth == 0:
        return []
    names = dict.fromkeys(_globals(function.__code__))
    values = [function.__globals__.get(name) for name in names] + _variables(function)
    plain = (bool, int, float, str, tuple, Tensor)
    return [identity_of(value, 1) if isinstance(value, plain) else code_of(value, depth - 1) for value in values]


def _globals(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the global variables that compiled code and the functions in it read."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _globals(each)


def _functions(module: nn.Module) -> dict[str, Any]:
    """Return the functions that are attributes of the modules in a module: their names, and what they do."""
    held = ((f"{part}.{name}", each) for part, one in module.named_modules() for name, each in vars(one).items())
    functions = {name: each for name, each in held if isinstance(each, types.FunctionType | types.BuiltinFunctionType)}
    return {name: {"name": each.__qualname__, "does": code_of(each)} for name, each in functions.items()}


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
    kinds = bool | int | float | str | tuple | Tensor
    return [identity_of(value) for value in _variables(function) if isinstance(value, kinds)]


def _variables(function: Any) -> list[Any]:
    """Return the defaults of a function, and the variables around it."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *cells]


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

"""The defaults of public arguments: each is a choice that the docs state. Saved folders may leave it out."""

import importlib
import inspect
from collections.abc import Iterable
from typing import Any


def defaults_of(call: Any) -> dict[str, Any]:
    """Return the defaults of a function's arguments but None, and but `return_dict`, which has to be true."""
    found = {p.name: p.default for p in inspect.signature(call).parameters.values() if p.default is not p.empty}
    assert found.pop("return_dict", True) is True, call
    return {name: value for name, value in found.items() if value is not None}


def defaults_in(package: str, modules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the defaults of the public functions, classes and methods of modules, by their names."""
    found = {}
    for module in (importlib.import_module(f"{package}.{name}") for name in modules):
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        for name, member in own.items():
            calls = {name: member} if inspect.isfunction(member) else {}
            if inspect.isclass(member):
                methods = {key: getattr(value, "__func__", value) for key, value in vars(member).items()}
                methods = {key: value for key, value in methods.items() if inspect.isfunction(value)}
                calls = {f"{name}.{key}".removesuffix(".__init__"): value for key, value in methods.items()}
            found |= {key: values for key, call in calls.items() if (values := defaults_of(call))}
    return {key: value for key, value in found.items() if "._" not in key.replace(".__call__", "")}

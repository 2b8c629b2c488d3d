"""The layers of low-rank adapters in a network, which peft makes."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn


def inject_factors(network: nn.Module, layers: Sequence[str], rank: int, alpha: float, name: str, **more: Any) -> Any:
    """Give layers of a network the factors of a new adapter: A random, B zero. Returns peft's configuration.

    Args:
        network: changed in place.
        layers: their full names.
        rank, alpha: r and alpha.
        name: of the adapter.
        more: further entries of `LoraConfig`.

    Raises:
        ValueError: peft is not installed.
    """
    library = _peft()
    config = library.LoraConfig(r=rank, lora_alpha=alpha, target_modules="|".join(map(re.escape, layers)), **more)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        library.inject_adapter_in_model(config, network, name)
    return config


def _peft() -> Any:
    try:
        import peft as library  # named so that diffusers does not look for it whenever it loads this file
    except ImportError as error:
        raise ValueError('Adapters need the package peft: pip install "hfgen[lora]", or pip install peft.') from error
    return library


def adapted_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers of a network that have adapters, by name."""
    return {name: part for name, part in network.named_modules() if hasattr(part, "lora_A")}


def stated_config(network: nn.Module, name: str) -> dict[str, Any]:
    """Return peft's configuration of an adapter, without what it leaves at "none"."""
    config = network.peft_config[name].to_dict()
    return {key: value for key, value in config.items() if _says(value)}


def _says(value: Any) -> bool:
    """Return whether an entry of peft's configuration is there and can be written as JSON."""
    return value not in (None, False, {}, []) and isinstance(value, str | int | float | dict | list)

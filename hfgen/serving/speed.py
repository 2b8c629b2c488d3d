"""Faster networks of a pipeline: compiled ones, and linear layers with weights of 8 bits.

torchao is imported only where weights are quantised.
"""

import importlib.util
from typing import Any

import torch

from ..utils.arguments import checked
from ..utils.devices import cast

LEAST_SHARE = 0.5
"""Share of the weights that linear layers must hold, or quantising them would hardly change a network's size."""


def networks_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Return the networks of a pipeline by the names of its components."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


@checked
def compile_networks(pipeline: Any) -> None:
    """Let `torch.compile` translate the networks of a pipeline, at their first calls. Their classes and weights stay.

    Only `forward` is compiled. So a network whose sampler calls other methods, such as that of an image transformer
    with its cache, is not faster.
    """
    for network in networks_of(pipeline).values():
        network.compile()


def check_torchao() -> None:
    """Check that torchao is installed. Raises ValueError if it is not."""
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("8-bit weights need torchao. Install it: pip install 'hfgen[int8]'")


@checked
def quantize(pipeline: Any) -> None:
    """Round the weights of a pipeline's linear layers to 8 bits, with one scale for each output (torchao).

    Activations keep their precision. Layers of another kind are left as they are.

    Raises:
        ValueError: torchao is missing, or linear layers hold less than half of the weights of a pipeline's networks.
    """
    check_torchao()
    networks = networks_of(pipeline)
    held = sum(linear_weights(network) for network in networks.values())
    total = sum(parameter.numel() for network in networks.values() for parameter in network.parameters())
    if held < LEAST_SHARE * total:
        raise ValueError(
            f"8-bit weights would change {held / total:.0%} of the weights of {type(pipeline).__name__}, those of its "
            f"linear layers; at least {LEAST_SHARE:.0%} are needed. Use bfloat16 instead."
        )
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for network in networks.values():
        quantize_(network, Int8WeightOnlyConfig())


def prepare(pipeline: Any, dtype: str = "float32", int8: bool = False, compiled: bool = False) -> None:
    """Make a pipeline faster: `dtype` first, then 8-bit weights, then compiled networks. float32 changes no precision.

    Raises:
        ValueError: as `quantize`.
    """
    if dtype != "float32":
        cast(pipeline, dtype)
    if int8:
        quantize(pipeline)
    if compiled:
        compile_networks(pipeline)


def linear_weights(network: torch.nn.Module) -> int:
    """Return the number of weights in the linear layers of a network."""
    return sum(part.weight.numel() for part in network.modules() if isinstance(part, torch.nn.Linear))

"""Hidden layers of a network: which one is the middle, and what it puts out."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

MIDDLE = "mid_block"
"""How diffusers' U-Nets call their middle."""


def middle_layer(network: nn.Module) -> str:
    """Return the name of the middle of a network: the middle block of a U-Net, or the block after half of those of a
    transformer.

    Raises:
        ValueError: the network has neither.
    """
    names = [name for name, _ in network.named_modules()]
    if middle := [name for name in names if name.rpartition(".")[2] == MIDDLE]:
        return middle[0]
    blocks = getattr(network, "blocks", ())
    if len(blocks):
        return f"blocks.{len(blocks) // 2}"
    raise ValueError(f"{type(network).__name__} has no {MIDDLE} and no blocks. Name a layer.")


@contextlib.contextmanager
def outputs_of(network: nn.Module, layer: str) -> Iterator[list[Any]]:
    """Record the outputs of a module of the network inside the context.

    Raises:
        ValueError: the network has no module of this name; names those that it has.
    """
    modules, outputs = dict(network.named_modules()), []
    if layer not in modules or not layer:
        near = sorted({name for name in modules if name.count(".") <= 1 and name})
        raise ValueError(f"layer={layer!r} is not known. Choose one of: {', '.join(near)}, or a part of one.")
    handle = modules[layer].register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def hidden_output(output: Any, layer: str | None) -> Tensor:
    """Return what a layer put out, maps (B, C, h, w) or tokens (B, N, C). Raises ValueError for anything else."""
    output = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise ValueError(f"The output of {layer!r} is no map (B, C, h, w) and no tokens (B, N, C). Name another layer.")
    return output

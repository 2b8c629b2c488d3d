"""Devices that networks run on. torch is imported inside the function: commands import this file for their help."""

from typing import Any


def place(part: Any, device: Any = None) -> Any:
    """Move a network or pipeline to a device and return it.

    Args:
        part: anything with a method `to`.
        device: a torch device or its name; None: CUDA if available, else MPS, else the CPU.

    Raises:
        ValueError: the device does not exist or is not available.
    """
    import torch

    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return part.to(device or best)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={str(device or best)!r} can't be used: {str(error).splitlines()[0]}") from None

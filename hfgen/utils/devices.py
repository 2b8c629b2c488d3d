"""Devices that networks run on, and the memory of this machine.

torch is imported inside the function: commands import this file for their help.
"""

import os
from typing import Any

UNKNOWN = 32 << 30
"""Bytes of memory where the system does not say them."""


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


def memory() -> int:
    """Return the bytes of this machine's memory; `UNKNOWN` where the system does not say them, as on Windows."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN

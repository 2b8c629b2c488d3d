"""Devices that networks run on, and the memory of this machine.

torch is imported inside the function: commands import this file for their help.
"""

import ctypes
import logging
import os
from typing import Any

UNKNOWN = 32 << 30
"""Bytes of memory where the system does not say them."""


TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`, from its malloc.h."""


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
    if str(device or best).startswith("cpu"):
        keep_freed_memory()
    try:
        return part.to(device or best)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={str(device or best)!r} can't be used: {str(error).splitlines()[0]}") from None


def cast(part: Any, dtype: str) -> Any:
    """Move a network or pipeline to a precision by its name, such as `bfloat16`, and return it.

    diffusers 0.42 warns of modules that should stay in float32 even where there are none ("[]"); only that is not said.
    """
    import torch

    logger = logging.getLogger("diffusers.models.modeling_utils")
    logger.addFilter(_names_modules)
    try:
        return part.to(getattr(torch, dtype))
    finally:
        logger.removeFilter(_names_modules)


def _names_modules(record: logging.LogRecord) -> bool:
    """Return whether a message names modules, if it is one about those that should stay in float32."""
    return "should be kept in float32: []" not in record.getMessage()


def memory() -> int:
    """Return the bytes of this machine's memory; `UNKNOWN` where the system does not say them, as on Windows."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones.

    glibc gives large freed blocks back to the system. Every step on a CPU then waits for a page fault for every 4 KiB
    of its tensors: an eighth of the time of a small U-Net. Other C libraries than glibc are left as they are. Source:
    the manual page mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_MAX, 0)

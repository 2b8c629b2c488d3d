"""Where networks run. No torch before it is needed: commands import this file for their help."""

from typing import Any


def placed(part: Any, device: Any = None) -> Any:
    """A network or pipeline on this device; None: the best there is. Raises ValueError where there is no such one."""
    import torch

    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return part.to(device or best)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={str(device or best)!r} can't be used: {str(error).splitlines()[0]}") from None

"""Which pipelines draw samples, and which of these are pictures."""

import inspect
from typing import Any


def check_draws(pipeline: Any, fix: str) -> None:
    """Raise ValueError, with the sentence `fix`, for a pipeline that draws no samples: its call takes no generator."""
    if "generator" not in inspect.signature(pipeline.__call__).parameters:
        raise ValueError(f"{type(pipeline).__name__} draws no samples. {fix}")


def draws_images(pipeline: Any) -> bool:
    """Return whether the samples of a pipeline are images that have a PIL mode: (C, H, W) of 1, 3 or 4 channels."""
    return len(pipeline.sample_shape) == 3 and pipeline.sample_shape[0] in (1, 3, 4)

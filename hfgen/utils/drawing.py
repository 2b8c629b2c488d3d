"""Which pipelines draw samples, and which of these are pictures."""

import inspect
from typing import Any


def check_draws(pipeline: Any, fix: str) -> None:
    """Raise ValueError for a pipeline that draws no samples: its call takes no generator.

    The message ends with what the pipeline says of it in `draws_instead`, else with the sentence `fix`.
    """
    if "generator" not in inspect.signature(pipeline.__call__).parameters:
        raise ValueError(f"{type(pipeline).__name__} draws no samples. {getattr(pipeline, 'draws_instead', fix)}")


def draws_images(pipeline: Any) -> bool:
    """Return whether the samples of a pipeline are images that have a PIL mode: (C, H, W) of 1, 3 or 4 channels."""
    return len(pipeline.sample_shape) == 3 and pipeline.sample_shape[0] in (1, 3, 4)

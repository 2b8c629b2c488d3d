"""Which pipelines draw samples."""

import inspect
from typing import Any


def check_draws(pipeline: Any, fix: str) -> None:
    """Raise ValueError, with the sentence `fix`, for a pipeline that draws no samples: its call takes no generator."""
    if "generator" not in inspect.signature(pipeline.__call__).parameters:
        raise ValueError(f"{type(pipeline).__name__} draws no samples. {fix}")

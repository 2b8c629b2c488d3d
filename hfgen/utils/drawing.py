"""Which pipelines draw samples."""

import inspect
from typing import Any


def check_draws(pipeline: Any) -> None:
    """Raise ValueError for a pipeline whose call draws no samples, such as one of word vectors."""
    if "batch_size" not in inspect.signature(pipeline.__call__).parameters:
        raise ValueError(
            f"A {type(pipeline).__name__} draws no samples: its methods are for Python. Its card shows how to call it."
        )

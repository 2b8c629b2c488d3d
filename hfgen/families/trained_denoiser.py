"""The trained denoiser that a training starts from or learns from."""

from pathlib import Path
from typing import Any

import hfgen


def load_denoiser(folder: str | None, output: str, purpose: str) -> Any:
    """Load the pipeline of a trained denoiser.

    Args:
        folder: the pipeline's folder or name on the Hub.
        output: the folder that the run writes.
        purpose: what is done with it, for messages: "to straighten".

    Raises:
        ValueError: no folder is given, it is `output`, or its pipeline is no denoiser.
    """
    if folder is None:
        raise ValueError(f"Give the trained pipeline {purpose}: --pipeline outputs/quickstart")
    if Path(folder).resolve() == Path(output).resolve():
        raise ValueError(f"--pipeline {folder} would be overwritten. Choose another --output_dir.")
    pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
    if not isinstance(pipeline, hfgen.DenoisingPipeline):
        raise ValueError(f"{folder} holds a {type(pipeline).__name__}; --pipeline needs a DenoisingPipeline.")
    return pipeline

"""The trained pipeline that a training starts from or learns from."""

from pathlib import Path
from typing import Any

import hfgen

from ..console.text import with_article


def shown_name(folder: str) -> str:
    """Return how a card names a pipeline: by the last part of its path, as no folder of this machine is shown, or by
    its name on the Hub."""
    path = Path(folder).expanduser()
    return path.resolve().name if path.exists() else folder


def load_trained(folder: str | None, output: Path | str, kind: type, purpose: str, option: str = "pipeline") -> Any:
    """Load the pipeline that an option names.

    Args:
        folder: the pipeline's folder or name on the Hub.
        output: the folder that the run writes.
        kind: the class of pipelines that the run needs.
        purpose: what is done with it, for messages: "to straighten".
        option: names the folder on the command line.

    Raises:
        ValueError: no folder is given, it is `output`, or its pipeline is of another kind, or a denoiser that was
            distilled into one step: nothing follows from it about other levels of noise.
    """
    if folder is None:
        raise ValueError(f"Give the trained pipeline {purpose}: --pipeline outputs/quickstart")
    if Path(folder).resolve() == Path(output).resolve():
        raise ValueError(f"--{option} {folder} would be overwritten. Choose another --output_dir.")
    pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
    if not isinstance(pipeline, kind):
        raise ValueError(
            f"{folder} holds {with_article(type(pipeline).__name__)}; --{option} needs {with_article(kind.__name__)}."
        )
    if "scheduler" in pipeline.components and pipeline.scheduler.config.get("start_ratio") is not None:
        raise ValueError(
            f"{folder} draws in one step, from one level of noise, and has not learnt the others. Give the pipeline "
            "that it was distilled from."
        )
    if isinstance(pipeline, hfgen.DenoisingPipeline):
        pipeline.forget_variances()  # they are of these weights, and others are trained from here
    return pipeline

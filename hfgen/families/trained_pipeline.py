"""The trained pipeline that a training starts from or learns from."""

from pathlib import Path
from typing import Any

import hfgen

from ..console.text import with_article
from ..registry import resolve


def shown_name(folder: str) -> str:
    """Return how a card names a pipeline: by the last part of its path, as no folder of this machine is shown, or by
    its name on the Hub."""
    path = Path(folder).expanduser()
    return path.resolve().name if path.exists() else folder


DENOISERS = ("DenoisingPipeline", "LatentPipeline")
"""Classes of pipelines with a denoiser."""


def load_denoiser(folder: str | None, output: Path | str, purpose: str) -> Any:
    """Load the pipeline with a denoiser that an option names; arguments and errors are those of `load_trained`."""
    return load_trained(folder, output, tuple(map(resolve, DENOISERS)), purpose)


def load_trained(
    folder: str | None, output: Path | str, kind: type | tuple[type, ...], purpose: str, option: str = "pipeline"
) -> Any:
    """Load the pipeline that an option names.

    Args:
        folder: the pipeline's folder or name on the Hub.
        output: the folder that the run writes.
        kind: the class of pipelines that the run needs, or several.
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
        kinds = kind if isinstance(kind, tuple) else (kind,)
        needed = " or ".join(with_article(each.__name__) for each in kinds)
        raise ValueError(f"{folder} holds {with_article(type(pipeline).__name__)}; --{option} needs {needed}.")
    if "scheduler" in pipeline.components and pipeline.scheduler.config.get("start_ratio") is not None:
        raise ValueError(
            f"{folder} draws in one step, from one level of noise, and has not learnt the others. Give the pipeline "
            "that it was distilled from."
        )
    if type(pipeline).__name__ in DENOISERS:
        pipeline.forget_variances()  # they are of these weights, and others are trained from here
    return pipeline

"""The "Next:" lines of a command: what to run with what it has made, right for this pipeline and these data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..command_line.option_rules import changed_options
from ..console.text import shell_text
from ..evaluation.options import EvaluateOptions, GuideOptions
from ..options import DataArgs

SAMPLING = ("lora", "scheduler", "num_inference_steps", "guidance_scale", "device", "dtype")
"""Options of an evaluation that `hfgen sample` takes as well."""


def after_evaluation(
    options: EvaluateOptions, pipeline: Any, data_args: DataArgs, guide_options: GuideOptions | None = None
) -> list[str]:
    """Return the commands that show what was judged, as it was drawn, and what it was judged against.

    Args:
        options: of the evaluation.
        pipeline: None for a folder of images, or a pipeline that draws nothing.
        data_args: the real images.
        guide_options: what guided the pipeline; None: nothing.
    """
    from ..pipelines.classes import class_text
    from ..utils.drawing import draws_images

    lines = []
    if pipeline is not None:
        given = {name: value for name, value in changed_options(options).items() if name in SAMPLING}
        given |= {} if guide_options is None else changed_options(guide_options)
        classes = pipeline.config.get("num_classes")
        if classes is not None:
            given["class_labels"] = class_text(min(3, classes - 1), pipeline.config.get("label_names"))
        place = {"grid": "grid.png"} if draws_images(pipeline) else {"output_dir": "samples"}
        lines.append(shell_text(["hfgen", "sample", options.target, *flags({"num_samples": 16, **given, **place})]))
    shown = {"dataset": data_args.dataset, **changed_options(data_args), "grid": "real.png"}
    return [*lines, shell_text(["hfgen", "data", *flags(shown)])]


def after_comparison(home: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the commands that choose a model by a comparison's report, and check rules of thumb against it.

    Args:
        home: folder of the comparison.
        rows: of its report; without one that was measured there is nothing to choose.
    """
    if not any(row["status"] == "measured" for row in rows):
        return []
    recommend = ["hfgen", "recommend", "--report", str(home / "report.json")]
    return [shell_text(recommend), shell_text([*recommend, "--rules"])]


def flags(values: Mapping[str, Any]) -> list[str]:
    """Return options and their values as words of a command line."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]

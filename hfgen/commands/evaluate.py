"""`hfgen evaluate`: measure a pipeline, or a folder of images, against a data set."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..console.endings import one_line
from ..console.notes import say_next
from ..disk.files import OptionalWrites, check_writable, write_picture
from ..disk.lock import refuse_ways_out
from ..evaluation.options import EvaluateOptions, GuideOptions
from ..options import DataArgs, parse, parser
from ..saving.saved import holds_adapter, holds_pipeline
from ..utils.adapters import adapters_in
from .launch import has_option, launch
from .next_lines import after_evaluation

PANEL = "nearest.png"
"""Generated images beside their nearest training images."""

EXAMPLE = (
    "hfgen evaluate outputs/mnist --dataset ylecun/mnist --dataset_split test --num_samples 10000 "
    "--metrics frechet,kernel_distance,precision_recall --scheduler dpmsolver++ --num_inference_steps 10"
)


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, and save the metrics with their protocol to metrics.json and to the model card.

    With `--num_processes N` this process is replaced by accelerate's launcher, which runs N processes of this module.
    """
    argv = sys.argv[1:] if argv is None else argv
    if has_option(argv, "--num_processes"):
        launch("hfgen.commands.evaluate", argv, "hfgen evaluate")
    description = "Measure a trained pipeline, or a folder of images, against real images."
    command = parser("hfgen evaluate", description, EXAMPLE, EvaluateOptions, GuideOptions, DataArgs)
    parsed = parse(command, argv, EvaluateOptions, GuideOptions, DataArgs)
    run(parsed[0], parsed.given_of(DataArgs), parsed[1])


def run(
    options: EvaluateOptions,
    data_args: DataArgs | Mapping[str, Any] | None = None,
    guide_options: GuideOptions | None = None,
) -> list[dict[str, Any]]:
    """Measure, print and save. Returns the entries of metrics.json; an empty list in processes other than the first.

    Args:
        options: the options.
        data_args, guide_options: real images and guides, see `hfgen.evaluation.evaluate.measure`.

    Raises:
        ValueError: options, data and pipeline do not fit together, or metrics.json or the card holds something else.
        OSError: metrics.json can't be written; known before anything is measured, or after the entries are printed.
    """
    from ..evaluation.evaluate import measure
    from ..metrics import report
    from ..saving import card

    path = _target(options)
    if path is not None:  # refused before anything is measured
        if not options.output:
            refuse_ways_out(path.parent, (path.name, "README.md", PANEL))
        report.read(path)
        check_writable(path)
    if _has_card(options):
        card.check(_home(options))
    result = measure(options, data_args, guide_options)
    if result is None:
        return []
    print(report.table(result.measurements), flush=True)
    if path is not None:
        _save(options, path, result)
    say_next(after_evaluation(options, result.pipeline, result.data_args, guide_options))
    return result.entries


def _target(options: EvaluateOptions) -> Path | None:
    """Return the metrics.json to write: without `--output` the pipeline's; None for a folder of images."""
    if options.output:
        return Path(options.output)
    folder = _home(options)
    return folder / "metrics.json" if holds_pipeline(folder) or holds_adapter(folder) else None


def _home(options: EvaluateOptions) -> Path:
    """Return the folder of what is measured: of the adapter if there is one, else of the pipeline.

    Raises:
        ValueError: there are several adapters, or it is on the Hub, and no `--output` is given.
    """
    if options.lora is None or options.output:
        return Path(options.target)
    folders = [Path(choice.source) for choice in adapters_in(options.lora)]
    if len(folders) > 1 or not holds_adapter(folders[0]):
        raise ValueError(
            f"--lora {options.lora} is not the folder of one adapter, which results belong to. Give --output."
        )
    return folders[0]


def _has_card(options: EvaluateOptions) -> bool:
    """Return whether the results are also entered in the card of the folder of what is measured."""
    return not options.output and _target(options) is not None


def _save(options: EvaluateOptions, path: Path, result: Any) -> None:
    """Write metrics.json, the card's results, and the panel of nearest training images if there is one.

    Raises:
        OSError: metrics.json can't be written; the entries were printed, so that they are not lost.
    """
    from ..evaluation.samples import nearest_panel
    from ..metrics import report
    from ..saving import card

    try:
        report.write(path, result.entries)
    except (OSError, ValueError):
        print(json.dumps({"evaluation": result.entries}), flush=True)
        raise
    print(f"Saved to {path}")
    optional = OptionalWrites()
    for comparison in (each for each in result.comparisons[:1] if each.train is not None):
        with optional(f"the panel {path.with_name(PANEL)}"):
            write_picture(path.with_name(PANEL), nearest_panel(comparison))
            print(f"Generated images beside their nearest training images: {path.with_name(PANEL)}")
    if _has_card(options):
        with optional("the results in the model card"):
            card.add_results(_home(options))


if __name__ == "__main__":  # in each process of accelerate's launcher
    with one_line():
        main()

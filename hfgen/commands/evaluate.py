"""`hfgen evaluate`: measure a pipeline, or a folder of images, against a data set."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.options import EvaluateOptions
from ..options import DataArgs, given_options, parse, parser
from ..utils.console import say_error
from .launch import has_option, launch

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
    command = parser("hfgen evaluate", description, EXAMPLE, EvaluateOptions, DataArgs)
    options, _ = parse(command, argv, EvaluateOptions, DataArgs)
    run(options, given_options(command, argv, DataArgs))


def run(options: EvaluateOptions, data_args: DataArgs | Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Measure, print and save. Returns the entries of metrics.json; an empty list in processes other than the first.

    Args:
        options: the options.
        data_args: the real images; see `hfgen.evaluation.evaluate.measure`.

    Raises:
        ValueError: options, data and pipeline do not fit together.
    """
    from ..evaluation.evaluate import measure
    from ..metrics import report

    if options.output:
        report.read(Path(options.output))  # refuses before anything is measured
    result = measure(options, data_args)
    if result is None:
        return []
    print(report.table(result.measurements))
    _save(options, result)
    return result.entries


def _save(options: EvaluateOptions, result: Any) -> None:
    """Write metrics.json, the card's results, and the panel of nearest training images if there is one.

    Without `--output` they go to the pipeline's folder; metrics of a folder of images are then not saved.
    """
    from ..evaluation.samples import nearest_panel
    from ..metrics import report
    from ..saving import card

    folder = Path(options.target)
    is_pipeline = (folder / "model_index.json").is_file()
    path = Path(options.output) if options.output else folder / "metrics.json" if is_pipeline else None
    if path is None:
        return
    report.write(path, result.entries)
    print(f"Saved to {path}")
    comparison = result.comparison
    if comparison is not None and comparison.train is not None:
        nearest_panel(comparison).save(path.with_name("nearest.png"))
        print(f"Generated images beside their nearest training images: {path.with_name('nearest.png')}")
    if is_pipeline and not options.output:
        card.add_results(folder)


if __name__ == "__main__":  # in each process of accelerate's launcher
    try:
        main()
    except (ValueError, OSError) as error:
        say_error(error)
        sys.exit(1)

"""`hfgen compare`: train families under one budget, measure them by one protocol, and write a report."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..command_line.option_rules import changed_options
from ..compare import recipes
from ..compare.budget import BUDGETS, Budget
from ..compare.formats import duration, plural
from ..compare.recipes import Configuration
from ..console.endings import FAILED, status_of
from ..console.notes import say_error, say_next
from ..console.text import shell_text
from ..disk.files import write_json
from ..disk.lock import FolderLock
from ..options import DataArgs, Options, option, parse, parser
from ..utils.ranges import AT_LEAST_0, COUNT, COUNTS, REPEATS, SEED, Form
from .next_lines import after_comparison, flags

EXAMPLE = "hfgen compare --dataset digits --train_budget 2m --families vae,rectified_flow --output_dir outputs/compare"
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass
class CompareOptions(Options):
    """Comparison"""

    COMMON = (
        *("families", "ablation", "train_budget", "held_out_split", "output_dir", "seed", "num_seeds", "features"),
        *("num_samples", "num_likelihood", "num_inference_steps", "batch_sizes", "device"),
    )

    families: str | None = option(
        None, f"separated by commas: {', '.join(recipes.RECIPES)}; default: all, or none with --ablation"
    )
    ablation: str | None = option(
        None, f"options to vary in one family's recipe, separated by commas: {', '.join(recipes.ABLATIONS)}"
    )
    train_budget: str = option(
        "2m",
        "budget of each training: 90s, 2m, 1h, '200k images' or '2e15 flops'",
        range=Form(Budget.parse, BUDGETS),
        former=("budget",),
    )
    held_out_split: str | None = option(
        None, "split that nothing is trained on; default: test, or the last 297 images of digits"
    )
    output_dir: str = option("outputs/compare", "folder for everything; a repeated command continues in it", path=True)
    seed: int = option(0, "seed of trainings and samples", range=SEED)
    num_seeds: int = option(
        1,
        "trainings of each row, with seeds from --seed on; metrics are their means, with deviation",
        range=COUNT,
        former=("seeds",),
    )
    features: str = option(
        "auto", "feature networks, see hfgen evaluate --help; auto: both for the images' shape", path=True
    )
    num_samples: int = option(
        2000, "the most samples of a row, and the most real images they are compared with", range=COUNT
    )
    num_likelihood: int = option(128, "held-out images for bits per dimension and reconstruction", range=COUNT)
    neighbours: int = option(5, "k of precision, recall, density and coverage", range=COUNT)
    bootstrap: int = option(50, "bootstrap samples for a 95 % interval; 0: none", range=REPEATS)
    num_inference_steps: str = option(
        "1,2,5,10,20",
        "numbers of sampling steps to time, for families with a scheduler",
        range=COUNTS,
        former=("steps",),
    )
    batch_sizes: str = option("1,64", "batch sizes to time", range=COUNTS, former=("batches",))
    dtypes: str = option("float32,bfloat16", f"precisions to time: {', '.join(DTYPES)}")
    latency_seconds: float = option(1.0, "seconds that a timed call is repeated", range=AT_LEAST_0)
    reference_cache: str | None = option(None, "folder for features of real images; default: ~/.cache/hfgen", path=True)
    device: str | None = option(None, "device of measurements: cpu, cuda, mps; default: the best there is")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure and report; a repeated command continues where the last one stopped.

    Raises:
        SystemExit: with the signal's status, 130 for Ctrl-C, if one stopped a training; 1 if a training failed.
        ValueError: a wrong option, or a folder of another comparison.
    """
    description = "Train families on the same data under the same budget, measure them alike, and write a report."
    command = parser("hfgen compare", description, EXAMPLE, CompareOptions, DataArgs)
    options, data_args = parse(command, argv, CompareOptions, DataArgs)
    budget, protocol = Budget.parse(options.train_budget), _protocol(options)
    data_args, held_out = splits(data_args, options.held_out_split)

    from ..compare import report
    from ..compare.jobs import StopRequest, check_saved

    home = Path(options.output_dir)
    with FolderLock(home), _quiet():
        check_saved(home)
        evaluator = _evaluator(options, data_args, held_out, protocol)
        selection = configurations(options, evaluator.side)
        shared = {**evaluator.facts(), "budget of a training": budget.text, "trainings of a row": options.num_seeds}
        print(_estimate(len({row.run for row in selection}) * options.num_seeds, budget), flush=True)
        rows = []
        for number, configuration in enumerate(selection, 1):
            title = f"[{number}/{len(selection)}] {configuration.name}"
            try:
                rows.append(_row(configuration, options, data_args, held_out, evaluator, budget, title))
            except StopRequest as stop:
                print(f"Stopped. The same command continues from the state in {home}.")
                raise SystemExit(status_of(stop.number)) from None
            report.write(home, report.assemble(home, rows, shared, _command(options, data_args, held_out)))
    print(f"\n{report.summary(rows)}\n\nIn {home}/: report.html, report.md, report.json")
    failed = [row["name"] for row in rows if row["status"] == "failed"]
    if len(failed) < len(rows):
        say_next(after_comparison(home, rows))
    if failed:
        say_error(f"not trained: {', '.join(failed)}. The notes in {home / 'report.md'} say why.")
        raise SystemExit(FAILED)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside the block diffusers shows no bars and no warnings: each row loads and casts a pipeline."""
    from diffusers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _evaluator(options: CompareOptions, data_args: DataArgs, held_out: str, protocol: Any) -> Any:
    """Load the data and the feature network that all rows are measured with."""
    from accelerate import PartialState

    from ..compare.evaluator import Evaluator

    device = options.device or PartialState().device
    return Evaluator(data_args, held_out, protocol, device, options.reference_cache)


def _printer(title: str) -> Callable[[str], None]:
    """Return a function that prints a line with this title in front."""
    return lambda text: print(f"{title}: {text}", flush=True)


def _estimate(trainings: int, budget: Budget) -> str:
    """Return the number of trainings, and their total time if the budget is a time."""
    text = f"{plural(trainings, 'training')} of {budget.text}"
    if budget.kind != "seconds":
        return f"{text}, each measured afterwards"
    return f"{text}: {duration(trainings * budget.amount)} in all, and each is measured afterwards"


def _row(
    configuration: Configuration,
    options: CompareOptions,
    data_args: DataArgs,
    held_out: str,
    evaluator: Any,
    budget: Budget,
    title: str,
) -> dict[str, Any]:
    """Train a configuration once for each seed, measure, and return the aggregate row of report.json.

    All trainings have the number of steps that the budget allows the first one; under a budget of seconds, each has as
    many as fit into them. A training that fails becomes a note.

    Raises:
        StopRequest: a signal stopped a training.
    """
    from ..compare.aggregate import aggregate
    from ..compare.jobs import TrainingError

    steps: dict[str, int] = {}
    rows = {}
    for seed in range(options.seed, options.seed + options.num_seeds):
        stages = _stages(configuration, options, data_args, held_out, budget, seed)
        log = _printer(title if options.num_seeds == 1 else f"{title}: seed {seed}")
        try:
            _train(stages, steps, log)
            rows[seed] = _measure([job for job, _ in stages], steps, evaluator, log)
        except TrainingError as error:
            log(f"failed: {error}")
            rows[seed] = {**_identity([job for job, _ in stages], steps), **failure(str(error))}
    return aggregate(rows)


def _stages(
    configuration: Configuration,
    options: CompareOptions,
    data_args: DataArgs,
    held_out: str,
    budget: Budget,
    seed: int,
) -> list[tuple[Any, Budget]]:
    """Return the trainings of a row with their budgets, in order: its own, after that which it begins with."""
    from ..compare.jobs import Job

    home, suffix = Path(options.output_dir), "" if seed == options.seed else f"-seed{seed}"
    parts = [(configuration, configuration.share)]
    if configuration.first is not None:
        parts.insert(0, (configuration.first, 1 - configuration.share))
    stages, folder = [], None
    for each, share in parts:
        part, replica = budget.part(share), dataclasses.replace(each, run=f"{each.run}{suffix}")
        stages.append((Job(replica, data_args, held_out, seed, home, part.seconds, folder), part))
        folder = stages[-1][0].folder
    return stages


def _train(stages: Sequence[tuple[Any, Budget]], steps: dict[str, int], log: Callable[[str], None]) -> None:
    """Train the stages of a row one after the other; a training that is complete already is not repeated.

    Args:
        stages: from `_stages`.
        steps: optimiser steps by the name of a training; those that are not known yet are planned and added.
        log: prints a line.

    Raises:
        TrainingError: a training left no pipeline.
        StopRequest: a signal stopped one.
    """
    from ..compare.jobs import plan_steps, train

    for job, budget in stages:
        name = job.configuration.name
        stage = log if len(stages) == 1 else lambda text, name=name: log(f"{name}: {text}")
        if name not in steps:
            steps[name] = plan_steps(job, budget, stage)
        train(job, steps[name], stage)


def _identity(jobs: Sequence[Any], steps: dict[str, int]) -> dict[str, Any]:
    """Return the keys of a row of report.json that are known before the training."""
    row = jobs[-1].configuration
    return {
        "study": row.study,
        "family": row.family,
        "name": row.name,
        "setting": row.setting,
        "folder": row.run,
        "command": " && ".join(job.command(steps.get(job.configuration.name)) for job in jobs),
    }


def _measure(jobs: Sequence[Any], steps: dict[str, int], evaluator: Any, log: Callable[[str], None]) -> dict[str, Any]:
    """Return the row of trainings that are complete; a measurement that is complete already is not repeated."""
    from ..compare.evaluator import training_facts
    from ..compare.jobs import read_saved
    from ..compare.report_shape import SAVED_ROW

    job = jobs[-1]
    configuration, home = job.configuration, job.home
    facts = {**_identity(jobs, steps), **training_facts(*(each.folder for each in jobs))}
    if job.seconds is not None:
        seconds = sum(each.seconds for each in jobs)
        log(f"{facts['training_seconds']:.1f} s of training for a budget of {seconds:g} s")
    path = home / "rows" / f"{configuration.study}-{configuration.run}-{configuration.steps or 'own'}.json"
    protocol = {**evaluator.facts(), **dataclasses.asdict(evaluator.protocol)}
    key = json.loads(json.dumps({**facts, "protocol": protocol}))
    if path.is_file():
        previous = read_saved(path, SAVED_ROW)
        if previous.get("key") == key:
            log("is measured already")
            return previous["row"]
    log("measuring")
    row = {**facts, **evaluator.measure(configuration, job.folder, home, log)}
    write_json(path, {"key": key, "row": row})
    return row


def failure(message: str) -> dict[str, Any]:
    """Return the keys of a row of report.json whose training failed, besides its identity."""
    unknown = ("parameters", "training_seconds", "training_steps", "images_seen", "peak_memory_mib")
    status = {"status": "failed", "notes": [f"training failed: {message}"], **dict.fromkeys(unknown)}
    return {**status, "figures": {}, "speed": [], "abilities": []}


def configurations(options: CompareOptions, side: int) -> list[Configuration]:
    """Return the rows that the options select, for images whose shorter side is `side` pixels.

    Raises:
        ValueError: an unknown family or ablation.
    """
    names, studies = (_words(text) for text in (options.families, options.ablation))
    families = recipes.families(side, names) if names or not studies else []
    return [*families, *(row for study in studies for row in recipes.ablation(study, side))]


def splits(data_args: DataArgs, held_out: str | None) -> tuple[DataArgs, str]:
    """Return the training data and the name of the held-out split: by default `test`.

    `digits` has no test split: its last 297 images are held out by default, and the first 1,500 trained on.
    """
    if held_out is None and data_args.dataset == "digits" and data_args.dataset_split == "train":
        return dataclasses.replace(data_args, dataset_split="train[:1500]"), "train[1500:]"
    return data_args, held_out or "test"


def _protocol(options: CompareOptions) -> Any:
    """Return the options' `Protocol`. Raises ValueError for unknown precisions."""
    from ..compare.evaluator import Protocol

    steps, batches = (COUNTS.parse(text) for text in (options.num_inference_steps, options.batch_sizes))
    dtypes = tuple(_words(options.dtypes))
    if not dtypes or set(dtypes) - set(DTYPES):
        raise ValueError(f"dtypes={options.dtypes!r}: choose from {', '.join(DTYPES)}, separated by commas.")
    names = ("features", "num_samples", "num_likelihood", "neighbours", "bootstrap", "seed")
    values = {name: getattr(options, name) for name in names}
    return Protocol(**values, steps=steps, batches=batches, seconds=options.latency_seconds, dtypes=dtypes)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _command(options: CompareOptions, data_args: DataArgs, held_out: str) -> str:
    """Return the command that repeats the comparison: data, held-out split, budget, and options not at default."""
    values = {"dataset": data_args.dataset, **changed_options(data_args), "held_out_split": held_out}
    values |= {"train_budget": options.train_budget, **changed_options(options)}
    return shell_text(["hfgen", "compare", *flags(values)])

"""`hfgen compare`: train families under one budget, measure all by one protocol, and write a report."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..compare import recipes
from ..compare.budget import Budget
from ..compare.recipes import Configuration
from ..compare.tables import duration
from ..options import DataArgs, option, parse, parser

EXAMPLE = "hfgen compare --dataset digits --budget 2m --families vae,rectified_flow --output_dir outputs/compare"
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass
class CompareOptions:
    """Comparison"""

    families: str | None = option(
        None, f"separated by commas: {', '.join(recipes.RECIPES)}; default: all that can be trained, unless --ablation"
    )
    ablation: str | None = option(
        None, f"what to vary in one family's recipe, separated by commas: {', '.join(recipes.ABLATIONS)}"
    )
    budget: str = option("2m", "of each training: 90s, 2m, 1h of steps, '200k images' or '2e15 flops'")
    held_out_split: str | None = option(
        None, "real images that nothing is trained on; default: test, or of digits the last 297"
    )
    output_dir: str = option("outputs/compare", "folder for everything; the same command goes on in it")
    seed: int = option(0, "of trainings and samples")
    seeds: int = option(1, "trainings of each row, with seeds from --seed on; figures are means, with their spread")
    features: str = option("auto", "feature network: digits, mnist, cifar10, inception, a Hub id")
    num_samples: int = option(2000, "images drawn of each row, and real images they are compared with, at most")
    num_likelihood: int = option(128, "held-out images for bits per dimension and reconstruction")
    neighbours: int = option(5, "k of precision, recall, density and coverage")
    bootstrap: int = option(50, "repeats behind a 95 % interval; 0: none")
    steps: str = option("1,2,5,10,20", "numbers of steps to time, of families that draw in steps")
    batches: str = option("1,64", "batch sizes to time")
    dtypes: str = option("float32,bfloat16", f"precisions to time: {', '.join(DTYPES)}")
    latency_seconds: float = option(1.0, "a timed call is repeated for about so long")
    reference_cache: str | None = option(None, "folder for features of real images; default: ~/.cache/hfgen")
    device: str | None = option(None, "of measuring: cpu, cuda, mps; default: the best there is")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, report."""
    about = "Train families on the same data under the same budget, measure all by one protocol, and write a report."
    command = parser("hfgen compare", about, EXAMPLE, CompareOptions, DataArgs)
    options, data_args = parse(command, argv, CompareOptions, DataArgs)
    budget, protocol = Budget.parse(options.budget), _protocol(options)
    data_args, held_out = splits(data_args, options.held_out_split)

    from accelerate import PartialState
    from diffusers.utils import logging

    from ..compare import report
    from ..compare.evaluator import Evaluator
    from ..compare.jobs import Stopped

    logging.set_verbosity_error()  # of loading and of casting, which happen for every row
    logging.disable_progress_bar()
    device = options.device or PartialState().device
    bench = Evaluator(data_args, held_out, protocol, device, options.reference_cache)
    chosen = configurations(options, bench.side)
    home = Path(options.output_dir)
    home.mkdir(parents=True, exist_ok=True)
    shared = {**bench.facts(), "budget of a training": budget.text, "trainings of a row": options.seeds}
    print(_outlook(len({row.run for row in chosen}) * options.seeds, budget), flush=True)
    rows = []
    for number, configuration in enumerate(chosen, 1):
        say = _teller(f"[{number}/{len(chosen)}] {configuration.name}")
        try:
            rows.append(_row(configuration, options, data_args, held_out, bench, budget, say))
        except Stopped:
            raise SystemExit(_stopped(home)) from None
        report.write(home, report.assemble(home, rows, shared, _command(options, data_args, held_out)))
    print(f"\n{report.summary(rows)}\n\nIn {home}/: report.html, report.md, report.json")


def _outlook(trainings: int, budget: Budget) -> str:
    """What there is to do, and how long the part of it takes that is known beforehand."""
    said = f"{trainings} training{'s' * (trainings > 1)} of {budget.text}"
    if budget.kind != "seconds":
        return f"{said}, each measured afterwards"
    return f"{said}: {duration(trainings * budget.amount)} in all, and each is measured afterwards"


def _stopped(home: Path) -> int:
    print(f"Stopped. The same command goes on from what is in {home}.")
    return 130


def _teller(name: str) -> Callable[[str], None]:
    """Prints a line that begins with this name."""
    return lambda text: print(f"{name}: {text}", flush=True)


def _row(
    configuration: Configuration,
    options: CompareOptions,
    data_args: DataArgs,
    held_out: str,
    bench: Any,
    budget: Budget,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The row of report.json of a configuration: its trainings, as long as the first, pooled.

    Raises:
        Stopped: a training was stopped.
    """
    from ..compare.aggregate import pooled
    from ..compare.jobs import Job, TrainingError, planned

    jobs = {}
    for seed in range(options.seed, options.seed + options.seeds):
        run = configuration.run if seed == options.seed else f"{configuration.run}-seed{seed}"
        each = dataclasses.replace(configuration, run=run)
        jobs[seed] = Job(each, data_args, held_out, seed, Path(options.output_dir))
    steps, found = None, {}
    for seed, job in jobs.items():
        told = say if options.seeds == 1 else lambda text, seed=seed: say(f"seed {seed}: {text}")
        try:
            steps = steps or planned(job, budget, told)
            found[seed] = _measured(job, steps, bench, told)
        except TrainingError as error:
            told(f"failed: {error}")
            found[seed] = {**_about(job, steps), **failed(str(error))}
    return pooled(found)


def _about(job: Any, steps: int | None) -> dict[str, Any]:
    """What report.json says of a training beforehand."""
    row = job.configuration
    about = {"study": row.study, "family": row.family, "name": row.name, "setting": row.setting, "folder": row.run}
    return {**about, "command": job.command(steps)}


def _measured(job: Any, steps: int, bench: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """The row of one training: trained and measured, or found as it was left.

    Raises:
        TrainingError: the training left no pipeline.
        Stopped: it was stopped.
    """
    from ..compare.evaluator import training_facts
    from ..compare.jobs import train

    train(job, steps, say)
    row, home = job.configuration, job.home
    told = {**_about(job, steps), **training_facts(job.folder)}
    path = home / "rows" / f"{row.study}-{row.run}-{row.steps or 'own'}.json"
    key = json.loads(json.dumps({**told, "protocol": {**bench.facts(), **dataclasses.asdict(bench.protocol)}}))
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            say("is measured already")
            return kept["row"]
    say("measuring")
    found = {**told, **bench.measure(row, job.folder, home, say)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": key, "row": found}, indent=2) + "\n", encoding="utf-8")
    return found


def failed(why: str) -> dict[str, Any]:
    """What report.json says of a row that could not be trained."""
    nothing = ("parameters", "training_seconds", "training_steps", "images_seen", "peak_memory_mib")
    about = {"status": "failed", "notes": [f"training failed: {why}"], **dict.fromkeys(nothing)}
    return {**about, "figures": {}, "speed": [], "abilities": []}


def configurations(options: CompareOptions, side: int) -> list[Configuration]:
    """The rows that are asked for, on images of this shorter side. Raises ValueError for unknown names."""
    names, studies = (_words(text) for text in (options.families, options.ablation))
    found = recipes.families(side, names) if names or not studies else []
    return [*found, *(row for study in studies for row in recipes.ablation(study, side))]


def splits(data_args: DataArgs, held_out: str | None) -> tuple[DataArgs, str]:
    """What is trained on, and the split that is held out: test by default. The digits have none, so that their last
    297 are held out from the rest."""
    if held_out is None and data_args.dataset == "digits" and data_args.dataset_split == "train":
        return dataclasses.replace(data_args, dataset_split="train[:1500]"), "train[1500:]"
    return data_args, held_out or "test"


def _protocol(options: CompareOptions) -> Any:
    """The protocol that the options ask for. Raises ValueError for numbers out of range and unknown precisions."""
    from ..compare.evaluator import Protocol

    for name in ("num_samples", "num_likelihood", "neighbours", "seeds"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)} must be at least 1.")
    numbers = {}
    for name in ("steps", "batches"):
        words = _words(getattr(options, name))
        if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
            raise ValueError(f"{name}={getattr(options, name)!r} must be positive numbers separated by commas.")
        numbers[name] = tuple(map(int, words))
    dtypes = tuple(_words(options.dtypes))
    if not dtypes or set(dtypes) - set(DTYPES):
        raise ValueError(f"dtypes={options.dtypes!r} must be of {', '.join(DTYPES)}, separated by commas.")
    same = {name: getattr(options, name) for name in ("features", "num_samples", "num_likelihood", "neighbours")}
    same |= {"bootstrap": options.bootstrap, "seed": options.seed, "seconds": options.latency_seconds}
    return Protocol(**same, **numbers, dtypes=dtypes)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _command(options: CompareOptions, data_args: DataArgs, held_out: str) -> str:
    """What repeats the comparison: the options that are not as they come."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {f.name: given[f.name] for f in dataclasses.fields(options) if given[f.name] != f.default}
    data = {f.name: getattr(data_args, f.name) for f in dataclasses.fields(data_args)}
    data = {f.name: data[f.name] for f in dataclasses.fields(data_args) if data[f.name] != f.default}
    shown = {"dataset": data_args.dataset, **data, "held_out_split": held_out, "budget": options.budget, **given}
    return shlex.join(
        ["hfgen", "compare", *(word for key, value in shown.items() for word in (f"--{key}", str(value)))]
    )

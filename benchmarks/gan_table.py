"""Comparison of GANs: `hfgen train gan` trains each for the same time, and `hfgen evaluate` measures it.

    python benchmarks/gan_table.py --dataset path/to/mnist --minutes 10

Each classic is trained with the optimiser, the learning rates and the turns of its paper, with other real images for
each turn, and in three ways:

- `paper`: at a constant learning rate, as in the paper;
- `schedule`: with the LR schedule of the recipe (100 steps of warm-up, then cosine), and the rates of the paper;
- `tuned`: with this schedule, and the rates of the paper times the best factor of FACTORS. Each factor is tried in a
  run of a third of the time with another seed, and what each of them gave is printed.

The recipe has its schedule in each of its rows. All rows have the same time, seeds, batch size and precision. A short
run of each row, just before its training, measures the speed. It fixes the number of steps, so that LR schedules end
with the time. Finished trainings and measurements are not repeated: an interrupted run goes on. Prints a Markdown table
and writes gan_table.json.
"""

import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from measured import Measured

from hfgen.metrics.names import JOINT
from hfgen.options import option, parse, parser

NETWORKS = "--model dcgan --model_size s --r1 0 --max_grad_norm null"
DCGAN_ADAM = "--adam_beta1 0.5 --adam_beta2 0.999"
SAGAN_ADAM = "--adam_beta1 0 --adam_beta2 0.9"


class Row(NamedTuple):
    """A GAN: options of `hfgen train gan`, and the paper's learning rates of generator and, if other, discriminator.

    Without a rate the row is our own recipe, whose rate and schedule are part of its options.
    """

    options: str
    rate: float | None = None
    discriminator_rate: float | None = None


ROWS = {
    "recipe": Row("--model_size xs"),
    "recipe without R1": Row("--model_size xs --r1 0"),
    "residual, relativistic, R1 + R2": Row(
        "--model residual --loss relativistic --r1 1 --r2 1 --penalty_every 2 --learning_rate 1e-3 --max_grad_norm null"
    ),
    "DCGAN, non-saturating": Row(f"{NETWORKS} --loss non_saturating {DCGAN_ADAM}", 2e-4),
    "DCGAN, two time scales": Row(f"{NETWORKS} --loss non_saturating {DCGAN_ADAM}", 5e-4, 1e-4),
    "WGAN": Row(f"{NETWORKS} --loss wasserstein --weight_clip 0.01 --n_critic 5 --optimizer rmsprop", 5e-5),
    "WGAN-GP": Row(
        f"{NETWORKS} --loss wasserstein --gradient_penalty 10 --penalty_every 1 --n_critic 5 {SAGAN_ADAM}", 1e-4
    ),
    "LSGAN": Row(f"{NETWORKS} --loss least_squares {DCGAN_ADAM}", 2e-4),
    "SNGAN": Row(f"{NETWORKS} --loss hinge --spectral_norm --n_critic 5 {SAGAN_ADAM}", 2e-4),
    "hinge, spectral norm, two time scales": Row(f"{NETWORKS} --loss hinge --spectral_norm {SAGAN_ADAM}", 1e-4, 4e-4),
    "CLC-GAN": Row(f"{NETWORKS} --loss non_saturating --control 1 {DCGAN_ADAM}", 2e-4),
}
"""Rows, with the optimisers of their papers: DCGAN (Radford et al. 2016) and LSGAN (Mao et al. 2017): Adam(2e-4, .5,
.999); DCGAN with two time scales on CIFAR-10 (Heusel et al. 2017): 5e-4 and 1e-4; WGAN (Arjovsky et al. 2017):
RMSProp(5e-5); WGAN-GP (Gulrajani et al. 2017): Adam(1e-4, 0, .9); SNGAN (Miyato et al. 2018): Adam(2e-4, 0, .9) and
five turns; hinge with two time scales (SAGAN, Zhang et al. 2019): Adam(1e-4 and 4e-4, 0, .9). CLC-GAN (Xu et al. 2020)
has the optimiser of DCGAN, as it has its networks."""

FACTORS = (1.0, 2.5, 5.0, 10.0)
"""Multiples of the paper's learning rates that are tried for a tuned row."""

TUNING_SEED = 1000
"""Seed of the trials, which no row of the table has."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    dataset: str = option("ylecun/mnist", "data set to train on, whose test split is compared with")
    rows: str = option(",".join(name.replace(",", "") for name in ROWS), "rows, separated by commas")
    ways: str = option("paper,schedule,tuned", "ways to train a classic, separated by commas")
    minutes: float = option(10.0, "minutes of training for each row and seed")
    seeds: int = option(3, "number of runs of each row, with seeds 0, 1, ...")
    shared: str = option("--mixed_precision bf16 --train_batch_size 64", "options of all rows")
    num_samples: int = option(5000, "number of samples, and of test images they are compared with")
    probe_steps: int = option(100, "steps of the run that measures the speed")
    output_dir: str = option("outputs/gan_table", "folder for the runs and the JSON file")


def hfgen(*words: str) -> None:
    """Run a command of hfgen. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "hfgen.cli", *words], check=True, stdout=sys.stderr)


def words_of(row: Row, way: str, factor: float = 1.0) -> list[str]:
    """Return the options of a row in one of the ways to train it."""
    words = shlex.split(row.options)
    if row.rate is not None:
        words += ["--learning_rate", f"{factor * row.rate:g}"]
        words += ["--lr_scheduler", "constant"] if way == "paper" else []
    if row.discriminator_rate is not None:
        words += ["--discriminator_learning_rate", f"{factor * row.discriminator_rate:g}"]
    return words


def train(words: list[str], folder: str, steps: int) -> dict[str, Any]:
    """Train for `steps` steps and return metrics.json."""
    quiet = ["--report_to", "none", "--sample_steps", "0", "--health_steps", "0", "--logging_steps", "50"]
    hfgen("train", "gan", *words, *quiet, "--max_train_steps", str(steps), "--output_dir", folder)
    return json.loads((Path(folder) / "metrics.json").read_text())


def measure(folder: Path, words: list[str], seed: int, minutes: float, options: Options) -> dict[str, Any]:
    """Train for so many minutes, unless the folder is finished, and measure."""
    words = ["--dataset", options.dataset, "--seed", str(seed), "--checkpointing_steps", "0", *words]
    words += shlex.split(options.shared)
    if not (folder / "metrics.json").is_file():
        with tempfile.TemporaryDirectory() as probe:
            speed = train(words, probe, options.probe_steps)
        seconds = speed["training_seconds"] / speed["steps"]
        train(words, str(folder), max(1, round(minutes * 60 / seconds)))
    reference = ["--dataset", options.dataset, "--dataset_split", "test", "--num_samples", str(options.num_samples)]
    hfgen(
        "evaluate", str(folder), *reference, "--metrics", "frechet,precision_recall,class_coverage", "--bootstrap", "0"
    )
    facts = json.loads((folder / "metrics.json").read_text())
    metrics = {entry["metric"]: entry["value"] for entry in facts["evaluation"]}
    keys = ("steps", "training_seconds", "images_seen", "images_per_second", "parameters", "hardware")
    return {**metrics, **{key: facts[key] for key in keys}}


def best_factor(name: str, options: Options, results: Measured) -> float:
    """Return the factor of FACTORS whose trial has the smallest Frechet distance."""
    distances = {}
    for factor in FACTORS:
        folder = Path(options.output_dir) / f"{folder_name(name)}-trial-{factor:g}"
        words = words_of(ROWS[name], "tuned", factor)
        trial = results.get(
            f"trial, {name}, {factor:g}",
            lambda folder=folder, words=words: measure(folder, words, TUNING_SEED, options.minutes / 3, options),
        )
        distances[factor] = frechet_of(trial)
        print(f"trial of {name}, rates x {factor:g}: Frechet distance {distances[factor]:.3f}", flush=True)
    return min(distances, key=distances.__getitem__)


def folder_name(text: str) -> str:
    """Return a row's name as the name of a folder."""
    return text.replace(", ", "-").replace(" ", "-")


def frechet_of(result: dict[str, Any]) -> float:
    """Return the geometric mean of the Frechet distances by both networks; of earlier runs the distance by one."""
    names = [name for beginning in (JOINT, "Frechet") for name in result if name.startswith(beginning)]
    return result[names[0]]


def run(name: str, way: str, options: Options, results: Measured) -> list[dict[str, Any]]:
    """Train and measure a row in one way with all seeds."""
    factor = best_factor(name, options, results) if way == "tuned" else 1.0
    runs = []
    for seed in range(options.seeds):
        folder = Path(options.output_dir) / f"{folder_name(name)}-{way}-{seed}"
        words = words_of(ROWS[name], way, factor)
        result = results.get(
            f"{name}, {way}, {seed}",
            lambda folder=folder, words=words, seed=seed: measure(folder, words, seed, options.minutes, options),
        )
        runs.append({"row": name, "way": way, "seed": seed, "options": " ".join(words), **result})
        print(json.dumps(runs[-1]), flush=True)
    return runs


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with a line for each run, and one with the distances of all ways to train a row."""
    hidden = ("row", "options", "parameters", "hardware")
    columns = [key for key in rows[0] if key not in hidden]
    lines = [f"| GAN | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for each in rows:
        values = [each[key] for key in columns]
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        lines.append(f"| {each['row']} | {' | '.join(cells)} |")
    lines += ["", "| GAN | trained | Frechet, mean over seeds | each |", "|---|---|---|---|"]
    for name, way in dict.fromkeys((each["row"], each["way"]) for each in rows):
        values = [frechet_of(each) for each in rows if (each["row"], each["way"]) == (name, way)]
        each = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {name} | {way} | {statistics.mean(values):.2f} | {each} |")
    return "\n".join(lines)


def plan(options: Options) -> list[tuple[str, str]]:
    """Return the rows and the ways to train them. Raises SystemExit for an unknown name."""
    names = {name.replace(",", ""): name for name in ROWS}
    words, ways = ([word.strip() for word in text.split(",")] for text in (options.rows, options.ways))
    for given, known in ((words, [*names]), (ways, ["paper", "schedule", "tuned"])):
        if unknown := [word for word in given if word not in known]:
            sys.exit(f"error: there are no rows or ways {', '.join(unknown)}. Choose from: {', '.join(known)}.")
    return [(names[word], way) for word in words for way in (ways if ROWS[names[word]].rate else ["schedule"])]


def main() -> None:
    """Train and measure all rows; print and write the table."""
    example = "python benchmarks/gan_table.py --dataset path/to/mnist --minutes 10"
    command = parser("gan_table.py", __doc__.splitlines()[0], example, Options, config=False)
    (options,) = parse(command, None, Options)
    settings = {"minutes": options.minutes, "samples": options.num_samples, "shared": options.shared}
    results = Measured(Path(options.output_dir) / "gan_table.json", settings)
    rows = [each for name, way in plan(options) for each in run(name, way, options, results)]
    print(f"\n{table(rows)}\n\nWrote {options.output_dir}/gan_table.json")


if __name__ == "__main__":
    main()

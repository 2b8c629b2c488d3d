"""Comparison of GANs: `hfgen train gan` trains each for the same time, and `hfgen evaluate` measures it.

    python benchmarks/gan_table.py --dataset path/to/mnist --minutes 10

A short run of each row, just before its training, measures the speed. It fixes the number of steps, so that LR
schedules end with the time. A row whose folder is finished is only measured again. Prints a Markdown table and writes
gan_table.json.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hfgen.options import option, parse, parser

DCGAN = "--model dcgan --model_size s --r1 0 --learning_rate 2e-4 --lr_scheduler constant --max_grad_norm null"
MOMENTUM = "--adam_beta1 0.5 --adam_beta2 0.999"
ROWS = {
    "recipe": "--model_size xs",
    "recipe without R1": "--model_size xs --r1 0",
    "residual, relativistic, R1 + R2": "--model residual --loss relativistic --r1 1 --r2 1 --penalty_every 2 "
    "--learning_rate 1e-3 --max_grad_norm null",
    "DCGAN, non-saturating": f"{DCGAN} --loss non_saturating {MOMENTUM}",
    "WGAN": f"{DCGAN} --loss wasserstein --weight_clip 0.01 --n_critic 5",
    "WGAN-GP": f"{DCGAN} --loss wasserstein --gradient_penalty 10 --penalty_every 1 --n_critic 5 --adam_beta2 0.9",
    "LSGAN": f"{DCGAN} --loss least_squares {MOMENTUM}",
    "hinge, spectral norm": f"{DCGAN} --loss hinge --spectral_norm {MOMENTUM}",
    "CLC-GAN": f"{DCGAN} --loss non_saturating --control 1 {MOMENTUM}",
}
"""Options of `hfgen train gan` for each row, besides the options of all rows."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    dataset: str = option("ylecun/mnist", "data set to train on, whose test split is compared with")
    rows: str = option(",".join(name.replace(",", "") for name in ROWS), "rows, separated by commas")
    minutes: float = option(10.0, "minutes of training for each row and seed")
    seeds: int = option(1, "number of runs of each row, with seeds 0, 1, ...")
    shared: str = option("--mixed_precision bf16 --train_batch_size 64", "options of all rows")
    num_samples: int = option(5000, "number of samples, and of test images they are compared with")
    probe_steps: int = option(100, "steps of the run that measures the speed")
    output_dir: str = option("outputs/gan_table", "folder for the runs and the JSON file")


def hfgen(*words: str) -> None:
    """Run a command of hfgen. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "hfgen.cli", *words], check=True, stdout=sys.stderr)


def train(words: list[str], folder: str, steps: int) -> dict[str, Any]:
    """Train for `steps` steps and return metrics.json."""
    quiet = ["--report_to", "none", "--sample_steps", "0", "--health_steps", "0", "--logging_steps", "50"]
    hfgen("train", "gan", *words, *quiet, "--max_train_steps", str(steps), "--output_dir", folder)
    return json.loads((Path(folder) / "metrics.json").read_text())


def row(name: str, seed: int, options: Options) -> dict[str, Any]:
    """Train and measure one run."""
    words = ["--dataset", options.dataset, "--seed", str(seed), "--checkpointing_steps", "0"]
    words += shlex.split(f"{options.shared} {ROWS[name]}")
    folder = Path(options.output_dir) / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not (folder / "metrics.json").is_file():
        with tempfile.TemporaryDirectory() as probe:
            speed = train(words, probe, options.probe_steps)
        seconds = speed["training_seconds"] / speed["steps"]
        train(words, str(folder), max(1, round(options.minutes * 60 / seconds)))
    reference = ["--dataset", options.dataset, "--dataset_split", "test", "--num_samples", str(options.num_samples)]
    hfgen("evaluate", str(folder), *reference, "--metrics", "frechet,prdc,modes", "--bootstrap", "0")
    facts = json.loads((folder / "metrics.json").read_text())
    metrics = {entry["metric"].split(" (")[0]: entry["value"] for entry in facts["evaluation"]}
    keys = ("steps", "training_seconds", "images_per_second", "parameters", "hardware")
    return {"row": name, "seed": seed, "options": ROWS[name], **metrics, **{key: facts[key] for key in keys}}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with a line for each run."""
    hidden = ("row", "options", "parameters", "hardware")
    columns = [key for key in rows[0] if key not in hidden]
    lines = [f"| GAN | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for run in rows:
        values = [run[key] for key in columns]
        cells = [f"{value:.4g}" if isinstance(value, float) else f"{value:,}" for value in values]
        lines.append(f"| {run['row']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train and measure all rows; print and write the table."""
    example = "python benchmarks/gan_table.py --dataset path/to/mnist --minutes 10"
    command = parser("gan_table.py", __doc__.splitlines()[0], example, Options, config=False)
    (options,) = parse(command, None, Options)
    names = {name.replace(",", ""): name for name in ROWS}
    words = [word.strip() for word in options.rows.split(",")]
    if unknown := [word for word in words if word not in names]:
        sys.exit(f"error: there are no rows {', '.join(unknown)}. Choose from: {', '.join(names)}.")
    output, rows = Path(options.output_dir), []
    for word in words:
        for seed in range(options.seeds):
            rows.append(row(names[word], seed, options))
            print(json.dumps(rows[-1]), flush=True)
            result = {"minutes": options.minutes, "samples": options.num_samples, "rows": rows}
            (output / "gan_table.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{table(rows)}\n\nWrote {output}/gan_table.json")


if __name__ == "__main__":
    main()

"""A table of diffusion, rectified flow and reflow on one data set, by sampler and number of steps.

    python benchmarks/results_table.py --diffusion outputs/mnist-vp --rectified_flow outputs/mnist-rf \
        --reflowed outputs/mnist-reflow --dataset path/to/mnist --dataset_split test

Each row is one call of `hfgen evaluate`, which is printed before it. All rows have the same noise (seed + i) and the
same reference images, and networks in bfloat16. Images per second are measured on one batch, after a warm-up. `--bits`
adds bits per dimension of the models, in float32. Prints a Markdown table. results_table.json is written after each
row, and rows in this file are not measured again.
"""

import dataclasses
import json
import shlex
import time
from pathlib import Path
from typing import Any

from hfgen.metrics.names import JOINT
from hfgen.options import DataArgs, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    diffusion: str | None = option(None, "folder of a pipeline on a diffusion path")
    rectified_flow: str | None = option(None, "folder of a rectified flow")
    reflowed: str | None = option(None, "folder of this rectified flow after reflow")
    num_samples: int = option(4000, "samples and reference images of each row")
    features: str = option("auto", "feature networks, separated by commas; auto: both for the images' shape")
    seed: int = option(0, "image i is drawn with seed + i")
    bits: int = option(0, "test images for bits per dimension; 0: none")
    rates: bool = option(False, "measure images per second of all rows again, when the machine is idle")
    only: str | None = option(None, "measure only rows whose name contains this")
    output_dir: str = option("outputs/results_table", "folder for the JSON file")


SAMPLERS = {
    "diffusion": {"ddpm": (100,), "ddim": (20, 50), "dpmsolver++": (5, 10, 20)},
    "rectified_flow": {"euler": (1, 2, 5, 10, 20), "rectified_flow": (1, 2, 5, 10, 20, 50)},
    "reflowed": {"euler": (1, 2, 5, 10, 20), "rectified_flow": (1, 2, 5, 10, 20)},
}
"""Rows of each model: schedulers by their names in `hfgen evaluate`, and numbers of steps."""

COLUMNS = (JOINT, "Frechet distance", "FID", "kernel distance", "KID", "precision", "recall")
"""Beginnings of the names of metrics in the table, each with its feature network."""


def rows(options: Options) -> list[tuple[str, str, str, int]]:
    """Return (name, folder, scheduler, steps) of each requested row."""
    requested = []
    for model, samplers in SAMPLERS.items():
        folder = getattr(options, model)
        for scheduler, counts in samplers.items() if folder else ():
            requested += [(f"{model}, {scheduler} {steps}", folder, scheduler, steps) for steps in counts]
    return [row for row in requested if options.only is None or options.only in row[0]]


def measure(options: Options, given: dict[str, Any], folder: str, scheduler: str, steps: int) -> dict[str, Any]:
    """Measure one row against the data that the pipeline was trained on, except for the `given` options of data."""
    from hfgen.commands.evaluate import EvaluateOptions, run

    words = {**given, "num_samples": options.num_samples, "seed": options.seed, "dtype": "bfloat16"}
    words |= {"scheduler": scheduler, "num_inference_steps": steps}
    shown = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    print(shlex.join(["hfgen", "evaluate", folder, *shown]), flush=True)
    call = EvaluateOptions(folder, num_samples=options.num_samples, features=options.features, seed=options.seed)
    call.scheduler, call.num_inference_steps, call.dtype = scheduler, steps, "bfloat16"
    entries = run(call, given)
    metrics: dict[str, Any] = {"images_per_second": rate(folder, scheduler, steps)}
    for entry in entries:
        if entry["metric"].startswith(COLUMNS):
            metrics[entry["metric"]] = {key: entry.get(key) for key in ("value", "interval", "deviation")}
    return metrics


def rate(folder: str, scheduler: str, steps: int, batch: int = 64) -> float:
    """Measure images per second on a batch, after one step of warm-up."""
    import torch

    from hfgen import HFGenPipeline

    pipeline = HFGenPipeline.from_pretrained(folder).to(torch.bfloat16)
    pipeline.use_scheduler(scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(batch_size=batch, num_inference_steps=1, output_type="latent")
    start = time.perf_counter()
    pipeline(batch_size=batch, num_inference_steps=steps, output_type="latent")
    return batch / (time.perf_counter() - start)


def bits(options: Options, given: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measure bits per dimension of each model: mean and its standard error."""
    import torch

    from hfgen import HFGenPipeline, load_images
    from hfgen.data.training_data import choose_data
    from hfgen.utils.pixels import from_levels
    from hfgen.utils.seeds import generator_of

    results = {}
    for model in SAMPLERS:
        if folder := getattr(options, model):
            pipeline = HFGenPipeline.from_pretrained(folder)
            data = load_images(choose_data(pipeline.training_data, folder, given).args)
            images = from_levels(data.pixels(torch.arange(options.bits))[0])
            generator = generator_of("likelihood", options.seed)
            chunks = [pipeline.bits_per_dim(part, generator=generator) for part in images.split(64)]
            values = torch.cat(chunks).double()
            results[model] = {"mean": float(values.mean()), "error": float(values.std() / len(values) ** 0.5)}
            print(f"{model}: {results[model]['mean']:.3f} bits per dimension of {options.bits} images", flush=True)
    return results


def table(rows: dict[str, Any]) -> str:
    """Return a Markdown table with a column for each metric by each feature network."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row if name != "images_per_second"))
    lines = [f"| row | {' | '.join([*names, 'images/s'])} |", "|---" * (len(names) + 2) + "|"]
    for name, row in rows.items():
        cells = [_cell(row[metric]) if metric in row else "" for metric in names]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['images_per_second']:.0f} |")
    return "\n".join(lines)


def _cell(entry: dict[str, Any]) -> str:
    """Return a value with half of its interval, or with its deviation in brackets."""
    text = f"{entry['value']:.4g}"
    if entry["interval"]:
        return f"{text} ± {entry['interval'][1] - entry['value']:.2g}"
    return text if entry["deviation"] is None else f"{text} ({entry['deviation']:.2g})"


def main() -> None:
    """Measure missing rows; print and write the table."""
    example = "python benchmarks/results_table.py --diffusion outputs/mnist-vp --dataset path/to/mnist"
    command = parser("results_table.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    parsed = parse(command, None, Options, DataArgs)
    options = parsed[0]
    given = parsed.given_of(DataArgs)
    path = Path(options.output_dir) / "results_table.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    for name, folder, scheduler, steps in rows(options):
        if name not in result["rows"]:
            result["rows"][name] = measure(options, given, folder, scheduler, steps)
            path.write_text(json.dumps(result, indent=2) + "\n")
    for name, folder, scheduler, steps in rows(options) if options.rates else ():
        result["rows"][name]["images_per_second"] = rate(folder, scheduler, steps)
        path.write_text(json.dumps(result, indent=2) + "\n")
    if options.bits:
        result["bits per dimension"] = bits(options, given)
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{table(result['rows'])}\n\nWrote {path}")


if __name__ == "__main__":
    main()

"""Quality after some minutes of training: hfgen's default recipe beside diffusers' `train_unconditional`.

    python benchmarks/quality_per_minute.py --dataset path/to/mnist

All sides train without classes for the same time on the same machine, once in float32 and once in bfloat16; a ratio is
one of equal precision. hfgen uses the recipe of training/configs/mnist.yaml, with as many steps as fit into the time,
planned again on the way. diffusers uses benchmarks/peer_loop.py, as its defaults are (batches of 16), and tuned: a
search through GRID, one option after the other, keeps the value with the smallest distance after `search_minutes`.
Every trial is printed.

Averaged weights at a third, two thirds and the end of the time are sampled with 20 network evaluations: hfgen's by its
default scheduler, those of diffusers by the sampler of SAMPLERS that is best at the end. Samples are measured by the
Frechet distance to the test split, on features of a classifier of the domain. Prints a table and writes
quality_per_minute.json, and quality_per_minute.png if matplotlib is installed. Finished sides and trials are not
repeated: an interrupted run goes on.
"""

import copy
import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import DataArgs, TrainArgs, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    minutes: float = option(6.0, "training time of each side")
    search_minutes: float = option(2.0, "training time of each trial of the search for the peer's options")
    num_samples: int = option(5000, "samples for the last Frechet distance")
    num_samples_before: int = option(2000, "samples for the Frechet distances before the end, and of trials")
    steps: int = option(20, "network evaluations per sample")
    sides: str = option("hfgen,diffusers,tuned", "sides to train, separated by commas")
    features: str = option("mnist", "feature network")
    output_dir: str = option("outputs/quality_per_minute", "folder for the JSON file and the plot")


RECIPE = {"train_batch_size": 64, "learning_rate": 2e-3, "lr_warmup_steps": 200}

GRID: dict[str, tuple[Any, ...]] = {
    "learning_rate": (5e-4, 1e-3, 2e-3),
    "schedule": ("run",),
    "batch_size": (32, 64),
    "ema_max_decay": (0.999, 0.995),
    "network": ("narrow", "convolutions"),
}
"""Values that are tried for each option of the peer, besides its default, in this order; the best is kept."""

NETWORKS: dict[str, dict[str, Any]] = {
    "attention": {"block_out_channels": (32, 48, 48), "attention": True},
    "narrow": {"block_out_channels": (16, 32, 48), "attention": True},
    "convolutions": {"block_out_channels": (32, 48, 48), "attention": False},
}
"""Networks of the peer: widths, and whether the lowest level has attention. The first has a third more parameters than
ours."""

SAMPLERS = (
    "DPMSolverMultistep, order 2",
    "DPMSolverMultistep, order 3",
    "UniPC, order 2",
    "UniPC, order 3",
    "DEIS, order 2",
    "Heun, default",
    "DDIM, trailing",
    "DDIM without clipping, trailing",
)
"""Samplers of diffusers that take part, by their names in benchmarks/peer_samplers.py."""


def ours(minutes: float, precision: str, data_args: DataArgs) -> list[tuple[float, Any]]:
    """Train our recipe; return (seconds, network) at a third, two thirds and the end."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    import hfgen
    from hfgen.data.batches import Batches
    from hfgen.paths import StraightPath
    from hfgen.trainer.loop import train
    from hfgen.utils.seeds import seed_initialisation

    AcceleratorState._reset_state()  # an earlier run of this process may have used another precision
    data = hfgen.load_images(data_args)
    objective = hfgen.Denoising(StraightPath(), "flow_prediction", time_sampling="low_discrepancy")
    batches = Batches(data, RECIPE["train_batch_size"], seed=0)

    def run(steps: int, each: int, keep: list, seconds: float | None = None) -> Any:
        seed_initialisation(0)
        network = hfgen.build_denoiser("patch_unet", "xs", data.resolution, data.channels)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainArgs(
                **RECIPE, mixed_precision=precision, max_train_steps=steps, output_dir=folder, checkpointing_steps=0
            )
            args.sample_steps, args.logging_steps = each, math.gcd(each, 10)
            args.max_train_seconds = seconds

            def note(networks: dict[str, Any], step: int) -> None:
                rows = (Path(folder) / "metrics.jsonl").read_text().splitlines()
                keep.append((json.loads(rows[-1])["seconds"], copy.deepcopy(networks["denoiser"])))

            result = train(
                {"denoiser": network}, objective, batches, args, Accelerator(mixed_precision=precision), note
            )
            keep.append((result.seconds, result.networks["denoiser"]))
            return result

    rate = run(60, 0, []).items_per_second / RECIPE["train_batch_size"]
    steps = max(3, int(minutes * 60 * rate * 0.9))  # a first guess: a long run is slower than a short one
    keep: list[tuple[float, Any]] = []
    # If it can be, a step after which metrics are written anyway.
    run(steps, steps // 30 * 10 or steps // 3, keep, minutes * 60)
    return [keep[0], keep[1], keep[-1]]


def peer_network(name: str, data: Any) -> Any:
    """Return a network of diffusers, a row of NETWORKS."""
    import diffusers

    from hfgen.utils.seeds import seed_initialisation

    seed_initialisation(0)
    lowest = "Attn" if NETWORKS[name]["attention"] else ""
    return diffusers.UNet2DModel(
        sample_size=data.resolution,
        in_channels=data.channels,
        out_channels=data.channels,
        block_out_channels=NETWORKS[name]["block_out_channels"],
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "DownBlock2D", f"{lowest}DownBlock2D"),
        up_block_types=(f"{lowest}UpBlock2D", "UpBlock2D", "UpBlock2D"),
        add_attention=bool(lowest),
    )


def theirs(minutes: float, precision: str, data_args: DataArgs, settings: Any) -> list[tuple[float, Any]]:
    """Train by the loop of diffusers; return (seconds, network) at a third, two thirds and the end."""
    import peer_loop

    import hfgen
    from hfgen.data.columns import find_columns
    from hfgen.data.sources import open_rows

    rows, data = open_rows(data_args), hfgen.load_images(data_args)
    column, _ = find_columns(rows.features, data_args)
    network, total, keep = peer_network(settings.network, data), minutes * 60, []

    def note(step: int, seconds: float, average: Any) -> bool:
        if seconds >= total * (len(keep) + 1) / 3:
            network_now = copy.deepcopy(network)
            average.copy_to(network_now.parameters())
            keep.append((seconds, network_now.eval()))
        return len(keep) == 3

    loader = peer_loop.loader_of(rows, column, data.resolution, data.channels, settings.batch_size)
    peer_loop.train(network, loader, None, precision, settings, total, note)
    return keep


class Judge:
    """Measures Frechet distances to the test split, from the same noise for all networks."""

    def __init__(self, options: Options, data_args: DataArgs):
        import hfgen
        from hfgen.metrics.features import load_features
        from hfgen.utils.pixels import from_levels

        self.steps, self.features = options.steps, load_features(options.features)
        test = hfgen.load_images(dataclasses.replace(data_args, dataset_split="test")).images
        self.real = self.features.extract(from_levels(batch) for batch in test.split(500))

    def distance(self, network: Any, sampler: str | None, count: int) -> float:
        """Measure the distance of `count` samples of a network, by a sampler of diffusers; None: by our default."""
        import peer_samplers
        import torch

        import hfgen
        from hfgen.metrics.distances import frechet_distance
        from hfgen.utils.seeds import sample_generators

        network = copy.deepcopy(network).to(torch.bfloat16)
        pipeline = hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler())
        pipeline.set_progress_bar_config(disable=True)
        make = None if sampler is None else peer_samplers.ode_samplers()[sampler]
        samples, steps = [], self.steps if make is None else peer_samplers.most_steps(make, self.steps)
        for first in range(0, count, 250):
            generators = sample_generators(0, range(first, min(first + 250, count)))
            noise = [torch.randn(pipeline.sample_shape, generator=each) for each in generators]
            if make is None:
                shared = {"latents": torch.stack(noise), "output_type": "pt", "num_inference_steps": steps}
                images = pipeline(len(noise), **shared).images.float()
            else:
                images = peer_samplers.draw(network, make(), steps, torch.stack(noise))
            samples.append(self.features(2 * images - 1))
        return frechet_distance(self.real, torch.cat(samples))

    def best_sampler(self, network: Any, count: int) -> str:
        """Return the sampler of SAMPLERS with the smallest distance."""
        values = {name: self.distance(network, name, count) for name in SAMPLERS}
        return min(values, key=lambda name: values[name] if values[name] == values[name] else float("inf"))


def search(options: Options, data_args: DataArgs, judge: Judge, results: Measured) -> Any:
    """Return the best options of the peer: `PeerSettings` after one pass over GRID, in bfloat16."""
    import peer_loop

    def trial(settings: Any) -> float:
        keep = theirs(options.search_minutes, "bf16", data_args, settings)
        return judge.distance(keep[-1][1], SAMPLERS[0], options.num_samples_before)

    best = peer_loop.DEFAULTS
    lowest = results.get(f"trial {best}", lambda: trial(best))
    print(f"trial {best}: Frechet distance {lowest:.3f}", flush=True)
    for name, values in GRID.items():
        for settings in [dataclasses.replace(best, **{name: value}) for value in values]:
            value = results.get(f"trial {settings}", lambda settings=settings: trial(settings))
            print(f"trial {settings}: Frechet distance {value:.3f}", flush=True)
            if value < lowest:
                best, lowest = settings, value
    return best


def measure(side: str, precision: str, options: Options, data_args: DataArgs, judge: Judge, settings: Any) -> Any:
    """Train a side and return its rows: seconds, distance, samples, parameters and sampler at three moments."""
    if side == "hfgen":
        keep, sampler = ours(options.minutes, precision, data_args), None
    else:
        keep = theirs(options.minutes, precision, data_args, settings)
        sampler = judge.best_sampler(keep[-1][1], options.num_samples_before)
    rows = []
    for number, (seconds, network) in enumerate(keep):
        count = options.num_samples if number == 2 else options.num_samples_before
        value = judge.distance(network, sampler, count)
        row = {"seconds": seconds, "frechet": value, "samples": count, "parameters": network.num_parameters()}
        rows.append(
            {**row, "sampler": sampler or "default", "options": "recipe" if settings is None else str(settings)}
        )
    return rows


def main() -> None:
    """Train and measure all sides; print and write the table."""
    example = "python benchmarks/quality_per_minute.py --dataset path/to/mnist"
    command = parser("quality_per_minute.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)

    import peer_loop

    judge = Judge(options, data_args)
    settings = {key: getattr(options, key) for key in ("minutes", "search_minutes", "num_samples", "steps")}
    settings |= {"num_samples_before": options.num_samples_before, "features": judge.features.label}
    results = Measured(Path(options.output_dir) / "quality_per_minute.json", settings)
    table: dict[str, list[dict[str, float]]] = {}
    for side in options.sides.split(","):
        chosen = None if side == "hfgen" else peer_loop.DEFAULTS
        if side == "tuned":
            chosen = search(options, data_args, judge, results)
        for precision in ("no", "bf16"):
            name = f"{side}, {'float32' if precision == 'no' else precision}"
            each = (side, precision, options, data_args, judge, chosen)
            table[name] = results.get(name, lambda each=each: measure(*each))
            cells = " | ".join(f"{row['frechet']:.2f} ({row['seconds']:.0f} s)" for row in table[name])
            print(f"| {name} | {cells} | {table[name][-1]['sampler']} | {table[name][-1]['options']} |", flush=True)
    plot(table, judge.features.label, results.file.with_suffix(".png"))
    last = {name: rows[-1]["frechet"] for name, rows in table.items()}
    for name, value in last.items():
        other = f"hfgen, {name.rpartition(', ')[2]}"
        if other in last and other != name:
            print(f"hfgen / {name}, at equal time and precision: {last[other] / value:.3f}")
    print(f"Wrote {results.file}")


def plot(table: dict[str, list[dict[str, float]]], label: str, file: Path) -> None:
    """Plot the distance over minutes; do nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    for name, rows in table.items():
        axis.semilogy([row["seconds"] / 60 for row in rows], [row["frechet"] for row in rows], "-o", label=name)
    axis.set(xlabel="minutes of training", ylabel=f"Frechet distance ({label})")
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()

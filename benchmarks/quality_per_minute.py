"""Quality after some minutes of training: hfgen's default recipe beside diffusers' `train_unconditional`.

    python benchmarks/quality_per_minute.py --dataset path/to/mnist

Both sides train without classes for the same time on the same machine. hfgen uses the recipe of
training/configs/mnist.yaml, with as many steps as fit into the time by a short measurement of speed. diffusers uses
benchmarks/peer_loop.py with the defaults of its script (batches of 16), and a UNet2DModel with a third more parameters.
Averaged weights at a third, two thirds and the end of the time are sampled with 20 network evaluations, by the few-step
scheduler of each side (hfgen: the default; diffusers: DPMSolverMultistepScheduler). Samples are measured by the Frechet
distance to the test split, on features of a classifier of the domain. Prints a table and writes
quality_per_minute.json, and quality_per_minute.png if matplotlib is installed.
"""

import copy
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from hfgen.options import DataArgs, TrainArgs, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    minutes: float = option(6.0, "training time of each side")
    num_samples: int = option(5000, "samples for the last Frechet distance")
    num_samples_before: int = option(2000, "samples for the Frechet distances before the end")
    steps: int = option(20, "network evaluations per sample")
    features: str = option("mnist", "feature network")
    output_dir: str = option("outputs/quality_per_minute", "folder for the JSON file and the plot")


RECIPE = {"train_batch_size": 64, "learning_rate": 2e-3, "lr_warmup_steps": 200, "mixed_precision": "bf16"}


def ours(options: Options, data_args: DataArgs) -> list[tuple[float, Any]]:
    """Train our recipe; return (seconds, network) at a third, two thirds and the end."""
    from accelerate import Accelerator

    import hfgen
    from hfgen.data.batches import Batches
    from hfgen.paths import StraightPath
    from hfgen.trainer.loop import train
    from hfgen.utils.seeds import seed_initialisation

    data = hfgen.load_images(data_args)
    objective = hfgen.Denoising(StraightPath(), "flow_prediction", time_sampling="low_discrepancy")
    batches = Batches(data, RECIPE["train_batch_size"], seed=0)

    def run(steps: int, each: int, keep: list) -> Any:
        seed_initialisation(0)
        network = hfgen.build_denoiser("patch_unet", "xs", data.resolution, data.channels)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainArgs(**RECIPE, max_train_steps=steps, output_dir=folder, checkpointing_steps=0)
            args.sample_steps = each

            def note(networks: dict[str, Any], step: int) -> None:
                rows = (Path(folder) / "metrics.jsonl").read_text().splitlines()
                keep.append((json.loads(rows[-1])["seconds"], copy.deepcopy(networks["denoiser"])))

            result = train({"denoiser": network}, objective, batches, args, Accelerator(mixed_precision="bf16"), note)
            keep.append((result.seconds, result.networks["denoiser"]))
            return result

    rate = run(60, 0, []).items_per_second / RECIPE["train_batch_size"]
    steps = int(options.minutes * 60 * rate * 0.9)  # a long run is slower than a short one
    keep: list[tuple[float, Any]] = []
    run(steps, steps // 30 * 10, keep)
    return [keep[0], keep[1], keep[-1]]


def theirs(options: Options, data_args: DataArgs) -> list[tuple[float, Any]]:
    """Train by the loop of diffusers; return (seconds, network) at a third, two thirds and the end."""
    import diffusers
    import peer_loop

    import hfgen
    from hfgen.data.columns import find_columns
    from hfgen.data.sources import open_rows
    from hfgen.utils.seeds import seed_initialisation

    rows, data = open_rows(data_args), hfgen.load_images(data_args)
    column, _ = find_columns(rows.features, data_args)
    seed_initialisation(0)
    network = diffusers.UNet2DModel(
        sample_size=data.resolution,
        in_channels=data.channels,
        out_channels=data.channels,
        block_out_channels=(32, 48, 48),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    total, keep = options.minutes * 60, []

    def note(step: int, seconds: float, average: Any) -> bool:
        if seconds >= total * (len(keep) + 1) / 3:
            network_now = copy.deepcopy(network)
            average.copy_to(network_now.parameters())
            keep.append((seconds, network_now.eval()))
        return len(keep) == 3

    loader = peer_loop.loader_of(rows, column, data.resolution, data.channels, batch_size=16)
    peer_loop.train(network, loader, None, on_step=note)
    return keep


def distance(network: Any, scheduler: Any, count: int, options: Options, real: Any, features: Any) -> float:
    """Measure the Frechet distance of `count` samples, with the same noise for all networks."""
    import torch

    import hfgen
    from hfgen.metrics.distances import frechet_distance
    from hfgen.utils.seeds import sample_generators

    pipeline = hfgen.DenoisingPipeline(copy.deepcopy(network), scheduler).to(torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    samples = []
    for first in range(0, count, 250):
        generators = sample_generators(0, range(first, first + 250))
        shared = {"batch_size": 250, "generator": generators, "output_type": "pt"}
        samples.append(features(2 * pipeline(num_inference_steps=options.steps, **shared).images - 1))
    return frechet_distance(real, torch.cat(samples))


def main() -> None:
    """Train and measure both sides; print and write the table."""
    example = "python benchmarks/quality_per_minute.py --dataset path/to/mnist"
    command = parser("quality_per_minute.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)

    import diffusers

    import hfgen
    from hfgen.metrics.features import load_features
    from hfgen.utils.pixels import from_levels

    features = load_features(options.features)
    test = hfgen.load_images(dataclasses.replace(data_args, dataset_split="test")).images
    real = features.extract(from_levels(batch) for batch in test.split(500))
    sides = {
        "hfgen": (ours, hfgen.RectifiedFlowScheduler),
        "diffusers": (theirs, diffusers.DPMSolverMultistepScheduler),
    }
    table: dict[str, list[dict[str, float]]] = {}
    for name, (run, scheduler) in sides.items():
        table[name] = []
        for number, (seconds, network) in enumerate(run(options, data_args)):
            count = options.num_samples if number == 2 else options.num_samples_before
            value = distance(network, scheduler(), count, options, real, features)
            row = {"seconds": seconds, "frechet": value, "samples": count, "parameters": network.num_parameters()}
            table[name].append(row)
            print(f"{name:10s} {seconds:6.0f} s  Frechet distance ({features.label}) {value:8.3f}", flush=True)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"minutes": options.minutes, "features": features.label, "evaluations": options.steps, "sides": table}
    (folder / "quality_per_minute.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(table, features.label, folder / "quality_per_minute.png")
    last = {name: rows[-1]["frechet"] for name, rows in table.items()}
    print(f"\nratio at equal time: {last['hfgen'] / last['diffusers']:.3f}\nWrote {folder}/quality_per_minute.json")


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

"""Training speed and memory: hfgen's loop beside diffusers' `train_unconditional` loop on the same network and data.

    python benchmarks/training_throughput.py --dataset path/to/cifar10
    python benchmarks/training_throughput.py --dataset path/to/cifar10 --loss_curve 300

The network is a UNet2DModel of 2.7 M parameters on 3 x 32 x 32 images, with moving average and gradient clipping;
`own network` is hfgen's default architecture with about as many parameters. Each side runs in float32 and in bfloat16,
and each ratio is that to the loop of diffusers in the same precision. That loop runs with its defaults, and with
processes that decode images (`--dataloader_num_workers 2` of the script). Each measurement is a process of its own, and
the sides take turns. Rates are medians over rounds of the steps after a warm-up, and memory is the peak of the
process. The last lines show the shares of our time for data and for logs, and compare the speed of our steps with that
of single operations on this machine. With `--loss_curve N`, our loop also runs N steps in float32 and in bfloat16 on
the same images and noise.
"""

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfgen.options import DataArgs, TrainArgs, option, parse, parser

WARM_UP = 3


@dataclasses.dataclass
class Options:
    """Benchmark"""

    batch_size: int = option(128, "images per step")
    steps: int = option(12, "measured steps in each round, after a warm-up")
    rounds: int = option(3, "number of rounds; the result is the median")
    loss_curve: int = option(0, "steps of the comparison of float32 and bfloat16 losses; 0: none")
    side: str | None = option(None, "measure this side alone and print JSON (for the processes)")
    output_dir: str = option("outputs/training_throughput", "folder for the JSON file")


def peer(options: Options, data_args: DataArgs, precision: str, workers: int) -> dict[str, float]:
    """Measure the rate of the loop of diffusers."""
    import peer_loop

    from hfgen.data.columns import find_columns
    from hfgen.data.sources import open_rows

    rows = open_rows(data_args)
    column, _ = find_columns(rows.features, data_args)
    loader = peer_loop.loader_of(rows, column, 32, 3, options.batch_size, workers)
    seconds = peer_loop.train(peer_loop.small_unet(), loader, WARM_UP + options.steps, precision)[WARM_UP:]
    return {"images_per_second": options.batch_size / statistics.median(seconds)}


def ours(options: Options, data_args: DataArgs, precision: str, own: bool) -> dict[str, float]:
    """Measure the rate of our loop with its recommended settings for a CPU, and the shares of its time."""
    import peer_loop

    import hfgen
    from hfgen.models.attention import use_image_layers
    from hfgen.trainer.log import Log

    shared = use_image_layers(peer_loop.small_unet())
    network = hfgen.build_denoiser("patch_unet", "s", 32, 3) if own else shared
    spent: dict[str, float] = {"data": 0.0, "logs": 0.0}
    for name in ("add", "step"):
        setattr(Log, name, timed(getattr(Log, name), spent, "logs"))
    result, _, seconds = run(network, options, data_args, WARM_UP + options.steps, precision, spent)
    rate = options.batch_size / statistics.median(seconds[WARM_UP:])
    flops = 3 * forward_flops(network) * rate  # a backward pass costs two forward passes
    return {
        "images_per_second": rate,
        "data_share": spent["data"] / result.seconds,
        "log_share": spent["logs"] / result.seconds,
        "gflop_per_second": flops / 1e9,
        "parameters": float(network.num_parameters()),
    }


def run(network: Any, options: Options, data_args: DataArgs, steps: int, precision: str, spent: dict) -> tuple:
    """Run our loop; return its result, its metrics.jsonl and the seconds of each step except the last."""
    from accelerate import Accelerator

    import hfgen
    from hfgen import paths, registry
    from hfgen.data.batches import Batches
    from hfgen.trainer.loop import train

    args = TrainArgs(max_train_steps=steps, mixed_precision=precision, checkpointing_steps=0, sample_steps=0)
    args.learning_rate, args.lr_warmup_steps, args.lr_scheduler = 1e-4, 500, "constant_with_warmup"
    objective = hfgen.Denoising(paths.path_from_config(registry.PATHS["vp"]), "epsilon")
    batches = Batches(hfgen.load_images(data_args), options.batch_size, seed=0)
    stamps: list[float] = []

    def iterate(start: int) -> Any:
        for batch in iterator(batches.iterate(start), spent):
            stamps.append(time.perf_counter())
            yield batch

    source = dataclasses.make_dataclass("Source", ["batches_per_epoch", "batch_size", "iterate"])
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        timed_source = source(batches.batches_per_epoch, batches.batch_size, iterate)
        result = train({"denoiser": network}, objective, timed_source, args, Accelerator(mixed_precision=precision))
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return result, rows, [end - start for start, end in itertools.pairwise(stamps)]


def iterator(batches: Any, spent: dict[str, float]) -> Any:
    """Yield the batches, and add the seconds of reading them to spent["data"]."""
    while True:
        start = time.perf_counter()
        batch = next(batches)
        spent["data"] += time.perf_counter() - start
        yield batch


def timed(function: Callable, spent: dict[str, float], name: str) -> Callable:
    """Return the function with the seconds of its calls added to spent[name]."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - start

    return call


def forward_flops(network: Any) -> float:
    """Count the floating-point operations of the forward pass of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops()


def machine() -> dict[str, float]:
    """Measure GFLOP/s of a bfloat16 matrix product and of a convolution like those of the network."""
    import torch

    a, x = torch.randn(2048, 2048).bfloat16(), torch.randn(128, 64, 32, 32).bfloat16()
    weight = torch.randn(64, 64, 3, 3).bfloat16()
    jobs = {
        "bf16 matmul": (lambda: a @ a, 2 * 2048**3),
        "bf16 convolution": (lambda: torch.conv2d(x, weight, padding=1), 2 * 128 * 64 * 64 * 9 * 1024),
    }
    rates = {}
    for name, (job, flops) in jobs.items():
        seconds = []
        for _ in range(12):
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
        rates[name] = flops / statistics.median(seconds[2:]) / 1e9
    return rates


def loader_rate(options: Options, data_args: DataArgs) -> dict[str, float]:
    """Measure images per second from the cache in memory, without a network."""
    import hfgen
    from hfgen.data.batches import Batches

    batches = Batches(hfgen.load_images(data_args), 512, seed=0).iterate()
    for _ in range(20):
        next(batches)
    start = time.perf_counter()
    for _ in range(200):
        next(batches)
    return {"images_per_second": 200 * 512 / (time.perf_counter() - start)}


def loss_curve(options: Options, data_args: DataArgs) -> dict[str, Any]:
    """Compute losses of our loop in float32 and in bfloat16 on the same images and noise."""
    import peer_loop
    from accelerate.state import AcceleratorState

    from hfgen.models.attention import use_image_layers

    curves, few = {}, dataclasses.replace(options, batch_size=32)
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()  # allows a second precision in the same process
        network = use_image_layers(peer_loop.small_unet())
        _, rows, _ = run(network, few, data_args, options.loss_curve, precision, {"data": 0.0})
        curves[precision] = [row["loss"] for row in rows]
    gaps = [abs(a - b) / a for a, b in zip(*curves.values(), strict=True)]
    return {"losses": curves, "largest_gap": max(gaps), "mean_gap": statistics.mean(gaps)}


SIDES: dict[str, Callable[[Options, DataArgs], dict[str, Any]]] = {
    "diffusers loop, float32": lambda o, d: peer(o, d, "no", 0),
    "diffusers loop, 2 workers, float32": lambda o, d: peer(o, d, "no", 2),
    "hfgen, same network, float32": lambda o, d: ours(o, d, "no", own=False),
    "hfgen, own network, float32": lambda o, d: ours(o, d, "no", own=True),
    "diffusers loop, bf16": lambda o, d: peer(o, d, "bf16", 0),
    "diffusers loop, 2 workers, bf16": lambda o, d: peer(o, d, "bf16", 2),
    "hfgen, same network, bf16": lambda o, d: ours(o, d, "bf16", own=False),
    "hfgen, own network, bf16": lambda o, d: ours(o, d, "bf16", own=True),
}
"""The sides; those of a precision begin with the one that the others are compared with."""

EXTRAS: dict[str, Callable[[Options, DataArgs], dict[str, Any]]] = {
    "machine": lambda o, d: machine(),
    "data": loader_rate,
    "loss curve": loss_curve,
}


def measure(side: str) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure the sides in turns; print and write training_throughput.json."""
    example = "python benchmarks/training_throughput.py --dataset path/to/cifar10"
    command = parser("training_throughput.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)
    if options.side:
        import resource

        result = {**SIDES, **EXTRAS}[options.side](options, data_args)
        result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("\n" + json.dumps(result))
        return
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            rounds[side].append(measure(side))
            print(f"{side:36s} {rounds[side][-1]['images_per_second']:8.1f} images/s", flush=True)
    table = {side: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for side, runs in rounds.items()}
    extras = {name: measure(name) for name in EXTRAS if name != "loss curve" or options.loss_curve}
    report(table, extras)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"batch_size": options.batch_size, "sides": table, **extras}
    (folder / "training_throughput.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nWrote {folder}/training_throughput.json")


def report(table: dict[str, dict[str, Any]], extras: dict[str, dict[str, Any]]) -> None:
    """Print the results."""
    print(f"\n{'':36s}{'images/s':>10s}{'ratio':>8s}{'peak MiB':>10s}{'ratio':>8s}")
    for side, row in table.items():
        rate, peak = row["images_per_second"], row["peak_mib"]
        base = table[f"diffusers loop, {side.rpartition(', ')[2]}"]
        ratios = rate / base["images_per_second"], peak / base["peak_mib"]
        print(f"{side:36s}{rate:10.1f}{ratios[0]:8.2f}{peak:10.0f}{ratios[1]:8.2f}")
    for side, row in table.items():
        if "data_share" in row:
            rate = row["gflop_per_second"]
            shares = ", ".join(
                f"{rate / extras['machine'][name]:.0%} of the rate of a {name}"
                for name in ("bf16 matmul", "bf16 convolution")
            )
            print(f"{side}: data {row['data_share']:.1%}, logs {row['log_share']:.1%}; {rate:.0f} GFLOP/s, {shares}")
    print(f"data alone, in-memory cache: {extras['data']['images_per_second']:,.0f} images/s")
    if "loss curve" in extras:
        curve = extras["loss curve"]
        gaps = f"mean difference {curve['mean_gap']:.2%}, largest {curve['largest_gap']:.2%}"
        print(f"loss in bf16 and in float32, means of ten steps: {gaps}")


if __name__ == "__main__":
    main()

"""Images per second of hfgen and diffusers, as users run them: at equal steps, and at equal quality.

    python benchmarks/sampling_throughput.py
    python benchmarks/sampling_throughput.py --pipeline outputs/mnist-vp --dataset path/to/mnist

Equal steps: one UNet2DModel (2.7 M parameters, 3 x 32 x 32), sampled by DDIM. diffusers runs `DDIMPipeline` with its
defaults in float32. hfgen runs `DenoisingPipeline` in bfloat16, and again compiled. The sides take turns, and each
value is a median.

Equal quality, with `--pipeline` (a model on the `vp` path without classes): first the Frechet distance of samples from
the same noise is measured by number of steps, for our default, diffusers' default DPM-Solver and diffusers' DDIM. Then
images per second of our default and of DDIM are measured at two numbers of steps: the fewest within 10 % of the
scheduler's own value at 100 steps, and the fewest that reach the best value of DDIM at any number of steps. (DDIM clips
by default, which reduces its quality at many steps.)
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfgen.options import DataArgs, given_options, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    pipeline: str | None = option(None, "folder of a trained pipeline, for equal quality")
    steps: int = option(10, "steps of the comparison at equal steps")
    batch_size: int = option(64, "images at a time")
    repeats: int = option(5, "turns of each side; the result is the median")
    compile: bool = option(True, "also time our network compiled")
    num_samples: int = option(4096, "samples for each Frechet distance")
    features: str = option("mnist", "feature network of the Frechet distance")
    output_dir: str = option("outputs/sampling_throughput", "folder for the JSON file")


STEP_COUNTS = {
    "hfgen default": (5, 6, 7, 8, 10, 20, 100),
    "diffusers DPMSolverMultistep (default)": (5, 10, 20),
    "diffusers DDIM": (7, 8, 10, 20, 30, 50, 100),
}
"""Numbers of steps whose quality is measured."""


def peer(network: Any) -> Any:
    """Return the pipeline of diffusers around the network, with its defaults."""
    import diffusers

    pipeline = diffusers.DDIMPipeline(unet=network, scheduler=diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours(network: Any, scheduler: Any, dtype: Any) -> Any:
    """Return our pipeline around the network."""
    import hfgen

    pipeline = hfgen.DenoisingPipeline(network, scheduler).to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def turns(sides: dict[str, Callable[[], Any]], batch_size: int, repeats: int) -> dict[str, float]:
    """Measure the median images per second of each side. Sides take turns, so that other work slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, draw in sides.items():
            start = time.perf_counter()
            draw()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: batch_size / statistics.median(values) for name, values in seconds.items()}


def equal_steps(options: Options) -> dict[str, Any]:
    """Compare at equal steps, and measure the time of compilation."""
    import copy

    import peer_loop
    import torch

    import hfgen

    network = peer_loop.small_unet().eval()
    shared = {"batch_size": options.batch_size, "num_inference_steps": options.steps, "output_type": "np"}
    theirs = peer(network)
    mine = ours(copy.deepcopy(network), hfgen.DDIMScheduler(), torch.bfloat16)
    sides = {"diffusers DDIMPipeline": lambda: theirs(**shared), "hfgen bf16": lambda: mine(**shared)}
    seconds = None
    if options.compile:
        compiled = ours(copy.deepcopy(network), hfgen.DDIMScheduler(), torch.bfloat16)
        compiled.denoiser.compile()
        start = time.perf_counter()
        compiled(**shared)
        seconds = time.perf_counter() - start
        sides["hfgen bf16 compiled"] = lambda: compiled(**shared)
    rates = turns(sides, options.batch_size, options.repeats)
    return {"parameters": network.num_parameters(), "images_per_second": rates, "first_compiled_batch_seconds": seconds}


def schedulers() -> dict[str, Any]:
    """Return the schedulers that are compared at equal quality."""
    import diffusers

    import hfgen

    return {
        "hfgen default": hfgen.DPMSolverPlusPlusScheduler(),
        "diffusers DPMSolverMultistep (default)": diffusers.DPMSolverMultistepScheduler(),
        "diffusers DDIM": diffusers.DDIMScheduler(),
    }


def quality(options: Options, given: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Measure the Frechet distance of each scheduler by number of steps, in bfloat16, with the same noise for all."""
    import torch

    from hfgen import HFGenPipeline, load_images
    from hfgen.data.training_data import choose_data
    from hfgen.metrics.distances import frechet_distance
    from hfgen.metrics.features import load_features
    from hfgen.utils.pixels import from_levels
    from hfgen.utils.seeds import sample_generators

    network = load_features(options.features)
    pipeline = HFGenPipeline.from_pretrained(options.pipeline).to(torch.bfloat16)
    choice = choose_data(pipeline.training_data, options.pipeline, given)
    data = load_images(choice.args)
    print("\n".join(choice.check(data)))
    real = network.extract(from_levels(batch) for batch in data.images.split(512))
    pipeline.set_progress_bar_config(disable=True)
    table: dict[str, dict[int, float]] = {}
    for name, scheduler in schedulers().items():
        pipeline.scheduler, table[name] = scheduler, {}
        for steps in STEP_COUNTS[name]:
            samples = []
            for first in range(0, options.num_samples, 256):
                generators = sample_generators(0, range(first, min(first + 256, options.num_samples)))
                shared = {"batch_size": len(generators), "generator": generators, "output_type": "pt"}
                samples.append(network(2 * pipeline(num_inference_steps=steps, **shared).images - 1))
            table[name][steps] = frechet_distance(real, torch.cat(samples))
            figure = f"Frechet distance ({network.label}) {table[name][steps]:.3f}"
            print(f"{name:42s} {steps:4d} steps: {figure}", flush=True)
    return table


def fewest(values: dict[int, float], limit: float) -> int:
    """Return the fewest steps whose distance is at most `limit`."""
    return min(steps for steps, value in values.items() if value <= limit)


def equal_quality(options: Options, table: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Measure images per second of our default and of diffusers' DDIM, each at the fewest steps that meet a goal."""
    import copy

    import torch

    from hfgen import HFGenPipeline

    network = HFGenPipeline.from_pretrained(options.pipeline).denoiser
    mine, ddim = table["hfgen default"], table["diffusers DDIM"]
    best = min(ddim.values())
    goals = {
        "within 10 % of its own 100 steps": (fewest(ddim, 1.1 * ddim[100]), fewest(mine, 1.1 * mine[100])),
        "the best that DDIM reaches": (fewest(ddim, best), fewest(mine, best)),
    }
    theirs = peer(network)
    pipeline = ours(copy.deepcopy(network), schedulers()["hfgen default"], torch.bfloat16)
    shared = {"batch_size": options.batch_size, "output_type": "np"}
    results = {}
    for goal, (their_steps, our_steps) in goals.items():
        sides = {
            f"diffusers DDIM, {their_steps} steps": lambda n=their_steps: theirs(num_inference_steps=n, **shared),
            f"hfgen default, {our_steps} steps": lambda n=our_steps: pipeline(num_inference_steps=n, **shared),
        }
        results[goal] = turns(sides, options.batch_size, options.repeats)
    return results


def report(title: str, rates: dict[str, float]) -> None:
    """Print a line for each side, with the ratio to the first."""
    print(f"\n{title}")
    first = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"  {name:32s} {rate:8.1f} images/s   x {rate / first:.2f}")


def main() -> None:
    """Measure; print and write sampling_throughput.json."""
    example = "python benchmarks/sampling_throughput.py --pipeline outputs/mnist-vp --dataset path/to/mnist"
    command = parser("sampling_throughput.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, _ = parse(command, None, Options, DataArgs)
    result: dict[str, Any] = {"batch_size": options.batch_size, "equal_steps": equal_steps(options)}
    report(f"{options.steps} DDIM steps, batch {options.batch_size}", result["equal_steps"]["images_per_second"])
    if options.pipeline:
        result["frechet_distance"] = table = quality(options, given_options(command, None, DataArgs))
        result["equal_quality"] = equal_quality(options, table)
        for goal, rates in result["equal_quality"].items():
            report(f"Equal quality: {goal}", rates)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sampling_throughput.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nWrote {folder}/sampling_throughput.json")


if __name__ == "__main__":
    main()

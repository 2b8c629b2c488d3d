"""Images per second of hfgen and diffusers in the same precision: at equal steps, and at equal quality.

    python benchmarks/sampling_throughput.py
    python benchmarks/sampling_throughput.py --pipeline outputs/mnist-vp --dataset path/to/mnist

Equal steps: one UNet2DModel (2.7 M parameters, 3 x 32 x 32), sampled by DDIM. `DDIMPipeline` of diffusers with its
defaults, and `DenoisingPipeline` of hfgen, both in float32; then both networks in bfloat16, and both compiled. (A
`DDIMPipeline` in bfloat16 can't return arrays. There the steps of diffusers run in `peer_samplers.draw`.) The sides
take turns, and each value is a median. Each ratio is that to diffusers in the same precision.

Equal quality, with `--pipeline` (a model on the `vp` path without classes): the Frechet distance of samples from the
same noise, by number of network evaluations, for our default and for all samplers of diffusers
(benchmarks/peer_samplers.py), with networks in bfloat16. The goals are distances within 25, 10 and 5 % of the best one
that any sampler of either side reaches. For each goal the peer is the sampler of diffusers with the fewest evaluations;
ours is the default. Images per second of both are measured in float32 and in bfloat16. An interrupted run goes on where
it stopped.
"""

import copy
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import DataArgs, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    pipeline: str | None = option(None, "folder of a trained pipeline, for equal quality")
    steps: int = option(10, "steps of the comparison at equal steps")
    batch_size: int = option(64, "images at a time")
    repeats: int = option(5, "turns of each side; the result is the median")
    compile: bool = option(True, "also compare compiled networks")
    evaluations: str = option("5,6,8,10,15,20", "numbers of network evaluations whose quality is measured")
    samplers: str = option("", "only samplers of diffusers whose names contain this")
    num_samples: int = option(2048, "samples for each Frechet distance")
    features: str = option("mnist", "feature network of the Frechet distance")
    output_dir: str = option("outputs/sampling_throughput", "folder for the JSON files")


OURS = "hfgen default"
GOALS = (1.25, 1.1, 1.05)
"""Goals of equal quality, as multiples of the best distance of all."""


def ours(network: Any, scheduler: Any, dtype: Any) -> Any:
    """Return our pipeline around a copy of the network."""
    import hfgen

    pipeline = hfgen.DenoisingPipeline(copy.deepcopy(network), scheduler).to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def turns(sides: dict[str, Callable[[], Any]], batch_size: int, repeats: int) -> dict[str, float]:
    """Measure the median images per second of each side. Sides take turns, so that other work slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, draw in sides.items():
            start = time.perf_counter()
            draw()
            if turn:  # the first warms up, or compiles
                seconds[name].append(time.perf_counter() - start)
    return {name: batch_size / statistics.median(values) for name, values in seconds.items()}


def peer_draws(network: Any, make: Callable[[], Any], steps: int, batch_size: int, compiled: bool = False) -> Callable:
    """Return a function that draws arrays by a sampler of diffusers, with the network in its precision."""
    import peer_samplers
    import torch

    from hfgen.utils.seeds import generator_of

    shape = (batch_size, network.config.in_channels, network.config.sample_size, network.config.sample_size)
    if compiled:
        network.compile()
    noise = generator_of("timing")
    draw = functools.partial(torch.randn, shape, generator=noise)
    return lambda: peer_samplers.draw(network, make(), steps, draw()).permute(0, 2, 3, 1).numpy()


def equal_steps(options: Options) -> dict[str, float]:
    """Measure images per second of DDIM at equal steps, in each precision."""
    import diffusers
    import peer_loop
    import torch

    import hfgen

    network, bf16 = peer_loop.small_unet().eval(), torch.bfloat16
    shared = {"batch_size": options.batch_size, "num_inference_steps": options.steps, "output_type": "np"}
    theirs = diffusers.DDIMPipeline(unet=network, scheduler=diffusers.DDIMScheduler())
    theirs.set_progress_bar_config(disable=True)
    mine = {dtype: ours(network, hfgen.DDIMScheduler(), dtype) for dtype in (torch.float32, bf16)}
    count = options.steps, options.batch_size
    sides = {
        "diffusers, float32": lambda: theirs(**shared),
        "hfgen, float32": lambda: mine[torch.float32](**shared),
        "diffusers, bf16": peer_draws(copy.deepcopy(network).to(bf16), diffusers.DDIMScheduler, *count),
        "hfgen, bf16": lambda: mine[bf16](**shared),
    }
    if options.compile:
        compiled = ours(network, hfgen.DDIMScheduler(), bf16)
        compiled.denoiser.compile()
        other = copy.deepcopy(network).to(bf16)
        sides["diffusers, bf16 compiled"] = peer_draws(other, diffusers.DDIMScheduler, *count, compiled=True)
        sides["hfgen, bf16 compiled"] = lambda: compiled(**shared)
    return turns(sides, options.batch_size, options.repeats)


def peers(options: Options) -> dict[str, Callable[[], Any]]:
    """Return the samplers of diffusers that take part."""
    import peer_samplers

    makers = {**peer_samplers.ode_samplers(), **peer_samplers.sde_samplers()}
    return {f"diffusers {name}": make for name, make in makers.items() if options.samplers in name}


def quality(options: Options, given: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Measure the Frechet distance of each sampler by number of network evaluations, from the same noise for all."""
    import torch

    from hfgen import HFGenPipeline, load_images
    from hfgen.data.training_data import choose_data
    from hfgen.metrics.features import load_features
    from hfgen.utils.pixels import from_levels

    features = load_features(options.features)
    pipeline = HFGenPipeline.from_pretrained(options.pipeline).to(torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    choice = choose_data(pipeline.training_data, options.pipeline, given)
    data = load_images(choice.args, own=choice.own)
    print("\n".join(choice.check(data)))
    real = features.extract(from_levels(batch) for batch in data.images.split(512))
    settings = {"samples": options.num_samples, "features": features.label, "pipeline": Path(options.pipeline).name}
    results = Measured(Path(options.output_dir) / "quality.json", settings)
    table: dict[str, dict[int, float]] = {}
    for name, make in {OURS: None, **peers(options)}.items():
        table[name] = {}
        for count in map(int, options.evaluations.split(",")):

            def measure(make: Any = make, count: int = count) -> float | None:
                return distance(pipeline, make, count, options, real, features)

            value = results.get(f"{name}, {count}", measure)
            if value is not None and value == value:
                table[name][count] = value
                print(f"{name:50s} {count:4d} evaluations: Frechet distance {value:.3f}", flush=True)
    return table


def distance(pipeline: Any, make: Any, count: int, options: Options, real: Any, features: Any) -> float | None:
    """Measure the Frechet distance of a sampler with at most `count` evaluations; None if it needs more.

    `make` makes a scheduler of diffusers; None is our default.
    """
    import peer_samplers
    import torch

    import hfgen
    from hfgen.metrics.distances import frechet_distance
    from hfgen.utils.seeds import sample_generators

    steps = count if make is None else peer_samplers.most_steps(make, count)
    if steps is None:
        return None
    samples, shape = [], pipeline.sample_shape
    for first in range(0, options.num_samples, 256):
        generators = sample_generators(0, range(first, min(first + 256, options.num_samples)))
        noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
        if make is None:
            pipeline.scheduler = hfgen.DPMSolverPlusPlusScheduler()
            images = pipeline(len(noise), num_inference_steps=steps, latents=noise, output_type="pt").images
        else:
            images = peer_samplers.draw(pipeline.denoiser, make(), steps, noise, generators)
        samples.append(features(2 * images.float() - 1))
    drawn = torch.cat(samples)
    return frechet_distance(real, drawn) if drawn.isfinite().all() else None


def fewest(table: dict[str, dict[int, float]], side: str, limit: float) -> tuple[int, str] | None:
    """Return the fewest evaluations with which a sampler of a side meets the limit, and the best such sampler."""
    meets = [
        (count, values[count], name) for name, values in table.items() for count in values if name.startswith(side)
    ]
    meets = sorted(each for each in meets if each[1] <= limit)
    return (meets[0][0], meets[0][2]) if meets else None


def equal_quality(options: Options, table: dict[str, dict[int, float]]) -> dict[str, dict[str, float]]:
    """Measure images per second of our default and of the best sampler of diffusers at the fewest evaluations for each
    goal."""
    import peer_samplers
    import torch

    import hfgen

    network = hfgen.HFGenPipeline.from_pretrained(options.pipeline).denoiser
    best, results = min(value for values in table.values() for value in values.values()), {}
    for goal in GOALS:
        title = f"within {goal - 1:.0%} of the best distance, {best:.3f}"
        chosen = {side: fewest(table, side, goal * best) for side in ("diffusers", "hfgen")}
        if None in chosen.values():
            missing = ", ".join(side for side, value in chosen.items() if value is None)
            print(f"\nEqual quality, {title}: not reached by {missing}")
            continue
        (their_count, name), (our_count, _) = chosen["diffusers"], chosen["hfgen"]
        make, sides = peers(options)[name], {}
        for label, dtype in {"float32": torch.float32, "bf16": torch.bfloat16}.items():
            pipeline = ours(network, hfgen.DPMSolverPlusPlusScheduler(), dtype)
            other = copy.deepcopy(network).to(dtype)
            steps = peer_samplers.most_steps(make, their_count)
            sides[f"{name}, {their_count} evaluations, {label}"] = peer_draws(other, make, steps, options.batch_size)
            sides[f"{OURS}, {our_count} evaluations, {label}"] = lambda pipeline=pipeline, count=our_count: pipeline(
                options.batch_size, num_inference_steps=count, output_type="np"
            )
        results[title] = turns(sides, options.batch_size, options.repeats)
    return results


def report(title: str, rates: dict[str, float]) -> None:
    """Print a line for each side, with the ratio to that of diffusers before it, which has the same precision."""
    print(f"\n{title}")
    pairs = list(rates.items())
    for (peer, base), (name, rate) in zip(pairs[::2], pairs[1::2], strict=True):
        print(f"  {peer:64s} {base:8.1f} images/s   x 1.00")
        print(f"  {name:64s} {rate:8.1f} images/s   x {rate / base:.2f}")


def main() -> None:
    """Measure; print and write sampling_throughput.json."""
    example = "python benchmarks/sampling_throughput.py --pipeline outputs/mnist-vp --dataset path/to/mnist"
    command = parser("sampling_throughput.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    parsed = parse(command, None, Options, DataArgs)
    options = parsed[0]
    settings = {"batch_size": options.batch_size, "steps": options.steps, "compile": options.compile}
    results = Measured(Path(options.output_dir) / "sampling_throughput.json", settings)
    report(
        f"{options.steps} DDIM steps, batch {options.batch_size}", results.get("steps", lambda: equal_steps(options))
    )
    if options.pipeline:
        table = quality(options, parsed.given_of(DataArgs))
        rates = equal_quality(options, table)
        results.set("quality", rates)
        for goal, each in rates.items():
            report(f"Equal quality: {goal}", each)
    print(f"\nWrote {results.file}")


if __name__ == "__main__":
    main()

"""Speed, memory and quality of a pipeline in each way of `hfgen serve`: precision, compiled, weights of 8 bits.

    python benchmarks/inference_speed.py --pipelines outputs/quickstart --dataset mnist5k --dataset_split test

Each way is measured in a process of its own: images per second of full batches, the median time of one image, the
bytes of its weights, seconds to compile, and the Frechet distances of samples from the same seeds by each feature
network. A way that hfgen refuses has its reason in the table. An interrupted run goes on where it stopped.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import DataArgs, option, parse, parser
from hfgen.utils.ranges import COUNT

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, compiled": {"compiled": True},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, compiled": {"dtype": "bfloat16", "compiled": True},
    "8 bits": {"int8": True},
    "8 bits, compiled": {"int8": True, "compiled": True},
    "8 bits, bfloat16, compiled": {"dtype": "bfloat16", "int8": True, "compiled": True},
}
"""Name -> arguments of `hfgen.serving.speed.prepare`."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    pipelines: str = option("outputs/quickstart", "folders of trained pipelines")
    ways: str = option(";".join(WAYS), "ways, separated by semicolons")
    steps: int | None = option(None, "steps of a sample; default: the pipeline's own")
    batch_size: int = option(16, "images at a time", range=COUNT)
    repeats: int = option(9, "timed calls; the result is their median", range=COUNT)
    num_samples: int = option(1000, "samples for each Frechet distance", range=COUNT)
    features: str = option("mnist,mnist-texture", "feature networks of the Frechet distances")
    output_dir: str = option("outputs/inference_speed", "folder for the JSON file")
    only: str = option("", "measure one way of one pipeline, and print it as JSON: FOLDER;WAY")


def prepared(folder: str, way: str) -> Any:
    """Return a pipeline in a way, as `hfgen serve` prepares it."""
    import hfgen
    from hfgen.serving.speed import prepare
    from hfgen.utils.devices import place

    pipeline = place(hfgen.HFGenPipeline.from_pretrained(folder))
    pipeline.set_progress_bar_config(disable=True)
    prepare(pipeline, **WAYS[way])
    return pipeline


def weight_bytes(pipeline: Any) -> int:
    """Return the bytes of the weights, and of the scales of rounded ones."""
    from hfgen.serving.revision import plain_tensors
    from hfgen.serving.speed import networks_of

    values = [value for network in networks_of(pipeline).values() for value in network.state_dict().values()]
    return sum(part.numel() * part.element_size() for value in values for part in plain_tensors(value))


def drawer(pipeline: Any, steps: int | None) -> Any:
    """Return a function of seeds that draws an image of each, with the classes in turn."""
    from hfgen.serving.jobs import Draw

    count = pipeline.config.get("num_classes")

    def draw(seeds: range) -> Any:
        call: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
        jobs = [Draw(pipeline, i, 1, {**call, **({"class_labels": i % count} if count else {})}) for i in seeds]
        return [image for (image,) in jobs[0].run(jobs)]

    return draw


def median_seconds(draw: Any, count: int, repeats: int) -> float:
    """Return the median time of a call with so many samples."""
    times = []
    for turn in range(repeats):
        start = time.perf_counter()
        draw(range(turn * count, (turn + 1) * count))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def distances(draw: Any, options: Options, args: Any) -> dict[str, float]:
    """Return the Frechet distance to the images of the data by each feature network."""
    import numpy as np
    import torch

    from hfgen import load_images
    from hfgen.metrics.distances import frechet_distance
    from hfgen.metrics.features import load_features
    from hfgen.utils.pixels import from_levels

    images = []
    for first in range(0, options.num_samples, options.batch_size):
        images += draw(range(first, min(first + options.batch_size, options.num_samples)))
    drawn = torch.from_numpy(np.stack([np.atleast_3d(np.asarray(image)) for image in images])).permute(0, 3, 1, 2)
    real, found = load_images(args).images, {}
    for name in options.features.split(","):
        features = load_features(name)
        pair = [features.extract(from_levels(part) for part in each.split(256)) for each in (real, drawn)]
        found[features.label] = frechet_distance(*pair)
    return found


def measure(options: Options, args: Any) -> dict[str, Any]:
    """Measure the way of the pipeline that `--only` names."""
    folder, way = options.only.split(";")
    try:
        pipeline = prepared(folder, way)
    except ValueError as error:
        return {"refused": str(error)}
    draw, start = drawer(pipeline, options.steps), time.perf_counter()
    for size in (1, 2, options.batch_size):
        draw(range(size))
    warm = time.perf_counter() - start
    full = options.batch_size / median_seconds(draw, options.batch_size, options.repeats)
    one = median_seconds(draw, 1, options.repeats)
    sizes = {"rate": full, "one": one, "bytes": weight_bytes(pipeline), "first": warm}
    return {**sizes, "frechet": distances(draw, options, args)}


def alone(options: Options, folder: str, way: str, words: list[str]) -> dict[str, Any]:
    """Measure in a process of its own. Raises SystemExit with its output if it fails."""
    command = [sys.executable, __file__, *words, "--only", f"{folder};{way}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {way} of {folder}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    """Measure and print a Markdown table for each pipeline."""
    words = sys.argv[1:] if argv is None else argv
    parsed = parse(parser("inference_speed.py", "", "", Options, DataArgs, config=False), words, Options, DataArgs)
    options, args = parsed
    if options.only:
        print(json.dumps(measure(options, args)))
        return
    settings = {key: getattr(options, key) for key in ("steps", "batch_size", "num_samples", "features")}
    measured = Measured(Path(options.output_dir) / "inference_speed.json", settings)
    for folder in options.pipelines.split(","):
        names = options.features.split(",")
        print(f"\n{Path(folder).name}\n\n| way | images/s | one image | weights | first calls | {' | '.join(names)} |")
        print("|---" * (5 + len(names)) + "|")
        for way in options.ways.split(";"):
            row = measured.get(f"{folder}, {way}", lambda folder=folder, way=way: alone(options, folder, way, words))
            if "refused" in row:
                print(f"| {way} | refused: {row['refused']} |")
                continue
            numbers = f"{row['rate']:.0f} | {1000 * row['one']:.0f} ms | {row['bytes'] / 2**20:.2f} MiB"
            frechet = " | ".join(f"{value:.2f}" for value in row["frechet"].values())
            print(f"| {way} | {numbers} | {row['first']:.0f} s | {frechet} |", flush=True)


if __name__ == "__main__":
    main()

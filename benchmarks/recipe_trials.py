"""Trials of the diffusion recipe at equal time: each changes something, and is a line of a table in docs/recipes.md.

    python benchmarks/recipe_trials.py benchmarks/recipe_trials.jsonl --mnist path/to/mnist --cifar10 path/to/cifar10

A file of trials has a line of JSON each: {"name": ..., "data": ..., "seconds": ..., and what differs from `Trial`}.
benchmarks/pictograms.py makes the data set `pictograms`.
The time of a step is measured first, once for each kind of step (the least mean of three blocks, so that other work
of the machine counts little). The number of steps is fixed by it: `seconds` is the time that the steps take
undisturbed, and two trials of as many seconds cost the same whatever their batches, networks and optimisers are.

Samples of the averaged weights, from the same noise for all trials, are kept in the output folder as
uint8 tensors, one file for each length of the moving average. Their Frechet distances to held-out images are written
to results.jsonl, a line a file of samples. Trials that are finished are not repeated.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from trial_loop import Trial, load, step_seconds, steps_of

from hfgen.options import argument, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    trials: str = argument("file of trials, a line of JSON each")
    mnist: str = option("ylecun/mnist", "Hub id or folder of the data `mnist`")
    cifar10: str = option("uoft-cs/cifar10", "Hub id or folder of the data `cifar10`")
    pictograms: str = option("outputs/pictograms", "folder of the data `pictograms`")
    output_dir: str = option("outputs/recipe_trials", "folder for results.jsonl and the samples")
    steps: int = option(10, "sampling steps")
    features: str = option("auto", "feature networks that judge, separated by commas")
    limit: float | None = option(None, "begin no trial that could end after so many seconds")


def draw(trial: Trial, network: Any, data: Any, options: Options) -> Any:
    """Draw samples, uint8 (N, C, H, W), all classes alike."""
    import copy

    import torch

    import hfgen
    from hfgen.utils.pixels import to_levels
    from hfgen.utils.seeds import sample_generators

    scheduler = hfgen.RectifiedFlowScheduler(prediction_type=trial.prediction)
    classes = data.num_classes
    network = copy.deepcopy(network).to(torch.bfloat16).eval()
    pipeline = hfgen.DenoisingPipeline(network, scheduler, classes, data.label_names if classes else None)
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for first in range(0, trial.samples, 250):
        numbers = range(first, min(first + 250, trial.samples))
        labels = [i % classes for i in numbers] if classes else None
        images = pipeline(
            len(numbers),
            labels,
            num_inference_steps=options.steps,
            generator=sample_generators(0, numbers),
            output_type="latent",
        ).images
        parts.append(to_levels(images.float()))
    return torch.cat(parts)


class Judge:
    """Measures Frechet distances to held-out images by several feature networks."""

    def __init__(self, names: str):
        self.names, self._known = names, {}

    def distances(self, trial: Trial, samples: Any) -> dict[str, float]:
        """Measure samples, uint8 (N, C, H, W), by each network."""
        from hfgen.metrics.distances import frechet_distance

        if trial.data not in self._known:
            self._known[trial.data] = self._held_out(trial)
        return {
            f"frechet, {features.label}": round(float(frechet_distance(real, self._features(features, samples))), 4)
            for features, real in self._known[trial.data]
        }

    def _held_out(self, trial: Trial) -> list[tuple[Any, Any]]:
        """Load the feature networks, and compute their features of the held-out images."""
        from hfgen.metrics.features import choose_features

        images = load(trial, "test").images
        side = min(32, images.shape[-1])  # 64 x 64: judged at half the size, where there are features
        networks = choose_features(self.names, images.shape[1], (side, side))
        return [(features, self._features(features, images)) for features in networks]

    def _features(self, features: Any, images: Any) -> Any:
        """Compute the features of uint8 images, reduced to the side that the network takes."""
        import torch.nn.functional as F

        from hfgen.utils.pixels import from_levels

        side = features.image_size or images.shape[-1]
        reduced = (from_levels(part) for part in images.split(250))
        return features.extract(F.adaptive_avg_pool2d(x, side) if x.shape[-1] != side else x for x in reduced)


def run(given: dict[str, Any], options: Options, judge: Judge) -> None:
    """Train, draw and measure the trial of a line; write a line for each moving average."""
    import torch

    folder = Path(options.output_dir)
    trial = Trial(**{**given, "data": getattr(options, given["data"], given["data"])})
    data = load(trial, "train")
    each = step_seconds(trial, data, folder / "step_seconds.json")
    total, began, losses = max(1, round(trial.seconds / each)), time.perf_counter(), []
    for step in steps_of(trial, data, total):
        averages = step.averages
        losses.append(step.loss)
    seconds = time.perf_counter() - began
    for (decay, power), average in zip(trial.averages, averages, strict=True):
        network = average.module
        samples = draw(trial, network, data, options)
        ending = f", average {decay} {power}" if len(trial.averages) > 1 else ""
        torch.save(samples, folder / f"{trial.name}{ending}.pt")
        row = {"trial": trial.name + ending, "steps": total, "images": total * trial.batch, "took": round(seconds, 1)}
        row |= {"loss": round(float(torch.stack(losses[-max(1, total // 10) :]).mean()), 4)}
        row |= {"parameters": network.num_parameters(), **judge.distances(trial, samples)}
        row |= {"seconds": trial.seconds, "settings": given}
        with (folder / "results.jsonl").open("a") as file:
            print(json.dumps(row), file=file)
        print(json.dumps({key: value for key, value in row.items() if key != "settings"}), flush=True)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines; none without it."""
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()] if file.is_file() else []


def main() -> None:
    """Run the trials that are not finished."""
    example = "python benchmarks/recipe_trials.py trials.jsonl"
    command = parser("recipe_trials.py", __doc__.splitlines()[0], example, Options, config=False)
    (options,) = parse(command, None, Options)

    from hfgen.utils.devices import keep_freed_memory

    keep_freed_memory()
    began, folder, judge = time.perf_counter(), Path(options.output_dir), Judge(options.features)
    folder.mkdir(parents=True, exist_ok=True)
    while True:  # the file is read again: lines may be added meanwhile
        done = {row["settings"]["name"] for row in rows_of(folder / "results.jsonl")}
        rest = [row for row in rows_of(Path(options.trials)) if row["name"] not in done]
        if not rest:
            break
        spent, next_one = time.perf_counter() - began, Trial(**rest[0]).seconds
        if options.limit is not None and spent + 1.3 * next_one + 30 > options.limit:
            break
        run(rest[0], options, judge)


if __name__ == "__main__":
    main()

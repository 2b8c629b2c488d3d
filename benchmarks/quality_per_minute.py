"""Quality after minutes of training: hfgen's recipe beside published examples and a tuned loop of diffusers.

    python benchmarks/quality_per_minute.py --dataset path/to/mnist --minrf path/to/clone/of/minRF

Each side trains for the same time on the same machine:

- hfgen, hfgen_classes: the recipe of training/configs/mnist.yaml, without and with classes, with as many steps as fit
  into the time, planned again on the way. Sampled by its default scheduler, with classes also with guidance.
- diffusers: the loop of benchmarks/peer_loop.py as its defaults are (batches of 16, 1e-4).
- tuned: the same loop with the settings TUNED. Sampled by DPM-Solver++.
- searched: the same loop with settings found by a search through GRID, one option after the other, which keeps the
  value with the smallest distance after `search_minutes`. Every trial is printed.
- minrf, torchcfm: the published examples of benchmarks/peer_flows.py as they are, with classes, in float32.

A training whose schedule ends with the time is made anew for each of `minutes`; the others are looked at on the way.
Samples take 20 network evaluations, by the sampler that is best at the end where a side has no fixed one. They are
measured by the Frechet distances to the test split, on features of each network. Models with classes draw them in the
proportions of that split, and are compared with models with classes alone. Prints a table and writes
quality_per_minute.json, weights, and quality_per_minute.png. Finished trainings, samplers and distances are not
repeated: an interrupted run goes on, also with other --sides, in another environment.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured import Measured
from race_sides import FLOW_SAMPLERS, SAMPLERS, TUNED, Side, loop_side, our_side, published_side

from hfgen.options import DataArgs, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    minutes: str = option("2,8", "training times after which each side is measured, separated by commas")
    search_minutes: float = option(2.0, "training time of each trial of the search for the peer's options")
    num_samples: int = option(2000, "samples for a distance")
    num_samples_before: int = option(500, "samples for the choice of a sampler, and of trials")
    steps: int = option(20, "network evaluations per sample")
    sides: str = option("hfgen,diffusers,tuned,hfgen_classes,minrf,torchcfm", "sides to train, separated by commas")
    precisions: str = option("bf16", "precisions of hfgen, diffusers and searched, separated by commas: no, bf16")
    features: str = option("auto", "feature networks, separated by commas")
    minrf: str | None = option(None, "clone of github.com/cloneofsimo/minRF", path=True)
    output_dir: str = option("outputs/quality_per_minute", "folder for the JSON file, the weights and the plot")


SIDES = ("hfgen", "hfgen_classes", "diffusers", "tuned", "searched", "minrf", "torchcfm")

GRID: dict[str, tuple[Any, ...]] = {
    "learning_rate": (5e-4, 1e-3, 2e-3),
    "schedule": ("run",),
    "batch_size": (32, 64),
    "ema_max_decay": (0.999, 0.995),
    "network": ("narrow", "convolutions"),
}
"""Values that are tried for each option of the peer, besides its default, in this order; the best is kept."""


class Judge:
    """Measures Frechet distances to the test split, from the same noise and classes for all networks."""

    def __init__(self, options: Options, data_args: DataArgs):
        import hfgen
        from hfgen.metrics.features import choose_features
        from hfgen.utils.pixels import from_levels

        test = hfgen.load_images(dataclasses.replace(data_args, dataset_split="test"))
        self.steps, self.labels, self.size = options.steps, test.labels, test.size[0]
        self.num_classes = test.num_classes
        self.features = {each.label: each for each in choose_features(options.features, test.channels, test.size)}
        self.real = {
            label: each.extract(from_levels(batch) for batch in test.images.split(500))
            for label, each in self.features.items()
        }

    def distances(self, side: Side, network: Any, sampler: str, count: int) -> dict[str, float]:
        """Measure the distances of `count` samples of a side's network, by the labels of the feature networks."""
        import torch

        from hfgen.metrics.distances import frechet_distance

        images = torch.cat(list(self.draw(side, network.eval(), sampler, count)))
        images = (images * 255).round() / 255  # as 8-bit images, which is what people see
        parts = {
            label: torch.cat([each(2 * part - 1) for part in images.split(250)])
            for label, each in self.features.items()
        }
        return {label: frechet_distance(self.real[label], part) for label, part in parts.items()}

    def draw(self, side: Side, network: Any, sampler: str, count: int) -> Iterator[Any]:
        """Yield batches of samples in [0, 1]. Networks run in bf16, published ones under autocast."""
        import peer_samplers
        import torch

        import hfgen
        from hfgen.evaluation.reference import matching_labels, reference_rows
        from hfgen.utils.seeds import sample_generators

        labels = side.classes and matching_labels(self.labels[reference_rows(self.labels, count)], count)
        network = network if isinstance(network, hfgen.TorchModel) else copy.deepcopy(network).to(torch.bfloat16)
        shape = network.sample_shape if side.flow else (network.config.in_channels, self.size, self.size)
        classes, pipeline = self.num_classes if side.classes else None, None
        if side.flow:
            pipeline = hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler(), classes)
            pipeline.set_progress_bar_config(disable=True)
        for first in range(0, count, 250):
            part = range(first, min(first + 250, count))
            noise = torch.stack([torch.randn(shape, generator=each) for each in sample_generators(0, part)])
            with torch.autocast("cpu", torch.bfloat16, enabled=isinstance(network, hfgen.TorchModel)):
                if pipeline is None:
                    make = peer_samplers.ode_samplers()[sampler]
                    yield peer_samplers.draw(network, make(), peer_samplers.most_steps(make, self.steps), noise)
                    continue
                scheduler, evaluations, guidance = FLOW_SAMPLERS[sampler]
                images = pipeline(
                    class_labels=labels and labels[first : part.stop],
                    batch_size=len(part),
                    latents=noise,
                    output_type="pt",
                    num_inference_steps=self.steps // evaluations,
                    guidance_scale=guidance,
                    scheduler=scheduler,
                ).images.float()
                border = (shape[-1] - self.size) // 2
                yield images[..., border : border + self.size, border : border + self.size]


def mean_of(distances: dict[str, float]) -> float:
    """Return the geometric mean of the distances on all feature networks, infinity if one is not a number."""
    finite = all(value == value for value in distances.values())
    return math.prod(distances.values()) ** (1 / len(distances)) if finite else math.inf


def search(options: Options, data_args: DataArgs, data: Any, judge: Judge, results: Measured) -> Any:
    """Return the best options of the peer: `PeerSettings` after one pass over GRID, in bfloat16."""
    import peer_loop

    def trial(settings: Any) -> float:
        side = loop_side(data_args, data, settings, SAMPLERS[:1], ("bf16",))
        ((_, _, network),) = side.train(side.build(data), [60 * options.search_minutes], "bf16")
        return mean_of(judge.distances(side, network, SAMPLERS[0], options.num_samples_before))

    best = peer_loop.DEFAULTS
    lowest = results.get(f"trial {best}", lambda: trial(best))
    print(f"trial {best}: {lowest:.3f}", flush=True)
    for name, values in GRID.items():
        for settings in [dataclasses.replace(best, **{name: value}) for value in values]:
            value = results.get(f"trial {settings}", lambda settings=settings: trial(settings))
            print(f"trial {settings}: {value:.3f}", flush=True)
            if value < lowest:
                best, lowest = settings, value
    return best


def make_side(name: str, options: Options, data_args: DataArgs, data: Any, judge: Judge, results: Measured) -> Side:
    """Return a side by its name in SIDES."""
    import peer_flows
    import peer_loop

    precisions = tuple(options.precisions.split(","))
    if name in ("hfgen", "hfgen_classes"):
        return our_side(data_args, data, name == "hfgen_classes", precisions)
    if name in ("minrf", "torchcfm"):
        return published_side(peer_flows.minrf(options.minrf) if name == "minrf" else peer_flows.torchcfm(), data)
    if name == "diffusers":
        return loop_side(data_args, data, peer_loop.DEFAULTS, SAMPLERS, precisions)
    if name == "tuned":
        return loop_side(data_args, data, peer_loop.PeerSettings(**TUNED), SAMPLERS[:1], ("bf16",))
    return loop_side(data_args, data, search(options, data_args, data, judge, results), SAMPLERS, precisions)


def times_of(text: str) -> list[float]:
    """Return rising numbers of minutes. Raises ValueError for a text that is none."""
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = []
    if not times or any(not 0 < time < math.inf for time in times) or sorted(set(times)) != times:
        raise ValueError(f"--minutes {text} must be rising numbers above 0, separated by commas: 2,8.")
    return times


def check(options: Options) -> None:
    """Refuse what would fail after hours.

    Raises:
        ValueError: an unknown side, a published example that is not here, or times that do not rise.
    """
    import peer_flows

    times_of(options.minutes)
    names = options.sides.split(",")
    if unknown := [name for name in names if name not in SIDES]:
        raise ValueError(f"--sides {', '.join(unknown)} not known. Choose from {', '.join(SIDES)}.")
    if "minrf" in names:
        peer_flows.minrf(options.minrf)
    if "torchcfm" in names:
        peer_flows.torchcfm()


class Race:
    """Trainings and distances of sides, each kept as soon as it is there."""

    def __init__(self, options: Options, data: Any, judge: Judge, results: Measured):
        self.options, self.data, self.judge, self.results = options, data, judge, results
        self.minutes = times_of(options.minutes)

    def weights(self, name: str, minutes: float) -> Path:
        """Return the file of a side's weights after minutes of training."""
        return self.results.file.parent / f"{name}, {minutes:g} min.safetensors"

    def train(self, name: str, side: Side, precision: str) -> None:
        """Train a side for each of the times that has no weights yet, and save its averaged weights."""
        from safetensors.torch import save_model

        for times in [[each] for each in self.minutes] if side.planned else [self.minutes]:
            if all(self.weights(name, each).is_file() for each in times):
                continue
            network = side.build(self.data)
            moments = [60.0 * each for each in times]
            for each, (seconds, images, kept) in zip(times, side.train(network, moments, precision), strict=True):
                size = sum(parameter.numel() for parameter in network.parameters())
                facts = {"seconds": seconds, "images": images, "parameters": size}
                self.results.set(f"{name}, {each:g} min, training", facts)
                save_model(kept, str(self.weights(name, each)))
                print(f"{name}, {each:g} min: {images:,} images in {seconds:.0f} s", flush=True)

    def load(self, name: str, side: Side, minutes: float) -> Any:
        """Return the network of a side after minutes of training."""
        from safetensors.torch import load_model

        network = side.build(self.data)
        load_model(network, self.weights(name, minutes))
        return network

    def sampler(self, name: str, side: Side) -> str:
        """Return the sampler that is best at the end; where there is no choice, the only one."""
        if len(side.samplers) == 1:
            return side.samplers[0]
        network, values = self.load(name, side, self.minutes[-1]), {}
        for each in side.samplers:
            values[each] = self.results.get(
                f"{name}, by {each}",
                lambda each=each: mean_of(self.judge.distances(side, network, each, self.options.num_samples_before)),
            )
            print(f"{name}, by {each}: {values[each]:.3f}", flush=True)
        return min(values, key=values.get)

    def rows(self, name: str, side: Side, precision: str) -> list[dict[str, Any]]:
        """Train and measure a side; return facts and distances for each time."""
        self.train(name, side, precision)
        sampler, rows = self.sampler(name, side), []
        for minutes in self.minutes:
            distances = self.results.get(
                f"{name}, {minutes:g} min",
                lambda minutes=minutes: self.judge.distances(
                    side, self.load(name, side, minutes), sampler, self.options.num_samples
                ),
            )
            facts = self.results.values[f"{name}, {minutes:g} min, training"]
            rows.append({**facts, "sampler": sampler, "classes": side.classes is not None, "distances": distances})
        return rows


def main() -> None:
    """Train and measure all sides; print and write the table."""
    example = "python benchmarks/quality_per_minute.py --dataset path/to/mnist --minrf path/to/minRF"
    command = parser("quality_per_minute.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)

    check(options)
    import hfgen

    judge, data = Judge(options, data_args), hfgen.load_images(data_args)
    keys = ("search_minutes", "num_samples", "num_samples_before", "steps")
    settings = {**{key: getattr(options, key) for key in keys}, "features": list(judge.features)}
    results = Measured(Path(options.output_dir) / "quality_per_minute.json", settings)
    results.file.parent.mkdir(parents=True, exist_ok=True)
    race, table = Race(options, data, judge, results), {}
    for side_name in options.sides.split(","):
        side = make_side(side_name, options, data_args, data, judge, results)
        for precision in side.precisions:
            name = f"{side_name}, {'float32' if precision == 'no' else precision}"
            table[name] = race.rows(name, side, precision)
    report(table, judge)
    plot(table, judge, results.file.with_suffix(".png"))
    print(f"Wrote {results.file}")


def report(table: dict[str, list[dict[str, Any]]], judge: Any) -> None:
    """Print the distances of all sides, and how large ours are as shares of the others' of the same kind."""
    labels = list(judge.features)
    print(f"| side | classes | minutes | images | sampler | {' | '.join(labels)} |")
    for name, rows in table.items():
        for row in rows:
            cells = " | ".join(f"{row['distances'][label]:.2f}" for label in labels)
            kind = "yes" if row["classes"] else "no"
            print(f"| {name} | {kind} | {row['seconds'] / 60:.1f} | {row['images']:,} | {row['sampler']} | {cells} |")
    for ours in (name for name in table if name.startswith("hfgen")):
        for other, rows in table.items():
            if other.startswith("hfgen") or rows[0]["classes"] != table[ours][0]["classes"]:
                continue
            for first, second in zip(table[ours], rows, strict=True):
                shares = (first["distances"][label] / second["distances"][label] for label in labels)
                minutes = f"{second['seconds'] / 60:.0f} min"
                print(f"{ours} / {other}, {minutes}: {', '.join(f'{share:.3f}' for share in shares)}")


def plot(table: dict[str, list[dict[str, Any]]], judge: Any, file: Path) -> None:
    """Plot the distances over minutes, a panel for each feature network; do nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = list(judge.features)
    figure, axes = pyplot.subplots(1, len(labels), figsize=(6 * len(labels), 4), squeeze=False)
    for axis, label in zip(axes[0], labels, strict=True):
        for name, rows in table.items():
            minutes, values = zip(*((row["seconds"] / 60, row["distances"][label]) for row in rows), strict=True)
            axis.semilogy(minutes, values, "--o" if rows[0]["classes"] else "-o", label=name)
        axis.set(xlabel="minutes of training", ylabel=f"Frechet distance ({label})")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()

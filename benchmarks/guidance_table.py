"""Class agreement, precision and recall of guided samples over scales, for each way to guide, in a table and a plot.

    python benchmarks/guidance_table.py outputs/mnist --classifier outputs/classifier \\
        --bad outputs/mnist/checkpoint-1000 --dataset path/to/mnist

Ways: cfg, classifier-free guidance; apg, the same without what lies along the estimate; rescale, with 0.7 of it
scaled; interval, in the middle of the path alone; classifier, p(class | x_t) in place of the null label; autoguidance,
away from a worse model that is told the same classes. All samples have the same noise and classes. The class of a
sample is that of the feature network's own scores. Finished cells are not measured again.
"""

import dataclasses
from pathlib import Path
from typing import Any

from measured import Measured

from hfgen.options import DataArgs, argument, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    pipeline: str = argument("folder of a class-conditional model")
    classifier: str | None = option(None, "folder of a classifier of noisy images of the same path")
    bad: str | None = option(None, "folder of a worse model, or of an earlier checkpoint of this one")
    ways: str = option("cfg,apg,rescale,interval,classifier,autoguidance", "ways, separated by commas")
    scales: str = option("1,1.5,2,4,8", "scales, separated by commas")
    schedulers: str = option("rectified_flow", "schedulers, separated by commas")
    steps: int = option(10, "evaluations of each sample")
    num_samples: int = option(500, "samples of a cell, and test images")
    output_dir: str = option("outputs/guidance_table", "folder for the JSON file and the plot")


def bad_model(folder: str, pipeline: Any) -> Any:
    """Return a worse pipeline, or the averaged network of a checkpoint."""
    import copy

    from safetensors.torch import load_file

    import hfgen

    if Path(folder, "model_index.json").is_file():
        return hfgen.HFGenPipeline.from_pretrained(folder)
    weights = load_file(Path(folder, "ema_denoiser.safetensors"))
    network = copy.deepcopy(pipeline.denoiser)
    network.load_state_dict({k.removeprefix("module."): v for k, v in weights.items() if k.startswith("module.")})
    return network


def call_of(way: str, scale: float, labels: list[int], classifier: Any, bad: Any) -> dict[str, Any]:
    """Return the arguments of a call that guides in this way."""
    import hfgen

    ways = {
        "cfg": lambda: {"guidance_scale": scale},
        "apg": lambda: {"guidance_scale": scale, "guidance_method": "apg"},
        "rescale": lambda: {"guidance_scale": scale, "guidance_rescale": 0.7},
        "interval": lambda: {"guidance_scale": scale, "guidance_interval": (0.2, 0.8)},
        # With a model that is told the class already, a classifier adds scale - 1: 1 is none, as for the others.
        "classifier": lambda: {"guidance": [hfgen.ClassifierGuidance(classifier, labels, scale - 1)]},
        "autoguidance": lambda: {"guidance": [hfgen.Autoguidance(bad, scale)]},
    }
    return ways[way]()


def cell(pipeline: Any, way: str, scale: float, scheduler: str, parts: dict[str, Any]) -> dict[str, float]:
    """Draw samples and measure them."""
    import torch

    from hfgen.metrics.neighbours import prdc
    from hfgen.utils.pixels import from_levels, to_levels
    from hfgen.utils.seeds import sample_generators

    network, real, labels, steps = (parts[name] for name in ("network", "real", "labels", "steps"))
    images = []
    for first in range(0, len(labels), 100):
        part = labels[first : first + 100]
        call = call_of(way, scale, part, parts["classifier"], parts["bad"])
        seeds = sample_generators(0, range(first, first + len(part)))
        drawn = pipeline(
            class_labels=part,
            num_inference_steps=steps // 2 if scheduler == "heun" else steps,
            scheduler=scheduler,
            generator=seeds,
            output_type="latent",
            **call,
        ).images
        images.append(from_levels(to_levels(drawn)))
    logits, features = network.logits_and_features(torch.cat(images))
    right = (logits.argmax(1) == torch.tensor(labels)).double().mean()
    found = prdc(real, features)
    grey = torch.cat(images).abs()
    return {
        "agreement": round(float(right), 4),
        "precision": round(found["precision"], 4),
        "recall": round(found["recall"], 4),
        "saturated": round(float((grey > 0.99).double().mean()), 4),
    }


def plot(rows: dict[str, dict[str, float]], file: Path) -> None:
    """Draw agreement, precision and recall over the scale, a line for each way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for axis, name in zip(axes, ("agreement", "precision", "recall"), strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for key, row in rows.items():
            way, scheduler, scale = key.split("/")
            lines.setdefault(f"{way}, {scheduler}", []).append((float(scale), row[name]))
        for label, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axis.set(xlabel="scale", title=name, xscale="log")
    axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure each way at each scale, and draw the plot."""
    example = "python benchmarks/guidance_table.py outputs/mnist --dataset path/to/mnist"
    command = parser("guidance_table.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)

    import torch

    import hfgen
    from hfgen.metrics.features import choose_features
    from hfgen.utils.pixels import from_levels

    pipeline = hfgen.HFGenPipeline.from_pretrained(options.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    test = hfgen.load_images(dataclasses.replace(data_args, dataset_split="test"))
    network = next(each for each in choose_features("auto", *_shape(pipeline)) if each.scores)
    real = from_levels(test.images[: options.num_samples])
    labels = test.labels[: options.num_samples].tolist()
    logits, features = network.logits_and_features(real)
    print(f"{network.label}: agreement of test images {(logits.argmax(1) == torch.tensor(labels)).double().mean():.4f}")
    parts = {"network": network, "real": features, "labels": labels, "steps": options.steps}
    parts["classifier"] = options.classifier and hfgen.HFGenPipeline.from_pretrained(options.classifier)
    parts["bad"] = options.bad and bad_model(options.bad, pipeline)
    settings = {"pipeline": options.pipeline, "steps": options.steps, "num_samples": options.num_samples}
    measured = Measured(Path(options.output_dir, "guidance_table.json"), settings)
    print(f"{'way':28} {'scale':>5}  agreement  precision  recall  saturated")
    for scheduler in options.schedulers.split(","):
        for way in options.ways.split(","):
            if parts.get({"classifier": "classifier", "autoguidance": "bad"}.get(way, "real")) is None:
                continue
            for scale in map(float, options.scales.split(",")):

                def measure(way: str = way, scale: float = scale, scheduler: str = scheduler) -> dict[str, float]:
                    return cell(pipeline, way, scale, scheduler, parts)

                row = measured.get(f"{way}/{scheduler}/{scale:g}", measure)
                numbers = "  ".join(f"{row[name]:>9.4f}" for name in row)
                print(f"{way + ', ' + scheduler:28} {scale:>5g}  {numbers}", flush=True)
    plot(measured.values, Path(options.output_dir, "guidance_table.png"))


def _shape(pipeline: Any) -> tuple[int, tuple[int, int]]:
    return pipeline.sample_shape[0], pipeline.sample_shape[1:]


if __name__ == "__main__":
    main()

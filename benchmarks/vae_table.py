"""A table of trained autoencoders: metrics of `hfgen train vae`, and the Frechet distance of samples by prior.

    python benchmarks/vae_table.py --folders outputs/mnist_vae,outputs/k5 --dataset path/to/mnist --dataset_split test

Samples are drawn from the prior that was fitted to the latents and from the standard normal. Image i has seed + i. They
are compared with as many images of the data, and so are reconstructions of these images. Images per second are measured
on a batch of 250, after a warm-up. Prints a Markdown table and writes vae_table.json.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from hfgen.options import DataArgs, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    folders: str = option("outputs/mnist_vae", "folders of trained autoencoders, separated by commas")
    num_samples: int = option(10000, "number of samples, and of images they are compared with")
    features: str = option("auto", "feature networks, separated by commas; auto: both for the images' shape")
    output_dir: str = option("outputs/vae_table", "folder for the JSON file")


def row(folder: str, data: Any, networks: Any, count: int) -> dict[str, Any]:
    """Measure one folder."""
    import torch

    from hfgen import HFGenPipeline
    from hfgen.evaluation.reference import reference_rows
    from hfgen.metrics import sampling
    from hfgen.metrics.distances import frechet_distance
    from hfgen.models.priors import GaussianMixturePriorModel
    from hfgen.utils.pixels import from_levels, to_levels

    pipeline = HFGenPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    levels = data.pixels(reference_rows(data, count))[0]
    real = [network.describe(levels).features for network in networks]
    distances: dict[str, Any] = {}

    def compare(name: str, images: Any) -> None:
        for network, features in zip(networks, real, strict=True):
            distances[f"{name}, {network.name}"] = frechet_distance(features, network.describe(images).features)

    reconstructions = torch.cat([pipeline.reconstruct(from_levels(part)) for part in levels.split(250)])
    compare("reconstructions", to_levels(reconstructions))
    if "prior" in pipeline.components:
        normal = GaussianMixturePriorModel(tuple(pipeline.latent_shape), covariance="diag")
        for name, prior in (("fitted prior", pipeline.prior), ("standard normal", normal)):
            pipeline.register_modules(prior=prior)
            compare(name, sampling.draw(pipeline, count))
        start = time.perf_counter()
        pipeline(batch_size=250, output_type="pt")
        distances["images_per_second"] = 250 / (time.perf_counter() - start)
    metrics = json.loads((Path(folder) / "metrics.json").read_text())
    held_out = {entry["metric"]: entry["value"] for entry in metrics["evaluation"]}
    speed = {
        "training_seconds": metrics["training_seconds"],
        "training_images_per_second": metrics["images_per_second"],
    }
    return {**distances, "parameters": metrics["parameters"], **speed, "held out": held_out}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with a column for each number of any row."""
    distances = [name for row in rows.values() for name in row if ", " in name]
    columns = [*dict.fromkeys(distances), "images_per_second", "training_seconds"]
    held_out = list(dict.fromkeys(name for row in rows.values() for name in row["held out"]))
    lines = [f"| model | {' | '.join([*held_out, *columns])} |", "|---" * (1 + len(held_out) + len(columns)) + "|"]
    for name, row in rows.items():
        cells = [row["held out"].get(column) for column in held_out] + [row.get(column) for column in columns]
        lines.append(f"| {name} | {' | '.join('' if cell is None else f'{cell:.4g}' for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all folders; print and write the table."""
    example = "python benchmarks/vae_table.py --folders outputs/mnist_vae --dataset path/to/mnist --dataset_split test"
    command = parser("vae_table.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)

    import hfgen
    from hfgen.metrics.features import choose_features

    data = hfgen.load_images(data_args)
    networks = choose_features(options.features, data.channels, data.size)
    rows = {}
    for folder in options.folders.split(","):
        rows[Path(folder).name] = row(folder, data, networks, options.num_samples)
        print(Path(folder).name, json.dumps(rows[Path(folder).name]), flush=True)
    output = Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    labels = "; ".join(network.label for network in networks)
    result = {"features": labels, "samples": options.num_samples, "rows": rows}
    (output / "vae_table.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nFrechet distances: {labels}, {options.num_samples:,} samples\n{table(rows)}")
    print(f"\nWrote {output}/vae_table.json")


if __name__ == "__main__":
    main()

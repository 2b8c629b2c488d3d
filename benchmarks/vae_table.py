"""A table of trained autoencoders: what `hfgen train vae` measured, and the Frechet distance of samples by prior.

    python benchmarks/vae_table.py --folders outputs/mnist_vae,outputs/k5 --dataset path/to/mnist --dataset_split test

Samples are drawn from the prior that was fitted to the latents and from the standard normal, image i with seed + i, and
compared with as many images of the data. Reconstructions of these images are compared with them, too. Images a second
are those of a warm batch of 250. Prints a Markdown table and writes vae_table.json.
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
    num_samples: int = option(10000, "samples and images that are compared")
    features: str = option("auto", "feature network")
    output_dir: str = option("outputs/vae_table", "where the JSON goes")


def row(folder: str, data: Any, network: Any, count: int) -> dict[str, Any]:
    """The figures of one folder."""
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
    real = network.describe(levels).features
    found: dict[str, Any] = {}
    back = torch.cat([pipeline.reconstruct(from_levels(part)) for part in levels.split(250)])
    found["reconstructions"] = frechet_distance(real, network.describe(to_levels(back)).features)
    if "prior" in pipeline.components:
        normal = GaussianMixturePriorModel(tuple(pipeline.latent_shape), covariance="diag")
        for name, prior in (("fitted prior", pipeline.prior), ("standard normal", normal)):
            pipeline.register_modules(prior=prior)
            images = sampling.draw(pipeline, count)
            found[name] = frechet_distance(real, network.describe(images).features)
        start = time.perf_counter()
        pipeline(batch_size=250, output_type="pt")
        found["images_per_second"] = 250 / (time.perf_counter() - start)
    metrics = json.loads((Path(folder) / "metrics.json").read_text())
    measured = {entry["metric"]: entry["value"] for entry in metrics["evaluation"]}
    speed = {
        "training_seconds": metrics["training_seconds"],
        "training_images_per_second": metrics["images_per_second"],
    }
    return {**found, "parameters": metrics["parameters"], **speed, "held out": measured}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: one column for each figure that any row has."""
    columns = ["fitted prior", "standard normal", "reconstructions", "images_per_second", "training_seconds"]
    held_out = list(dict.fromkeys(name for found in rows.values() for name in found["held out"]))
    lines = [f"| model | {' | '.join([*held_out, *columns])} |", "|---" * (1 + len(held_out) + len(columns)) + "|"]
    for name, found in rows.items():
        cells = [found["held out"].get(column) for column in held_out] + [found.get(column) for column in columns]
        lines.append(f"| {name} | {' | '.join('' if cell is None else f'{cell:.4g}' for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    example = "python benchmarks/vae_table.py --folders outputs/mnist_vae --dataset path/to/mnist --dataset_split test"
    command = parser("vae_table.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    options, data_args = parse(command, None, Options, DataArgs)

    import hfgen
    from hfgen.metrics.features import choose_features

    data = hfgen.load_images(data_args)
    network = choose_features(options.features, data.channels, data.size)
    rows = {}
    for folder in options.folders.split(","):
        rows[Path(folder).name] = row(folder, data, network, options.num_samples)
        print(Path(folder).name, json.dumps(rows[Path(folder).name]), flush=True)
    output = Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    result = {"features": network.label, "samples": options.num_samples, "rows": rows}
    (output / "vae_table.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nFrechet distances: {network.label}, {options.num_samples:,} samples\n{table(rows)}")
    print(f"\nWrote {output}/vae_table.json")


if __name__ == "__main__":
    main()

"""Energies and likelihoods of trained pipelines as anomaly scores: test images against images of other kinds.

    python benchmarks/energy_anomaly.py outputs/mnist_energy outputs/mnist_flow outputs/mnist_ar

The score of a pipeline is its `anomaly_score`, or bits per dimension where it has a likelihood instead. Others are the
same images inverted, the images of another data set, made grey and resized, and pictograms of pictograms.py, if there
is a folder of them. An AUROC of 0.5 is chance; below, the others are scored as more normal than the test images. It is
known that models of densities fail in this way (Nalisnick et al. 2019, https://arxiv.org/abs/1810.09136).
"""

import argparse
from pathlib import Path
from typing import Any

from measured import Measured


def scores_of(pipeline: Any, images: Any) -> Any:
    """Return the anomaly scores (N,) of images in [-1, 1]."""
    import torch

    from hfgen.utils.seeds import generator_of

    if hasattr(pipeline, "anomaly_score"):
        return pipeline.anomaly_score(images)
    if not hasattr(pipeline, "bits_per_dim"):
        raise ValueError(f"{type(pipeline).__name__} has neither an anomaly score nor a likelihood.")
    generator = generator_of("benchmark", 0, "dequantisation")
    parts = images.split(250)
    if pipeline.config.get("num_classes") is not None and pipeline.null_label is None:
        raise ValueError(f"{type(pipeline).__name__} needs classes, which no image of another kind has.")
    return torch.cat([pipeline.bits_per_dim(part, generator=generator) for part in parts])


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Return test images and the others by name, tensors (N, C, H, W) in [-1, 1]."""
    from hfgen import load_images
    from hfgen.options import DataArgs
    from hfgen.utils.pixels import from_levels

    def images(dataset: str, **shape: int) -> Any:
        data = load_images(DataArgs(dataset=dataset, dataset_split="test", **shape))
        return from_levels(data.images[: args.count])

    test = images(args.dataset)
    shape = {"resolution": test.shape[-1], "channels": test.shape[1]}
    found = {"test": test, "inverted": -test}
    if args.foreign != "none":
        found[args.foreign] = images(args.foreign, **shape)
    if args.pictograms is not None:
        found["pictograms"] = images(args.pictograms, **shape)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", nargs="+", help="folders of pipelines that were trained on the training images")
    parser.add_argument("--dataset", default="ylecun/mnist", help="data set with a test split")
    parser.add_argument("--foreign", default="uoft-cs/cifar10", help="another data set with a test split, or 'none'")
    parser.add_argument("--pictograms", help="folder of pictograms.py")
    parser.add_argument("--count", type=int, default=1000, help="images of each kind")
    parser.add_argument("--output_dir", default="outputs/energy_anomaly", help="folder for the JSON file")
    args = parser.parse_args()

    import hfgen
    from hfgen.metrics.detection import auroc

    images = load(args)
    settings = {name: getattr(args, name) for name in ("dataset", "foreign", "pictograms", "count")}
    results = Measured(Path(args.output_dir) / "energy_anomaly.json", settings)
    others = [name for name in images if name != "test"]
    print(f"| model | {' | '.join(f'AUROC, {name}' for name in others)} |")
    print(f"|{'---|' * (1 + len(others))}")
    for folder in args.pipelines:
        pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)

        def measure(pipeline: Any = pipeline) -> dict[str, float]:
            normal = scores_of(pipeline, images["test"])
            return {name: auroc(normal, scores_of(pipeline, images[name])) for name in others}

        try:
            found = results.get(folder, measure)
        except ValueError as error:
            raise SystemExit(f"error: {folder}: {error}") from None
        print(f"| {folder} | {' | '.join(f'{found[name]:.4f}' for name in others)} |", flush=True)
    print(f"\nWrote {results.file}")


if __name__ == "__main__":
    main()

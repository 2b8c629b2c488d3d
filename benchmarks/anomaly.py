"""Anomaly detection beside PCA: each class of digits in turn as the anomaly, and foreign images.

For each class of the data set, an autoencoder is trained on training images of the other classes. Some of these images
are held out and set the threshold. The detectors are then evaluated on the test split, where images of the class are
anomalous and all others are normal. In a last step, a model of all classes is evaluated on another data set as the
anomaly, made grey and resized. The score of PCA is the squared reconstruction error with the fewest components that
keep 95 % of the training variance. Its threshold is set by the same held-out images.
"""

import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from hfgen.options import DataArgs, TrainArgs, option, parse, parser

SCORES = ("density", "reconstruction", "elbo", "likelihood")


@dataclasses.dataclass
class Options:
    """Benchmark"""

    dataset: str = option("ylecun/mnist", "normal images, with train and test splits, as for `hfgen data`")
    foreign: str = option("uoft-cs/cifar10", "data set with a test split, whose images are anomalies; or 'none'")
    classes: str = option("all", "classes that are the anomaly in turn, by number, separated by commas; or 'none'")
    scores: str = option(",".join(SCORES), "scores to measure")
    steps: int = option(3000, "optimiser steps of each autoencoder, of 128 images")
    latent_channels: int = option(16, "dimension of the latent")
    sigma: float = option(0.2, "standard deviation of the Gaussian likelihood")
    beta: float = option(1.0, "weight of KL")
    rate: float = option(0.001, "false-alarm rate")
    num_calibration: int = option(5000, "training images held out for the threshold")
    seed: int = option(0, "seed of the split, the weights and the order of images")
    output: str | None = option(None, "JSON file for the metrics")


@dataclasses.dataclass
class Pca:
    """Principal components of images (N, C, H, W), and the squared error of a projection on the leading ones.

    Args:
        images: training images.
        share: share of their variance that the components keep.
    """

    images: dataclasses.InitVar[Any]
    share: float = 0.95

    def __post_init__(self, images: Any) -> None:
        import torch

        rows = images.flatten(1)
        self.mean = rows.mean(0)
        centred = rows - self.mean
        values, vectors = torch.linalg.eigh((centred.T.double() @ centred.double()) / len(rows))
        cumulative = values.flip(0).cumsum(0) / values.sum()
        self.count = int((cumulative < self.share).sum()) + 1
        self.components = vectors.flip(1)[:, : self.count].float()

    def anomaly_score(self, images: Any) -> Any:
        """Compute the squared errors (B,)."""
        rows = images.flatten(1) - self.mean
        return (rows - (rows @ self.components) @ self.components.T).square().sum(1)


def train_vae(images: Any, options: Options, kind: Any = None) -> Any:
    """Train a VAEPipeline on normal images uint8 (N, C, H, W), and fit a Gaussian mixture to its latents.

    `kind` makes the objective from the arguments of `hfgen.ELBO`; None: that class.
    """
    import torch
    from accelerate import Accelerator

    import hfgen
    from hfgen.data.batches import Batches
    from hfgen.data.images import ImageData
    from hfgen.distributions.likelihoods import build_likelihood
    from hfgen.families.fit_mixture import fit_mixture
    from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior
    from hfgen.trainer.loop import train
    from hfgen.utils.pixels import from_levels
    from hfgen.utils.seeds import generator_of, seed_initialisation

    seed_initialisation(options.seed)
    channels, *size = images.shape[1:]
    network = hfgen.build_autoencoder("mlp", "m", tuple(size), channels, channels, options.latent_channels)
    latent_shape = (options.latent_channels, 1, 1)
    objective = (kind or hfgen.ELBO)(build_likelihood("gaussian", options.sigma), latent_shape, options.beta)
    batches = Batches(ImageData("normal", None, None, channels, images), 128, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"report_to": "none", "checkpointing_steps": 0, "sample_steps": 0, "logging_steps": 10**6}
        args = TrainArgs(output_dir=folder, seed=options.seed, max_train_steps=options.steps, **quiet)
        result = train({"autoencoder": AutoencoderWithPrior(network)}, objective, batches, args, Accelerator())
    if not result.finished:
        raise SystemExit("error: the training was interrupted, so there is no trained model to measure.")
    network = result.networks["autoencoder"].autoencoder
    with torch.no_grad():
        q = network.encode(from_levels(images[:20_000])).latent_dist
        prior = fit_mixture(q.sample(generator_of("prior", options.seed)), 10, options.seed)
    return hfgen.VAEPipeline(network, prior, "gaussian", options.sigma)


def detectors(normal: Any, held_out: Any, options: Options) -> tuple[dict[str, Any], dict[str, float]]:
    """Return calibrated AnomalyPipelines by their score and PCA, and the seconds that each step took."""
    from hfgen.families.anomaly.fit import fit
    from hfgen.utils.pixels import from_levels

    start = time.perf_counter()
    vae = train_vae(normal, options)
    seconds = {"training": time.perf_counter() - start}
    images, by_score = from_levels(normal), {}
    for score in options.scores.split(","):
        start = time.perf_counter()
        by_score[score] = fit(vae, images, held_out, score, options.rate, seed=options.seed)
        seconds[score] = time.perf_counter() - start
    start = time.perf_counter()
    by_score["PCA"] = Pca(images)
    seconds["PCA"] = time.perf_counter() - start
    return by_score, seconds


def evaluate(detector: Any, held_out: Any, normal: Any, anomalous: Any, rate: float) -> dict[str, float]:
    """Measure AUROC, the shares of anomalies and of normal images above the threshold, and images/s."""
    from hfgen.metrics.detection import auroc
    from hfgen.models.calibration import CalibrationModel

    calibration = CalibrationModel(len(held_out))
    calibration.scores.copy_(detector.anomaly_score(held_out).sort().values)
    threshold, start = calibration.threshold(rate), time.perf_counter()
    scores = [detector.anomaly_score(images) for images in (normal, anomalous)]
    seconds = time.perf_counter() - start
    false_alarms, detection = (float((values > threshold).float().mean()) for values in scores)
    return {
        "auroc": auroc(*scores),
        "detection": detection,
        "false_alarms": false_alarms,
        "accuracy": (detection + 1 - false_alarms) / 2,
        "images_per_second": (len(normal) + len(anomalous)) / seconds,
    }


def measure(normal: Any, test: Any, anomalous: Any, options: Options, name: str) -> dict[str, Any]:
    """Measure every detector and print its metrics.

    Args:
        normal, test: normal images to train on and to evaluate on, uint8.
        anomalous: anomalous images in [-1, 1].
        options: the options.
        name: name of the anomaly.
    """
    import torch

    from hfgen.utils.pixels import from_levels
    from hfgen.utils.seeds import generator_of

    order = torch.randperm(len(normal), generator=generator_of("held out", options.seed))
    held_out = from_levels(normal[order[: options.num_calibration]])
    by_score, seconds = detectors(normal[order[options.num_calibration :]], held_out, options)
    metrics = {
        score: evaluate(detector, held_out, from_levels(test), anomalous, options.rate)
        for score, detector in by_score.items()
    }
    for score, values in metrics.items():
        print(f"{name:>8}  {score:15} {row_of(values)}", flush=True)
    return {"anomaly": name, "components": by_score["PCA"].count, "seconds": seconds, "scores": metrics}


def averages(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Compute the means over classes and print them."""
    means = {}
    for score in rows[0]["scores"]:
        each = [row["scores"][score] for row in rows]
        means[score] = {name: math.fsum(one[name] for one in each) / len(each) for name in each[0]}
        print(f"{'mean':>8}  {score:15} {row_of(means[score])}", flush=True)
    return means


def row_of(metrics: dict[str, float]) -> str:
    """Format metrics as a row of the table."""
    formats = {"auroc": "7.4f", "detection": "10.2%", "false_alarms": "13.3%", "accuracy": "9.3%"}
    cells = " ".join(f"{metrics[name]:{form}}" for name, form in formats.items())
    return f"{cells} {metrics['images_per_second']:10,.0f}"


def main() -> None:
    """Train, calibrate, evaluate and print."""
    example = "python benchmarks/anomaly.py --output anomaly.json"
    (options,) = parse(parser("anomaly.py", __doc__.splitlines()[0], example, Options, config=False), None, Options)

    import torch

    from hfgen import load_images
    from hfgen.utils.pixels import from_levels

    train, test = (load_images(DataArgs(dataset=options.dataset, dataset_split=name)) for name in ("train", "test"))
    print(f"{train.name}, {options.steps} steps, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    columns = f"{'AUROC':>7} {'detection':>10} {'false alarms':>13} {'accuracy':>9} {'images/s':>10}"
    print(f"{'anomaly':>8}  {'score':15} {columns}", flush=True)
    classes = range(train.num_classes) if options.classes == "all" else options.classes.replace("none", "").split(",")
    rows = []
    for label in [int(number) for number in classes if number != ""]:
        normal, anomalous = train.images[train.labels != label], from_levels(test.images[test.labels == label])
        rows.append(measure(normal, test.images[test.labels != label], anomalous, options, train.label_names[label]))
    result = {"options": dataclasses.asdict(options), "classes": rows, "means": averages(rows) if rows else None}
    if options.foreign != "none":
        shape = {"resolution": train.size[0], "channels": train.channels}
        other = load_images(DataArgs(dataset=options.foreign, dataset_split="test", **shape))
        result["foreign"] = measure(train.images, test.images, from_levels(other.images), options, other.name)
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

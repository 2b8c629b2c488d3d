"""The recipe of an autoregressive model: network, objective and pipeline that belong together, and its measurements."""

import functools
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

import hfgen

from ...data.images import ImageData
from ...metrics import report
from ...metrics.measures import Measurement, mean_measurement
from ...options import DataArgs, TrainArgs
from ...utils.seeds import generator_of, seed_initialisation
from ..finish import Finished
from ..vae.evaluation import HeldOut
from .options import ARArgs, ARHeldOutArgs, PixelArgs

TITLES = {"transformer": "Image transformer", "fvsbn": "FVSBN", "made": "MADE", "nade": "NADE"}

PIXELS = {"levels": (256, "symbols"), "binary": (2, "binary"), "real": (None, "uniform")}
"""Value of `--pixels` -> levels of the network, and dequantisation of the objective."""

MEASURED_BATCH = 100
"""Images in one pass of a measurement."""


class PixelRecipe:
    """Network, objective and pipeline of an autoregressive model of pixels.

    Attributes:
        title, kind: names of the model.

    Args:
        data_args, network_args, pixel_args, args: the options.

    Raises:
        ValueError: options that do not go together, before any data are read.
    """

    kind = "autoregressive"

    def __init__(self, data_args: DataArgs, network_args: ARArgs, pixel_args: PixelArgs, args: TrainArgs):
        self.network_args, self.pixel_args, self.args = network_args, pixel_args, args
        real = pixel_args.pixels == "real"
        self.title = "RNADE" if real and network_args.model == "nade" else TITLES[network_args.model]
        if real and network_args.model == "transformer":
            raise ValueError("--pixels real is for --model nade, made or fvsbn: a transformer's pixels have levels.")
        if args.gradient_checkpointing:
            raise ValueError(f"--gradient_checkpointing is not for --model {network_args.model}. Leave it out.")
        side, channels = data_args.resolution or 8, data_args.channels or 1
        with torch.device("meta"):
            self._build(
                side if data_args.resolution or network_args.patch_size is None else 8 * network_args.patch_size,
                channels,
                2 if network_args.class_conditional else None,
            )

    def network(self, data: ImageData, classes: int | None) -> nn.Module:
        """Return the network for these images. Raises ValueError for images that the architecture does not take."""
        seed_initialisation(self.args.seed)
        return self._build(data.resolution, data.channels, classes)

    def objective(self, classes: int | None) -> Any:
        """Return the objective."""
        dropout = self.pixel_args.label_dropout if classes is not None else 0.0
        options = {"num_classes": classes, "label_dropout": dropout, "log_prob": attrgetter("log_prob")}
        return hfgen.MaximumLikelihood(PIXELS[self.pixel_args.pixels][1], player="model", **options)

    def pipeline(self, networks: Mapping[str, nn.Module], classes: int | None, names: list[str] | None) -> Any:
        """Return the pipeline of the networks."""
        return hfgen.ARPipeline(networks["model"], classes, names)

    def _build(self, resolution: Any, channels: int, classes: int | None) -> nn.Module:
        args, null = self.network_args, self.pixel_args.label_dropout > 0
        shape = (args.model, args.model_size, resolution, channels, PIXELS[self.pixel_args.pixels][0], classes, null)
        return hfgen.build_autoregressive(*shape, args.patch_size, args.num_orders, self.pixel_args.components)


def after_training(
    run: Any, held_out: HeldOut, args: ARHeldOutArgs, conditional: bool, label_dropout: float
) -> functools.partial:
    """Return what `Run.train` calls with the trained pipeline, see `complete`.

    Raises:
        ValueError: the model needs the classes of the held-out images, and these have none.
    """
    labels = held_out.labels_of(conditional, label_dropout)
    return functools.partial(complete, held_out, args.likelihood_samples, run.args.seed, conditional, labels)


def complete(
    held_out: HeldOut, samples: int, seed: int, conditional: bool, labels: Tensor | None, pipeline: Any
) -> Finished:
    """Measure a trained pipeline on held-out images, and print the measurements.

    Args:
        held_out: the images.
        samples: draws of black and white pixels, or of the noise, for each; their mean counts.
        seed: of these.
        conditional: whether the model knows classes.
        labels (N,): the classes that it is told; None: none, or the null label.
        pipeline: the pipeline.
    """
    print(f"Measuring {len(held_out.images):,} images of {held_out.data}, {held_out.split}", flush=True)
    measurements = [measure(pipeline, held_out.images, labels, samples, seed)]
    print(report.table(measurements))
    draws = "1 draw" if samples == 1 else f"the mean of {samples} draws"
    pixels = {2: f"binarised at random, {draws}", 256: "of 256 levels, exact"}
    protocol = {
        "data": held_out.data,
        "split": held_out.split,
        "real images": len(held_out.images),
        "pixels": pixels.get(pipeline.levels, f"uniform dequantisation, {draws}: an upper bound"),
        **({"classes": "not given" if labels is None else "given"} if conditional else {}),
        "seed": seed,
    }
    return Finished(pipeline, evaluation=report.entries(measurements, protocol))


def measure(pipeline: Any, images: Tensor, labels: Tensor | None, samples: int, seed: int) -> Measurement:
    """Measure the log-likelihood of black and white images, or bits per dimension of others: the mean of the draws."""
    binary = pipeline.levels == 2
    name = "log-likelihood, nats" if binary else "bits per dimension"
    pipeline.set_progress_bar_config(desc=name)
    generator = generator_of("likelihood", seed)
    method = pipeline.log_likelihood if binary else pipeline.bits_per_dim
    values = [method(images, labels, generator, MEASURED_BATCH) for _ in range(samples)]
    return mean_measurement(name, torch.stack(values).mean(0), "higher" if binary else "lower")

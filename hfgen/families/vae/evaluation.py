"""Measurements of a trained autoencoder on held-out images."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...console.text import escaped
from ...data.images import ImageData, load_images
from ...data.label_options import with_all_labels
from ...data.summary import sample
from ...metrics import pixels, report
from ...metrics.distances import frechet_distance
from ...metrics.features import choose_features
from ...metrics.measures import Measurement
from ...options import DataArgs
from ...utils.pixels import from_levels
from ..estimate import seconds_of
from ..finish import Finished
from ..latent_scale import state_measured_scale
from .options import HeldOutArgs

MEASUREMENTS = "Measurements after training"
"""What held-out images are for, as it is printed."""

ELBO_SAMPLES = 10
"""Number of latents per image for the ELBO of held-out images. It does not change the expectation."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Images to measure.

    Attributes:
        images (N, C, H, W): in [-1, 1].
        data: name of their data set.
        split: name of their split.
        labels (N,): their classes, by the numbers of the training data; None: they have none, or others.
    """

    images: Tensor
    data: str
    split: str
    labels: Tensor | None = None

    def __str__(self) -> str:
        """Say what they are, for people."""
        return f"{len(self.images):,} images of {escaped(self.data)}, {escaped(self.split)}"

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a protocol says of them."""
        return {"data": self.data, "split": self.split, "real images": len(self.images)}

    def labels_of(self, conditional: bool, label_dropout: float) -> Tensor | None:
        """Return the labels that a likelihood needs: of a model with classes that knows no 'no class'.

        Args:
            conditional: whether the model has classes.
            label_dropout: share of images that it was trained on without their class.

        Raises:
            ValueError: they are needed and there are none.
        """
        if not conditional or label_dropout > 0:
            return None
        if self.labels is None:
            raise ValueError(
                f"--label_dropout 0 makes a model that needs classes, and the images to measure, {self.data}, "
                f"{self.split}, have none that it knows. Give another --held_out_split, or a --label_dropout above 0."
            )
        return self.labels


def load_held_out(
    data_args: DataArgs, args: HeldOutArgs, data: ImageData, accelerator: Accelerator, use: str = MEASUREMENTS
) -> HeldOut:
    """Load the images to measure after training.

    The default for `held_out_split` is the test split. Without a test split, training images are measured, and this is
    printed.

    Args:
        data_args, args: the options.
        data: the training images.
        accelerator: all processes call this.
        use: what the images are for, a plural at the start of a sentence.

    Raises:
        ValueError: there is no such split, or its images have another shape.
    """
    with accelerator.main_process_first():
        images, split, reason = _load_split(data_args, args.held_out_split, data)
    if reason is not None:
        accelerator.print(f"{reason} {use} will be of training images.")
    if (images.channels, images.size) != (data.channels, data.size):
        raise ValueError(
            f"The images of split {split!r} have another shape than those of {data_args.dataset_split!r}. Give another "
            "--held_out_split, or --resolution and --channels."
        )
    levels, labels = sample(images, args.num_likelihood)
    return HeldOut(from_levels(levels), data.name, split, _renumbered(labels, images.label_names, data.label_names))


def _renumbered(labels: Tensor | None, names: list[str] | None, known: list[str] | None) -> Tensor | None:
    """Return labels (N,) of classes with these names as the numbers of the known names; None if one is not known."""
    if labels is None or names == known:
        return labels
    numbers = {name: number for number, name in enumerate(known or [])}
    wanted = [numbers.get(names[label]) for label in labels.tolist()] if names else [None]
    return None if None in wanted else torch.tensor(wanted)


def _load_split(data_args: DataArgs, split: str | None, data: ImageData) -> tuple[ImageData, str, str | None]:
    """Return the images of a split (None: test), and its name. If they are the training images, also the reason."""
    options = dataclasses.replace(with_all_labels(data_args), dataset_split=split or "test", max_train_samples=None)
    try:
        return load_images(options, own=False), options.dataset_split, None
    except ValueError as error:
        if split is not None:
            raise
        return data, f"{data_args.dataset_split}, which was trained on", str(error).splitlines()[0]


def measure_reconstructions(pipeline: Any, images: Tensor) -> list[Measurement]:
    """Measure reconstructions of images (N, C, H, W) in [-1, 1].

    Returns the mean squared error. With built-in features for this shape, and with more images than features, the
    result also holds the Frechet distance between images and reconstructions by each network.
    """
    reconstructions = pipeline.reconstruct(images).cpu()
    error = pixels.reconstruction_error(images, reconstructions)["mse"]
    measurements = [Measurement("reconstruction error, mse", error, "lower")]
    try:
        networks = choose_features("auto", images.shape[1], tuple(images.shape[2:]))
    except ValueError:  # no built-in features have this shape
        return measurements
    for network in (each for each in networks if len(images) > each.num_features):
        real, fake = (network.extract(x.split(250)) for x in (images, reconstructions))
        name = network.metric_name("Frechet distance of reconstructions")
        measurements.append(Measurement(name, frechet_distance(real, fake), "lower"))
    return measurements


def after_training(recipe: Any, run: Any, held_out: HeldOut, args: HeldOutArgs) -> dict[str, Callable[[Any], Any]]:
    """Return what `Run.train` calls after the steps: `reserve`, which fits the prior, and `complete`, see there."""
    return {
        "reserve": lambda pipeline: seconds_of(lambda: recipe.with_fitted_prior(pipeline, run.data, run.args.seed)),
        "complete": functools.partial(complete, recipe, run, held_out, args),
    }


def complete(recipe: Any, run: Any, held_out: HeldOut, args: HeldOutArgs, pipeline: Any) -> Finished:
    """Fit the prior of a trained autoencoder, state the scale of its latents, measure it on held-out images, and print
    the measurements.

    Args:
        recipe: an `AutoencoderRecipe`.
        run: the `Run` of the training.
        held_out: the images to measure.
        args: the options.
        pipeline: the pipeline with the prior of the training.
    """
    data, seed, samples = run.data, run.args.seed, args.likelihood_samples
    start = time.perf_counter()
    fitted_pipeline = recipe.with_fitted_prior(pipeline, data, seed)
    seconds = 0.0 if fitted_pipeline is pipeline else time.perf_counter() - start
    state_measured_scale(fitted_pipeline, data, seed)
    print(f"Measuring {held_out}", flush=True)
    measurements = recipe.measure(pipeline, fitted_pipeline, held_out.images, samples, seed)
    print(report.table(measurements))
    protocol = {
        **held_out.facts,
        "likelihood": recipe.options["likelihood"],
        "pixels": "binarised at random" if recipe.likelihood.levels == 2 else "of 256 levels",
        "prior": recipe.describe_prior(pipeline),
        **({} if fitted_pipeline is pipeline else {"fitted prior": recipe.describe_prior(fitted_pipeline)}),
        "seed": seed,
    }
    return Finished(fitted_pipeline, evaluation=report.entries(measurements, protocol), seconds=seconds)

"""Measurements of a trained autoencoder on images that it has not seen."""

import dataclasses
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ...data.images import ImageData, load_images
from ...data.summary import sample
from ...metrics import pixels, report
from ...metrics.distances import frechet_distance
from ...metrics.features import choose_features
from ...metrics.measures import Measurement
from ...options import DataArgs
from ...utils.pixels import from_levels
from ..finish import Finished
from .options import HeldOutArgs

ELBO_SAMPLES = 10
"""Latents an image for the ELBO of held-out images. Their number does not change its expectation."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Images (N, C, H, W) in [-1, 1] to measure, with the names of their data set and split."""

    images: Tensor
    data: str
    split: str


def check(args: HeldOutArgs) -> None:
    """Raise ValueError for too few images or samples."""
    if args.eval_images < 2 or args.likelihood_samples < 1:
        raise ValueError(
            f"eval_images={args.eval_images} must be at least 2, and likelihood_samples={args.likelihood_samples} at "
            "least 1."
        )


def load_held_out(data_args: DataArgs, args: HeldOutArgs, data: ImageData, accelerator: Accelerator) -> HeldOut:
    """Load the images to measure after training.

    Without `eval_split` they are the test split. If there is none, they are training images, and a line says so.

    Raises:
        ValueError: no such split, or its images have another shape.
    """
    with accelerator.main_process_first():
        part, split, reason = _part(data_args, args.eval_split, data)
    if reason is not None:
        accelerator.print(f"{reason} Figures after training will be of training images.")
    if (part.channels, part.size) != (data.channels, data.size):
        raise ValueError(f"The images of split {split!r} have another shape than those of {data_args.dataset_split!r}.")
    return HeldOut(from_levels(sample(part, args.eval_images)[0]), data.name, split)


def _part(data_args: DataArgs, split: str | None, data: ImageData) -> tuple[ImageData, str, str | None]:
    """Return the images of a split (None: test), its name, and the reason if they are the training images."""
    options = dataclasses.replace(data_args, dataset_split=split or "test", max_train_samples=None)
    try:
        return load_images(options), options.dataset_split, None
    except ValueError as error:
        if split is not None:
            raise
        return data, f"{data_args.dataset_split}, which was trained on", str(error).splitlines()[0]


def measure_reconstructions(pipeline: Any, images: Tensor) -> list[Measurement]:
    """Measure reconstructions of images (N, C, H, W) in [-1, 1].

    Returns the mean squared error. If there are built-in features for this shape, and more images than features, also
    the Frechet distance between images and reconstructions.
    """
    reconstructions = pipeline.reconstruct(images).cpu()
    error = pixels.reconstruction_error(images, reconstructions)["mse"]
    measurements = [Measurement("reconstruction error, mse", error, "lower")]
    try:
        network = choose_features("auto", images.shape[1], tuple(images.shape[2:]))
    except ValueError:  # none of this shape
        return measurements
    if len(images) > network.num_features:
        real, fake = (network.extract(x.split(250)) for x in (images, reconstructions))
        name = network.metric_name("Frechet distance of reconstructions")
        measurements.append(Measurement(name, frechet_distance(real, fake), "lower"))
    return measurements


def complete(recipe: Any, run: Any, held_out: HeldOut, args: HeldOutArgs, trained: Any) -> Finished:
    """Fit the prior of a trained autoencoder, measure it on held-out images, and print the measurements.

    Args:
        recipe: an `AutoencoderRecipe`.
        run: the `Run` of the training.
        held_out: the images to measure.
        args: the options.
        trained: the pipeline with the prior of the training.
    """
    data, seed, samples = run.data, run.args.seed, args.likelihood_samples
    fitted = recipe.with_fitted_prior(trained, data, seed)
    print(f"Measuring {len(held_out.images):,} images of {held_out.data}, {held_out.split}", flush=True)
    measurements = recipe.measure(trained, fitted, held_out.images, samples, seed)
    print(report.table(measurements))
    protocol = {
        "data": held_out.data,
        "split": held_out.split,
        "real images": len(held_out.images),
        "likelihood": recipe.options["likelihood"],
        "pixels": "made binary, anew" if recipe.likelihood.levels == 2 else "of 256 levels",
        "prior": recipe.describe_prior(trained),
        **({} if fitted is trained else {"fitted prior": recipe.describe_prior(fitted)}),
        "seed": seed,
    }
    return Finished(fitted, evaluation=report.entries(measurements, protocol))

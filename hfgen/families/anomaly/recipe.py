"""The recipe of an anomaly detector: the split of normal images, and the fit."""

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor

import hfgen

from ...console.notes import tell
from ...data.images import ImageData
from ...data.selection import select_rows
from ...data.summary import sample
from ...models.calibration import max_alarms, min_calibration_images
from ...options import DataArgs
from ...pipelines.anomaly import VARIATIONAL
from ...pipelines.classes import classes_in
from ...utils.pixels import from_levels
from ...utils.seeds import generator_of
from ..finish import Finished
from ..trained_pipeline import load_trained
from .fit import MAX_FITTED_IMAGES, fit, fit_energy
from .options import AnomalyArgs

MAX_HELD_OUT_IMAGES = 10_000
"""Default number of held-out images, at most, unless the false-alarm rate needs more."""


def load_scored(args: AnomalyArgs, output_dir: str) -> Any:
    """Return the pipeline that the options name; None if the options name none. The default score is stated in `args`:
    the energy of an energy, else the density.

    Raises:
        ValueError: the folder holds a pipeline of another kind, or it is `output_dir`.
    """
    pipeline = None
    if args.pipeline is not None:
        kinds = hfgen.VAEPipeline, hfgen.EnergyPipeline
        pipeline = load_trained(args.pipeline, output_dir, kinds, "whose latents or energies are scored")
        tell(
            f"the false-alarm rate holds only if {args.pipeline} was not trained on the images held out here. Name "
            "data that it has not seen, such as another --dataset_split, or train without --pipeline."
        )
    args.score = args.score or ("energy" if isinstance(pipeline, hfgen.EnergyPipeline) else "density")
    return pipeline


def check(args: AnomalyArgs, pipeline: Any, recipe: Any) -> None:
    """Refuse options before any data are read.

    Args:
        args: the options.
        pipeline: result of `load_scored`.
        recipe: the `AutoencoderRecipe` of the training.

    Raises:
        ValueError: a score that the pipeline or the autoencoder does not have.
    """
    if isinstance(pipeline, hfgen.EnergyPipeline):
        if args.score != "energy" or args.density_components is not None:
            given = "--density_components" if args.score == "energy" else f"--score {args.score}"
            raise ValueError(f"{given} is for autoencoders, and {args.pipeline} holds an EnergyPipeline. Leave it out.")
        return
    if args.score == "energy":
        raise ValueError("--score energy needs a trained energy: --pipeline FOLDER of `hfgen train energy`.")
    if not recipe.can_sample:
        raise ValueError(
            "--objective vq has codes instead of real latents, so no score can be computed. Choose another objective."
        )
    variational = recipe.variational if pipeline is None else pipeline.config.variational
    if args.score in VARIATIONAL and not variational:
        raise ValueError(f"--score {args.score} needs an autoencoder trained with --objective elbo or iwae.")


def check_data_options(args: DataArgs) -> None:
    """Raise ValueError if the options name a stream."""
    if args.streaming:
        raise ValueError("Images are held out by their row numbers, which a stream does not have. Drop --streaming.")


def data_options(args: DataArgs, pipeline: Any) -> DataArgs:
    """Return the options of data, with the image shape of a trained pipeline.

    Raises:
        ValueError: the options name another shape, or a stream.
    """
    check_data_options(args)
    if len(pipeline.sample_shape) != 3:
        raise ValueError(f"The trained pipeline has items {tuple(pipeline.sample_shape)}, and anomalies are in images.")
    channels, height, width = pipeline.sample_shape
    shape = {"channels": channels, **({"resolution": height} if height == width else {})}
    for name, value in shape.items():
        if getattr(args, name) not in (None, value):
            raise ValueError(f"--{name} {getattr(args, name)}: the trained pipeline takes {value}. Leave it out.")
    return dataclasses.replace(args, **shape)


def split(data: ImageData, args: AnomalyArgs, seed: int) -> tuple[ImageData, Tensor]:
    """Split the normal images at random.

    Args:
        data: all images.
        args: the options.
        seed: of the split.

    Returns:
        The images to train on, and the held-out ones (M, C, H, W) in [-1, 1].

    Raises:
        ValueError: unknown classes, or too few images.
    """
    normal = _normal_rows(data, args.leave_out)
    count, needed = args.num_calibration, min_calibration_images(args.false_alarm_rate)
    if count is None:
        count = max(needed, min(len(normal) // 10, MAX_HELD_OUT_IMAGES))
    if count >= len(normal):
        raise ValueError(
            f"{count:,} of {len(normal):,} normal images would be held out (--false_alarm_rate "
            f"{args.false_alarm_rate:g} needs {needed:,}), and none left to train on. Give more images, or a larger "
            "--false_alarm_rate."
        )
    max_alarms(count, args.false_alarm_rate)
    order = torch.randperm(len(normal), generator=generator_of("held out", seed))
    held_out, training = normal[order[:count]], normal[order[count:].sort().values]
    return select_rows(data, training), from_levels(data.pixels(held_out)[0])


def _normal_rows(data: ImageData, leave_out: str | None) -> Tensor:
    """Return the rows (N,) of the normal images, those without the classes `leave_out`."""
    if leave_out is None:
        return torch.arange(len(data))
    if data.labels is None:
        raise ValueError(f"{data.name} has no labels for --leave_out {leave_out}. Name their column: --label_column.")
    try:
        classes = torch.tensor(classes_in(leave_out, data.num_classes, data.label_names))
    except ValueError as error:
        names = ", ".join(data.label_names)
        raise ValueError(f"--leave_out {leave_out} is not known: the classes are {names}. {error}") from None
    return (~torch.isin(data.labels, classes)).nonzero().squeeze(1)


def complete(
    pipeline: Any, recipe: Any, data: ImageData, held_out: Tensor, args: AnomalyArgs, data_args: DataArgs, seed: int
) -> Finished:
    """Fit and calibrate the detector for a trained autoencoder or energy, and print its threshold and false-alarm rate.

    Args:
        pipeline: the VAEPipeline or EnergyPipeline.
        recipe: its `AutoencoderRecipe`, which fits the prior for a score that is a bound on the likelihood.
        data: the training images.
        held_out (M, C, H, W): normal images in [-1, 1] for the threshold.
        args, data_args: the options.
        seed: of the fit.
    """
    start = time.perf_counter()
    preparation = {"center_crop": data_args.center_crop, "background": data_args.background}
    if args.score == "energy":
        detector = fit_energy(pipeline, held_out, args.false_alarm_rate, **preparation)
    else:
        if args.score in VARIATIONAL and args.pipeline is None:
            pipeline = recipe.with_fitted_prior(pipeline, data, seed)
        normal = from_levels(sample(data, MAX_FITTED_IMAGES, seed)[0])
        numbers = args.score, args.false_alarm_rate, args.density_components, args.score_samples, seed
        detector = fit(pipeline, normal, held_out, *numbers, **preparation)
    print(f"Fitted and calibrated in {time.perf_counter() - start:.1f} s", flush=True)
    facts = decision_facts(detector)
    for name, text in facts.items():
        print(f"{name + ':':18}{text}", flush=True)
    return Finished(detector, facts)


def decision_facts(detector: Any) -> dict[str, str]:
    """Return descriptions of the threshold and of the false-alarm rate with its interval, for the card."""
    from scipy.stats import beta

    rate, count = detector.config.false_alarm_rate, detector.calibration.config.num_images
    allowed = max_alarms(count, rate)
    low, high = beta(allowed, count + 1 - allowed).ppf([0.025, 0.975])
    return {
        "threshold": f"{detector.threshold:.6g} of the score, {detector.score_name}",
        "false-alarm rate": f"at most {rate:g} over calibrations; with these {count:,} normal images {low:.2g} to "
        f"{high:.2g} (95 %)",
    }

"""The recipe of a normalizing flow: network, objective and pipeline that belong together, and its measurements."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import hfgen

from ...data.images import ImageData
from ...data.summary import sample
from ...distributions.densities import dequantised
from ...metrics import report
from ...metrics.measures import Measurement, mean_measurement
from ...options import DataArgs, TrainArgs
from ...utils.pixels import from_levels
from ...utils.seeds import generator_of, seed_initialisation
from ..finish import Finished
from ..vae.evaluation import HeldOut
from .options import FlowArgs, FlowHeldOutArgs, LikelihoodArgs

TITLES = {"transformer": "Transformer flow", "glow": "Glow", "realnvp": "RealNVP", "nice": "NICE", "jet": "Jet"}

INITIAL_IMAGES = 256
"""Training images that initialise actnorms, the same in all processes."""

MEASURED_BATCH = 100
"""Images in one pass of a measurement."""


class FlowRecipe:
    """Network, objective and pipeline of a normalizing flow.

    Attributes:
        title, kind: names of the model.

    Args:
        data_args, network_args, objective_args, args: the options.

    Raises:
        ValueError: options that do not go together, before any data are read.
    """

    kind = "normalizing flow"

    def __init__(self, data_args: DataArgs, network_args: FlowArgs, objective_args: LikelihoodArgs, args: TrainArgs):
        self.network_args, self.objective_args, self.args = network_args, objective_args, args
        self.title = TITLES[network_args.model]
        if data_args.resolution is not None:
            with torch.device("meta"):
                self._build(
                    data_args.resolution, data_args.channels or 3, 2 if network_args.class_conditional else None
                )

    def network(self, data: ImageData, classes: int | None) -> nn.Module:
        """Return the flow for these images, whose actnorms are initialised by some of them.

        Raises:
            ValueError: images that the architecture does not take.
        """
        seed_initialisation(self.args.seed)
        flow = self._build(data.resolution, data.channels, classes)
        if hasattr(flow, "initialise"):
            levels, labels = sample(data, INITIAL_IMAGES)
            noise = torch.rand(levels.shape, generator=generator_of("initial images", self.args.seed))
            flow.initialise(dequantised(from_levels(levels), noise), None if classes is None else labels)
        return flow

    def objective(self, classes: int | None) -> Any:
        """Return the objective."""
        args = self.objective_args
        dropout = args.label_dropout if classes is not None else 0.0
        return hfgen.MaximumLikelihood(args.dequantisation, args.noise_level, classes, dropout)

    def pipeline(self, networks: Mapping[str, nn.Module], classes: int | None, names: list[str] | None) -> Any:
        """Return the pipeline of the networks."""
        noise = self.objective_args.noise_level if self.objective_args.dequantisation == "gaussian" else 0.0
        return hfgen.NormalizingFlowPipeline(networks["flow"], classes, names, noise)

    def _build(self, resolution: Any, channels: int, classes: int | None) -> nn.Module:
        args, checkpointing = self.network_args, self.args.gradient_checkpointing
        null = self.objective_args.label_dropout > 0
        shape = (args.model, args.model_size, resolution, channels, classes)
        return hfgen.build_flow(*shape, args.elementwise, args.components, null, checkpointing)


def after_training(run: Any, held_out: HeldOut, args: FlowHeldOutArgs, conditional: bool) -> functools.partial:
    """Return what `Run.train` calls with the trained pipeline, see `complete`."""
    return functools.partial(complete, held_out, args.likelihood_samples, run.args.seed, conditional)


def complete(held_out: HeldOut, samples: int, seed: int, conditional: bool, pipeline: Any) -> Finished:
    """Measure a trained pipeline on held-out images, and print the measurements.

    Args:
        held_out: the images.
        samples: draws of the dequantisation for each.
        seed: of the dequantisation.
        conditional: whether the flow knows classes; then the density is that without the class.
        pipeline: the pipeline.
    """
    print(f"Measuring {len(held_out.images):,} images of {held_out.data}, {held_out.split}", flush=True)
    measurements = measure(pipeline, held_out, samples, seed)
    print(report.table(measurements))
    protocol = {
        "data": held_out.data,
        "split": held_out.split,
        "real images": len(held_out.images),
        "dequantisation": f"uniform, {samples} draws" if samples > 1 else "uniform",
        **({"classes": "not given"} if conditional else {}),
        "seed": seed,
    }
    return Finished(pipeline, evaluation=report.entries(measurements, protocol))


def measure(pipeline: Any, held_out: HeldOut, samples: int, seed: int) -> list[Measurement]:
    """Measure bits per dimension, and the largest error of a pixel after the way to its latent and back."""
    images = held_out.images
    pipeline.set_progress_bar_config(desc="bits per dimension")
    generator = generator_of("dequantisation", seed)
    bits = pipeline.bits_per_dim(images, None, samples, generator, MEASURED_BATCH)
    first = images[:MEASURED_BATCH]
    error = float((pipeline.reconstruct(first).cpu() - first).abs().max())
    name = "bits per dimension" if samples == 1 else f"bits per dimension, K = {samples}"
    return [mean_measurement(name, bits, "lower"), Measurement("inverse error, largest of a pixel", error, "lower")]

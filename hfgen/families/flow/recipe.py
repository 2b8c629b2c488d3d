"""The recipe of a normalizing flow: network, objective and pipeline that belong together, and its measurements."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import hfgen

from ...data.images import ImageData
from ...data.summary import sample
from ...distributions.densities import dequantised
from ...metrics import report
from ...metrics.measures import Measurement, mean_measurement
from ...options import DataArgs, Parsed, TrainArgs
from ...utils.pixels import from_levels
from ...utils.seeds import generator_of, seed_initialisation
from ..finish import Finished
from ..vae.evaluation import HeldOut, load_held_out
from .options import FlowArgs, FlowHeldOutArgs, FlowSampleArgs, LikelihoodArgs
from .preview import FlowPreview

TITLES = {
    "transformer": "Transformer flow",
    "glow": "Glow",
    "realnvp": "RealNVP",
    "nice": "NICE",
    "jet": "Jet",
    "residual": "Residual flow",
    "implicit": "Implicit flow",
}

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
        if network_args.extra_channels and objective_args.dequantisation == "gaussian":
            raise ValueError(
                "--dequantisation gaussian removes noise by the exact density, and --extra_channels leave a bound "
                "alone. Leave one of them out."
            )
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

    def objective(self, flow: nn.Module, classes: int | None) -> Any:
        """Return the objective of a flow."""
        args = self.objective_args
        dropout = args.label_dropout if classes is not None else 0.0
        noise_shape = getattr(flow, "noise_shape", None)
        return hfgen.MaximumLikelihood(args.dequantisation, args.noise_level, classes, dropout, noise_shape=noise_shape)

    def pipeline(self, networks: Mapping[str, nn.Module], classes: int | None, names: list[str] | None) -> Any:
        """Return the pipeline of the networks."""
        noise = self.objective_args.noise_level if self.objective_args.dequantisation == "gaussian" else 0.0
        return hfgen.NormalizingFlowPipeline(networks["flow"], classes, names, noise)

    def _build(self, resolution: Any, channels: int, classes: int | None) -> nn.Module:
        args, checkpointing = self.network_args, self.args.gradient_checkpointing
        null = self.objective_args.label_dropout > 0
        shape = (args.model, args.model_size, resolution, channels, classes)
        noise = (args.extra_channels, self.objective_args.dequantisation == "variational")
        return hfgen.build_flow(*shape, args.elementwise, args.components, null, checkpointing, *noise)


class ImageRecipe:
    """The recipe of a flow with the images of a run.

    Attributes:
        data: the images.
        complete: what measures the trained pipeline, see `Run.train`.

    Args:
        run: the `Run`.
        parsed: the options, those of `options.GROUPS`.

    Raises:
        ValueError: options or images that do not go together.
    """

    reserve = None

    def __init__(self, run: Any, parsed: Parsed):
        data_args, network_args, objective_args, held_out_args, _, args = parsed
        self.recipe, self.seed = FlowRecipe(data_args, network_args, objective_args, args), args.seed
        self.classes, self.data = run.num_classes(network_args.class_conditional), run.data
        self.names = run.data.label_names if self.classes else None
        self.held_out = load_held_out(data_args, held_out_args, run.data, run.accelerator)
        self.complete = after_training(self.recipe, self.held_out, held_out_args, self.classes)

    def network(self) -> nn.Module:
        """Return the flow, whose actnorms are initialised."""
        return self.recipe.network(self.data, self.classes)

    def objective(self, flow: nn.Module) -> Any:
        """Return its objective."""
        return self.recipe.objective(flow, self.classes)

    def pipeline(self, flow: nn.Module) -> Any:
        """Return its pipeline."""
        return self.recipe.pipeline({"flow": flow}, self.classes, self.names)

    def preview(self, args: FlowSampleArgs) -> FlowPreview:
        """Return what is shown of it."""
        return FlowPreview(self.recipe.title, self.recipe.kind, args, self.seed, self.held_out.images)


def after_training(
    recipe: FlowRecipe, held_out: HeldOut, args: FlowHeldOutArgs, classes: int | None
) -> functools.partial:
    """Return what `Run.train` calls with the trained pipeline, see `complete`.

    A flow that knows classes is measured without them. If it was trained without label dropout, it can't be, and is
    measured with those of the images.

    Raises:
        ValueError: it needs the images' classes, and they have none that it knows.
    """
    labels = held_out.labels_of(classes is not None, recipe.objective_args.label_dropout)
    told = {} if classes is None else {"classes": _TOLD[labels is not None]}
    return functools.partial(complete, held_out, labels, args.likelihood_samples or 1, recipe.args.seed, told)


_TOLD = {True: "those of the images", False: "not given"}


def complete(
    held_out: HeldOut, labels: Tensor | None, samples: int, seed: int, told: Mapping[str, str], pipeline: Any
) -> Finished:
    """Measure a trained pipeline on held-out images, and print the measurements.

    Args:
        held_out: the images.
        labels: classes (N,) that the flow is told; None: none.
        samples: draws of the dequantisation for each.
        seed: of the dequantisation.
        told: what the protocol says of the classes.
        pipeline: the pipeline.
    """
    print(f"Measuring {held_out}", flush=True)
    measurements = measure(pipeline, held_out, labels, samples, seed)
    noise = "variational" if pipeline.flow.config.get("dequantise", False) else "uniform"
    print(report.table(measurements))
    protocol = {
        **held_out.facts,
        "dequantisation": f"{noise}, {samples} draws" if samples > 1 else noise,
        **told,
        "seed": seed,
    }
    return Finished(pipeline, evaluation=report.entries(measurements, protocol))


def measure(pipeline: Any, held_out: HeldOut, labels: Tensor | None, samples: int, seed: int) -> list[Measurement]:
    """Measure bits per dimension, and the largest error of a pixel after the way to its latent and back, under classes
    (N,) or none."""
    images = held_out.images
    pipeline.set_progress_bar_config(desc="bits per dimension")
    generator = generator_of("dequantisation", seed)
    bits = pipeline.bits_per_dim(images, labels, samples, generator, MEASURED_BATCH)
    first = images[:MEASURED_BATCH]
    their = None if labels is None else labels[:MEASURED_BATCH]
    error = float((pipeline.reconstruct(first, their).cpu() - first).abs().max())
    name = "bits per dimension" if samples == 1 else f"bits per dimension, K = {samples}"
    return [mean_measurement(name, bits, "lower"), Measurement("inverse error, largest of a pixel", error, "lower")]

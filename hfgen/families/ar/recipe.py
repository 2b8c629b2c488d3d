"""The recipes of autoregressive models, of pixels and of codes: data, network, objective and pipeline that belong
together, and their measurements."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import nn

import hfgen

from ...metrics import report
from ...metrics.measures import Measurement, mean_measurement
from ...utils.seeds import generator_of, seed_initialisation
from ..finish import Finished
from ..preview import Preview
from ..trained_data import check_shape, take_data_of
from ..trained_pipeline import load_trained
from ..vae.evaluation import MEASUREMENTS, load_held_out
from . import codes
from .options import ARArgs, ARHeldOutArgs, ARSampleArgs, PixelArgs
from .preview import ARPreview

TITLES = {"transformer": "Image transformer", "fvsbn": "FVSBN", "made": "MADE", "nade": "NADE"}

PIXELS = {"levels": (256, "symbols"), "binary": (2, "binary"), "real": (None, "uniform")}
"""Value of `--pixels` -> levels of the network, and dequantisation of the objective."""

MEASURED_BATCH = 100
"""Images in one pass of a measurement."""


class ARRecipe(ABC):
    """Data, network, objective and pipeline of an autoregressive model.

    Attributes:
        title, kind: names of the model.
        data: what is trained on.
        held_out_use: what held-out images are for; other than `MEASUREMENTS` where the model states no likelihood.
        classes, names: number and names of the classes that the model knows; None: none.
        spent: seconds of preparation that count as training, such as the extraction of codes.

    Args:
        run: the `Run`; its images are loaded.
        network_args, pixel_args, held_out_args: the options.

    Raises:
        ValueError: options or images that do not go together.
    """

    title: str
    kind = "autoregressive"
    data: Any
    held_out_use = MEASUREMENTS
    spent = 0.0

    def __init__(self, run: Any, network_args: ARArgs, pixel_args: PixelArgs, held_out_args: ARHeldOutArgs):
        self.network_args, self.pixel_args, self.samples = network_args, pixel_args, held_out_args.likelihood_samples
        self.seed, conditional = run.args.seed, network_args.class_conditional
        self.recompute = run.args.gradient_checkpointing
        self.classes = run.num_classes(conditional)
        self.names = run.data.label_names if conditional else None
        self.held_out = load_held_out(run.data_args, held_out_args, run.data, run.accelerator, self.held_out_use)
        self.held_out_labels = self.held_out.labels_of(conditional, pixel_args.label_dropout)

    @abstractmethod
    def network(self) -> nn.Module:
        """Return a new network. Raises ValueError for images that the architecture does not take."""

    def pipeline(self, model: nn.Module) -> Any:
        """Return the pipeline of the network."""
        return hfgen.ARPipeline(model, self.classes, self.names)

    def preview(self, args: ARSampleArgs) -> Preview:
        """Return what is shown of the pipeline: samples, and completions of held-out images."""
        return ARPreview(self.title, self.kind, args, self.seed, self.held_out.images)

    @abstractmethod
    def objective(self, model: nn.Module) -> Any:
        """Return the objective for the network."""

    @abstractmethod
    def complete(self, pipeline: Any) -> Finished:
        """Finish a trained pipeline, with what is measured of it on held-out images."""

    @property
    def reserve(self) -> Callable[[Any], float] | None:
        """pipeline -> the seconds of preparation, see `Run.train`; None without any."""
        return None

    @property
    def _conditioning(self) -> dict[str, Any]:
        dropout = self.pixel_args.label_dropout if self.classes is not None else 0.0
        return {"num_classes": self.classes, "label_dropout": dropout}

    def _recomputing(self, network: nn.Module) -> nn.Module:
        """Return the network, which computes activations again in the backward pass if the options say so."""
        if self.recompute:
            network.enable_gradient_checkpointing()
        return network

    def _build(self, resolution: Any, channels: int, levels: int | None) -> nn.Module:
        args, null = self.network_args, self.pixel_args.label_dropout > 0
        seed_initialisation(self.seed)
        shape = (args.model, args.model_size, resolution, channels, levels, self.classes, null)
        rest = args.patch_size, args.num_orders, self.pixel_args.components
        return self._recomputing(hfgen.build_autoregressive(*shape, *rest))


class LikelihoodRecipe(ARRecipe):
    """The recipe of a model that states the likelihood of an item, and is measured by it.

    Attributes:
        dequantisation: of the objective, see `MaximumLikelihood`.
    """

    dequantisation: str

    @abstractmethod
    def measure(self, pipeline: Any) -> tuple[Measurement, str]:
        """Measure the held-out images; return what was measured, and of which pixels or codes."""

    def objective(self, model: nn.Module) -> Any:
        """Return the objective for the network: its exact likelihood, by `dequantisation` (see `MaximumLikelihood`)."""
        return hfgen.MaximumLikelihood(
            self.dequantisation, player="model", log_prob=attrgetter("log_prob"), **self._conditioning
        )

    def complete(self, pipeline: Any) -> Finished:
        """Measure a trained pipeline on held-out images, and print the measurement."""
        print(f"Measuring {self.held_out}", flush=True)
        measurement, what = self.measure(pipeline)
        print(report.table([measurement]))
        classes = {"classes": "not given" if self.held_out_labels is None else "given"}
        told = classes if self.classes is not None else {}
        protocol = {**self.held_out.facts, "pixels": what, **told, "seed": self.seed}
        return Finished(pipeline, evaluation=report.entries([measurement], protocol), seconds=self.spent)


class PixelRecipe(LikelihoodRecipe):
    """The recipe for the pixels of images."""

    def __init__(self, run: Any, network_args: ARArgs, pixel_args: PixelArgs, held_out_args: ARHeldOutArgs):
        self.levels, self.dequantisation = PIXELS[pixel_args.pixels or "levels"]
        rnade = self.levels is None and network_args.model == "nade"
        self.title = "RNADE" if rnade else TITLES[network_args.model]
        if self.levels is None and network_args.model == "transformer":
            raise ValueError("--pixels real is for --model nade, made or fvsbn: a transformer's pixels have levels.")
        self.classes, self.network_args, self.pixel_args, self.seed = None, network_args, pixel_args, run.args.seed
        if run.data_args.resolution is not None:  # refused before the images are read
            with torch.device("meta"):
                self._build(run.data_args.resolution, run.data_args.channels or 3, self.levels)
        super().__init__(run, network_args, pixel_args, held_out_args)
        self.data = run.data

    def network(self) -> nn.Module:
        return self._build(self.data.resolution, self.data.channels, self.levels)

    def measure(self, pipeline: Any) -> tuple[Measurement, str]:
        draws = "1 draw" if self.samples == 1 else f"the mean of {self.samples} draws"
        what = {2: f"binarised at random, {draws}", 256: "of 256 levels, exact"}
        binary = pipeline.levels == 2
        name, better = ("log-likelihood, nats", "higher") if binary else ("bits per dimension", "lower")
        pipeline.set_progress_bar_config(desc=name)
        generator, method = generator_of("likelihood", self.seed), "log_likelihood" if binary else "bits_per_dim"
        arguments = self.held_out.images, self.held_out_labels, generator, MEASURED_BATCH
        values = torch.stack([getattr(pipeline, method)(*arguments) for _ in range(self.samples)]).mean(0)
        bound = f"uniform dequantisation, {draws}: an upper bound"
        return mean_measurement(name, values, better), what.get(pipeline.levels, bound)


class FlowRecipe(ARRecipe):
    """The recipe for patches of real numbers, each drawn by a flow."""

    title = "Continuous image transformer"
    held_out_use = "Completions"

    def __init__(self, run: Any, network_args: ARArgs, pixel_args: PixelArgs, held_out_args: ARHeldOutArgs):
        if network_args.model != "transformer":
            raise ValueError(f"--model {network_args.model}: patches drawn by a flow are for --model transformer.")
        super().__init__(run, network_args, pixel_args, held_out_args)
        self.data = run.data

    def network(self) -> nn.Module:
        args, pixel_args, data = self.network_args, self.pixel_args, self.data
        seed_initialisation(self.seed)
        shape = (args.model_size, data.resolution, data.channels, self.classes, pixel_args.label_dropout > 0)
        return self._recomputing(hfgen.build_continuous(*shape, args.patch_size, pixel_args.random_order))

    def objective(self, model: nn.Module) -> Any:
        return hfgen.TokenFlow(model.length, self.pixel_args.random_order, **self._conditioning)

    def complete(self, pipeline: Any) -> Finished:
        """Return the pipeline, and say that there is nothing to measure."""
        print("A flow of tokens states no likelihood: hfgen evaluate measures its samples.")
        return Finished(pipeline)


class CodeRecipe(LikelihoodRecipe):
    """The recipe for the codes of a trained autoencoder: the network becomes the prior of its pipeline.

    Args:
        trained: the `VQPipeline`, see `load_trained`.
        run, network_args, pixel_args, held_out_args: see `ARRecipe`.
    """

    title = "Prior over codes"
    dequantisation = "symbols"

    def __init__(
        self, trained: Any, run: Any, network_args: ARArgs, pixel_args: PixelArgs, held_out_args: ARHeldOutArgs
    ):
        super().__init__(run, network_args, pixel_args, held_out_args)
        check_shape(run.data, trained.sample_shape)
        self.trained = trained.to(run.accelerator.device)
        self.data = codes.code_data(self.trained, run.data, run.output)

    @property
    def spent(self) -> float:
        """The seconds of the extraction."""
        return self.data.seconds

    @property
    def reserve(self) -> Callable[[Any], float]:
        return lambda _: self.spent

    def network(self) -> nn.Module:
        shape = self.trained.code_shape
        return self._build(shape[0] if shape[0] == shape[1] else shape, 1, self.trained.num_codes)

    def pipeline(self, model: nn.Module) -> Any:
        config = self.trained.config
        likelihood = {name: config[name] for name in ("likelihood", "likelihood_sigma", "likelihood_components")}
        prior = {"prior": model, "num_classes": self.classes, "label_names": self.names}
        return hfgen.VQPipeline(self.trained.autoencoder, **likelihood, **prior)

    def preview(self, args: ARSampleArgs) -> Preview:
        return ARPreview(self.title, self.kind, args, self.seed)

    def measure(self, pipeline: Any) -> tuple[Measurement, str]:
        name = "bits per code (of codes, not of pixels)"
        pipeline.set_progress_bar_config(desc="bits per code")
        grids = pipeline.encode(self.held_out.images)
        nats = pipeline.code_log_likelihood(grids, self.held_out_labels, MEASURED_BATCH)
        bits = -nats / (grids[0].numel() * torch.tensor(2.0).double().log())
        height, width = pipeline.code_shape
        return mean_measurement(name, bits, "lower"), f"codes, {height} x {width} of {pipeline.num_codes}"


def make_recipe(run: Any, groups: Any, given: Mapping[str, Any]) -> ARRecipe:
    """Return the recipe for these options. For codes, the run gets the data that the pipeline was trained on.

    Args:
        run: the `Run`.
        groups: `ARArgs`, `PixelArgs` and `ARHeldOutArgs`.
        given: options of data by name, which the command line or its files give.

    Raises:
        ValueError: options that do not go together, or data that do not fit.
    """
    network_args, pixel_args, held_out_args = groups
    if run.args.gradient_checkpointing and network_args.model != "transformer":
        raise ValueError(f"--gradient_checkpointing is not for --model {network_args.model}. Leave it out.")
    if network_args.pipeline is None:
        recipe = FlowRecipe if pixel_args.pixels == "flow" else PixelRecipe
        return recipe(run, network_args, pixel_args, held_out_args)
    if pixel_args.pixels is not None:
        raise ValueError(f"--pixels {pixel_args.pixels} is for models of pixels. Leave it or --pipeline out.")
    if network_args.model != "transformer":
        raise ValueError(f"--model {network_args.model}: codes are names, not amounts. Give --model transformer.")
    if run.data_args.streaming or run.data_args.random_flip:
        raise ValueError(
            "Codes are computed once, of images that stay as they are. Drop --streaming and --random_flip."
        )
    trained = load_trained(network_args.pipeline, run.output, hfgen.VQPipeline, "whose codes are learnt")
    take_data_of(run, trained, given)
    return CodeRecipe(trained, run, network_args, pixel_args, held_out_args)

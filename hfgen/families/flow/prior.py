"""The recipe of a flow over the latents of a trained autoencoder, whose prior it becomes."""

from typing import Any

from torch import Tensor, nn

import hfgen

from ...metrics import report
from ...metrics.measures import mean_measurement
from ...options import DataArgs, Parsed
from ...utils.seeds import generator_of, seed_initialisation
from ..finish import Finished
from ..latent_data import Encoder, latent_data, refuse_changing_images
from ..preview import Preview
from ..trained_data import check_shape, take_data_of
from ..trained_pipeline import load_trained
from ..vae.evaluation import load_held_out
from ..vae.preview import VAEPreview
from .options import FlowArgs, FlowSampleArgs, LikelihoodArgs

SIZES = {"xs": (4, 64), "s": (6, 128), "m": (8, 256), "l": (12, 512)}
"""--model_size -> couplings, and the width of their networks."""

OF_IMAGES = ("model", "extra_channels", "class_conditional", "dequantisation", "noise_level", "label_dropout")
"""Options of flows of images, which a flow of latents has no use for."""

LATENTS_PER_IMAGE = 20
"""Draws of a latent for the likelihood of a held-out image, by default."""

INITIAL_LATENTS = 256
"""Latents that initialise actnorms, the same in all processes."""


class PriorRecipe:
    """Data, network, objective and pipeline of a flow of latents.

    Attributes:
        data: the latents, see `LatentData`.

    Args:
        run: the `Run`.
        parsed: the options, those of `options.GROUPS`.

    Raises:
        ValueError: options or data that do not go together.
    """

    title, kind = "Autoencoder with a flow as prior", "variational autoencoder"

    def __init__(self, run: Any, parsed: Parsed):
        _, network_args, _, held_out_args, _, _ = parsed
        given = parsed.given_of(FlowArgs) | parsed.given_of(LikelihoodArgs)
        if wrong := [name for name in OF_IMAGES if name in given]:
            raise ValueError(
                f"--{wrong[0]} {given[wrong[0]]} is for flows of images. With --pipeline couplings learn the latents "
                "of an autoencoder. Leave it or --pipeline out."
            )
        refuse_changing_images(run.data_args)
        self.args, self.seed, folder = network_args, run.args.seed, network_args.pipeline
        self.trained = load_trained(folder, run.output, hfgen.VAEPipeline, "whose latents are learnt")
        take_data_of(run, self.trained, parsed.given_of(DataArgs))
        check_shape(run.data, self.trained.autoencoder.sample_shape)
        self.held_out = load_held_out(run.data_args, held_out_args, run.data, run.accelerator)
        self.samples = held_out_args.likelihood_samples or LATENTS_PER_IMAGE
        self.trained.to(run.accelerator.device)
        likelihood, variational = self.trained.likelihood, self.trained.config.variational
        encoder = Encoder(self.trained.autoencoder, run.data, self.seed, likelihood, variational)
        fingerprint = f"{run.data.fingerprint} {encoder.identity['weights']} {self.seed}"
        self.data = latent_data(encoder, run.output / "latents", fingerprint)

    @property
    def spent(self) -> float:
        """The seconds of the encoding."""
        return self.data.seconds

    def network(self) -> nn.Module:
        """Return the flow of latents, whose actnorms are initialised."""
        layers, width = SIZES[self.args.model_size]
        options = {"elementwise": self.args.elementwise or "affine", "components": self.args.components or 8}
        seed_initialisation(self.seed)
        flow = hfgen.FlowPriorModel(self.trained.latent_shape, layers, width, **options)
        flow.initialise(self.data.first(INITIAL_LATENTS)["x"])
        return flow

    def objective(self, flow: nn.Module) -> Any:
        """Return its objective, the likelihood of latents."""
        return hfgen.MaximumLikelihood("none", log_prob=_itself)

    def preview(self, args: FlowSampleArgs) -> VAEPreview:
        """Return what is shown of the autoencoder with its new prior."""
        return PriorPreview(args, self.seed, self.held_out.images)

    def reserve(self, pipeline: Any) -> float:
        """Return the seconds of the encoding, which count as training."""
        return self.spent

    def pipeline(self, flow: nn.Module) -> Any:
        """Return the autoencoder with the flow as its prior."""
        names = ("likelihood", "likelihood_sigma", "likelihood_components", "variational")
        options = {name: self.trained.config[name] for name in names}
        return hfgen.VAEPipeline(self.trained.autoencoder.to(flow.device), flow, **options)

    def complete(self, pipeline: Any) -> Finished:
        """Measure held-out images by both priors, and print the measurements."""
        if not pipeline.config.variational:
            print("A plain autoencoder states no likelihood: hfgen evaluate measures its samples.")
            return Finished(pipeline, seconds=self.spent)
        print(f"Measuring {self.held_out}", flush=True)
        bits = pipeline.likelihood.levels == 256
        name, method = ("bits per dimension", "bits_per_dim") if bits else ("log-likelihood, nats", "log_likelihood")
        name, better = f"{name}, K = {self.samples}", "lower" if bits else "higher"
        measured = []
        for label, each in ((f"former prior: {name}", self.trained), (name, pipeline)):
            each.set_progress_bar_config(desc=label)
            generator = generator_of("likelihood", self.seed)
            values = getattr(each, method)(self.held_out.images, self.samples, generator)
            measured.append(mean_measurement(label, values, better))
        print(report.table(measured))
        protocol = {**self.held_out.facts, "likelihood": pipeline.config.likelihood, "seed": self.seed}
        return Finished(pipeline, evaluation=report.entries(measured, protocol), seconds=self.spent)


class PriorPreview(VAEPreview):
    """The pictures of an autoencoder, with samples of the flow."""

    card_options = ("pipeline", "model_size", "elementwise")

    def __init__(self, args: FlowSampleArgs, seed: int, images: Tensor):
        super().__init__(PriorRecipe.title, PriorRecipe.kind, args, seed, images, lambda _: "a flow of couplings")
        self.call_options = {"temperature": args.temperature}
        self.protocol = dict(self.call_options)

    def grid(self, pipeline: Any) -> Any:
        """Draw a grid of samples."""
        return Preview.grid(self, pipeline)

    def action(self, pipeline: Any) -> str:
        """Return "generate"."""
        return "generate"


def _itself(output: Tensor) -> Tensor:
    return output

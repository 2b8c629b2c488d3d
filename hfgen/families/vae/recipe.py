"""The recipe of an autoencoder: network, objective, prior and pipeline for the options of one training."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import hfgen

from ...console.progress import bar_options
from ...data.images import ImageData
from ...data.summary import sample
from ...distributions.likelihoods import build_likelihood
from ...metrics.measures import Measurement, mean_measurement
from ...models.autoencoder_with_prior import AutoencoderWithPrior, latent_shape
from ...models.priors import GaussianMixturePriorModel
from ...options import DataArgs, TrainArgs
from ...utils.pixels import from_levels
from ...utils.seeds import generator_of
from ..fit_mixture import fit_mixture
from .choice import default_choice
from .evaluation import ELBO_SAMPLES, measure_reconstructions
from .options import AutoencoderArgs, CodingArgs, PriorArgs

MAX_FITTED_IMAGES = 20_000
"""Number of training images to whose latents a mixture is fitted, at most."""

MAX_FULL_DIMENSIONS = 128
"""Number of dimensions of a latent up to which Gaussians have full covariances. With more, covariances are diagonal."""


class ObjectiveEntry(NamedTuple):
    """An objective of autoencoders.

    Attributes:
        title: name of its models in the title of a card.
        kind: name of its models in the text of a card.
        build: (likelihood, shape (d, h, w) of latents, options) -> objective.
    """

    title: str
    kind: str
    build: Callable[[Any, tuple[int, int, int], Any], Any]


OBJECTIVES = {
    "elbo": ObjectiveEntry(
        "VAE",
        "variational autoencoder",
        lambda likelihood, shape, args: hfgen.ELBO(
            likelihood, shape, args.beta, args.beta_warmup_steps, args.free_bits
        ),
    ),
    "iwae": ObjectiveEntry(
        "IWAE",
        "importance-weighted autoencoder",
        lambda likelihood, shape, args: hfgen.IWAE(likelihood, shape, args.num_importance_samples),
    ),
    "ae": ObjectiveEntry(
        "Autoencoder", "autoencoder", lambda likelihood, shape, args: hfgen.Reconstruction(likelihood)
    ),
    "dae": ObjectiveEntry(
        "Denoising autoencoder",
        "denoising autoencoder",
        lambda likelihood, shape, args: hfgen.Reconstruction(likelihood, args.corruption, args.corruption_strength),
    ),
    "vq": ObjectiveEntry(
        "VQ-VAE",
        "vector-quantised autoencoder",
        lambda likelihood, shape, args: hfgen.VectorQuantized(likelihood, args.commitment),
    ),
}
"""Value of `--objective` -> entry."""


class AutoencoderRecipe(ABC):
    """Network, objective, prior and pipeline of an autoencoder.

    Attributes:
        models: architectures that the objective can train.
        can_sample: whether the pipeline draws images.
        likelihood: p(x | z).
        title, kind: names of the model, see `ObjectiveEntry`.

    Args:
        data_args, network_args, objective_args, prior_args: the options.
        gradient_checkpointing: whether activations are recomputed in the backward pass.
        entry: the entry of the objective.

    Raises:
        ValueError: options out of range, or that do not go together. No data are read before.
    """

    models: tuple[str, ...]
    can_sample: bool

    def __init__(
        self,
        data_args: DataArgs,
        network_args: AutoencoderArgs,
        objective_args: CodingArgs,
        prior_args: PriorArgs,
        gradient_checkpointing: bool,
        entry: ObjectiveEntry,
    ):
        self.network_args, self.objective_args, self.prior_args = network_args, objective_args, prior_args
        self.gradient_checkpointing = gradient_checkpointing
        likelihood = network_args.likelihood, network_args.likelihood_sigma, network_args.likelihood_components
        self.likelihood = build_likelihood(*likelihood)
        self.options = dict(zip(("likelihood", "likelihood_sigma", "likelihood_components"), likelihood, strict=True))
        self.title, self.kind, self.build_objective = entry
        if objective_args.beta != 1:
            self.title += f" (beta {objective_args.beta:g})"
        if network_args.model not in self.models:
            raise ValueError(
                f"--model {network_args.model} can't be trained with --objective {objective_args.objective}, which "
                f"takes {' or '.join(self.models)}."
            )
        self.check()
        self.build_objective(self.likelihood, (1, 1, 1), objective_args)
        with torch.device("meta"):
            self.autoencoder(data_args.resolution or 32, data_args.channels or 1)

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError for options that this kind of autoencoder does not take."""

    def autoencoder(self, resolution: Any, channels: int) -> nn.Module:
        """Return the network without a prior, for images of this shape."""
        args, parameters = self.network_args, self.likelihood.channels(channels)
        network = hfgen.build_autoencoder(
            args.model, args.model_size, resolution, channels, parameters, args.latent_channels
        )
        if self.gradient_checkpointing:
            if not network._supports_gradient_checkpointing:
                raise ValueError(f"--gradient_checkpointing is not for --model {args.model}. Leave it out.")
            network.enable_gradient_checkpointing()
        return network

    @abstractmethod
    def player(self, data: ImageData) -> nn.Module:
        """Return the network to train on these data: the autoencoder, with its prior if it has one.

        Raises:
            ValueError: images that the architecture does not take, or too few images.
        """

    @abstractmethod
    def objective(self, player: nn.Module) -> Any:
        """Return the objective for the network of `player`."""

    @abstractmethod
    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        """Return the pipeline of the networks, with the prior of the training."""

    @abstractmethod
    def with_fitted_prior(self, pipeline: Any, data: ImageData, seed: int) -> Any:
        """Return a pipeline whose prior is fitted to the data, or the same pipeline if the options name no mixture."""

    @abstractmethod
    def measure(
        self, pipeline: Any, fitted_pipeline: Any, images: Tensor, samples: int, seed: int
    ) -> list[Measurement]:
        """Measure the pipeline of the training and the one with the fitted prior.

        Args:
            pipeline: result of the method `pipeline`.
            fitted_pipeline: result of `with_fitted_prior`.
            images (N, C, H, W): held-out images in [-1, 1].
            samples: number of latents per image for the log-likelihood.
            seed: of the latents.
        """

    @abstractmethod
    def describe_prior(self, pipeline: Any) -> str:
        """Return a description of the pipeline's prior."""


class ContinuousRecipe(AutoencoderRecipe):
    """The recipe for latents of real numbers: z ~ q(z | x), or the encoder's mean."""

    models, can_sample = ("mlp", "conv", "kl"), True

    @property
    def variational(self) -> bool:
        """Return whether the objective trains q(z | x). If so, there are bounds on log p(x)."""
        return self.objective_args.objective in ("elbo", "iwae")

    def check(self) -> None:
        if self.objective_args.free_bits and self.prior_args.prior == "vamp":
            raise ValueError(
                f"--free_bits {self.objective_args.free_bits} needs KL in closed form, and --prior vamp has none. Drop "
                "one."
            )

    def player(self, data: ImageData) -> AutoencoderWithPrior:
        autoencoder = self.autoencoder(data.resolution, data.channels)
        args, prior = self.prior_args, None
        if args.prior == "vamp":
            prior = hfgen.VampPriorModel(data.resolution, data.channels, args.num_pseudo_inputs)
            prior.start_from(from_levels(sample(data, args.num_pseudo_inputs)[0]))
        if args.prior == "mixture" and not data.streaming:
            size = GaussianMixturePriorModel(latent_shape(autoencoder), covariance="diag").means.numel()
            if min(len(data), MAX_FITTED_IMAGES) < max(args.mixture_components, size + 1):
                raise ValueError(
                    f"A mixture of {args.mixture_components} Gaussians in {size} dimensions can't be fitted to "
                    f"{len(data)} images. Lower --mixture_components or --latent_channels, or give --prior "
                    "standard_normal."
                )
        return AutoencoderWithPrior(autoencoder, prior)

    def objective(self, player: nn.Module) -> Any:
        autoencoder = getattr(player, "autoencoder", player)
        return self.build_objective(self.likelihood, latent_shape(autoencoder), self.objective_args)

    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        player = networks["autoencoder"]
        if player.prior is not None:
            return self._pipeline_with(player.autoencoder, player.prior.as_mixture(player.autoencoder.encode))
        normal = GaussianMixturePriorModel(latent_shape(player.autoencoder), covariance="diag")
        return self._pipeline_with(player.autoencoder, normal)

    def with_fitted_prior(self, pipeline: Any, data: ImageData, seed: int) -> Any:
        if self.prior_args.prior != "mixture":
            return pipeline
        count = self.prior_args.mixture_components
        start, latents = time.perf_counter(), self.latents(pipeline.autoencoder, data, seed)
        covariance = "full" if latents[0].numel() <= MAX_FULL_DIMENSIONS else "diag"
        print(f"Fitting the prior: {count} Gaussians ({covariance} covariance) to {len(latents):,} latents", flush=True)
        prior = fit_mixture(latents, count, seed, covariance)
        print(f"Fitted in {time.perf_counter() - start:.1f} s", flush=True)
        return self._pipeline_with(pipeline.autoencoder, prior)

    @torch.no_grad()
    def latents(self, autoencoder: nn.Module, data: ImageData, seed: int) -> Tensor:
        """Return latents (N, d, h, w) of training images: samples of q(z | x) or, without q, the encoder's means."""
        generator, latents = generator_of("prior", seed), []
        for part in from_levels(sample(data, MAX_FITTED_IMAGES, seed)[0]).split(256):
            x = self.likelihood.prepare(part, lambda x: torch.rand(x.shape, generator=generator))
            q = autoencoder.encode(x.to(autoencoder.device)).latent_dist
            noise = torch.randn(q.mean.shape, generator=generator) if self.variational else torch.zeros(q.mean.shape)
            latents.append((q.mean + q.std * noise.to(q.mean)).float().cpu())
        return torch.cat(latents)

    def measure(
        self, pipeline: Any, fitted_pipeline: Any, images: Tensor, samples: int, seed: int
    ) -> list[Measurement]:
        measurements = []

        def add(measured_pipeline: Any, name: str, method: str, count: int, better: str) -> None:
            generator = generator_of("likelihood", seed)
            with bar_options(measured_pipeline, desc=name):
                values = getattr(measured_pipeline, method)(images, count, generator)
            measurements.append(mean_measurement(name, values, better))

        if self.variational:
            bound = f"log-likelihood, K = {samples}, nats"
            add(pipeline, "ELBO, nats", "elbo", ELBO_SAMPLES, "higher")
            add(pipeline, bound, "log_likelihood", samples, "higher")
            if fitted_pipeline is not pipeline:
                add(fitted_pipeline, f"fitted prior: {bound}", "log_likelihood", samples, "higher")
            if self.likelihood.levels == 256:
                add(pipeline, f"bits per dimension, K = {samples}", "bits_per_dim", samples, "lower")
        return [*measurements, *measure_reconstructions(fitted_pipeline, images)]

    def describe_prior(self, pipeline: Any) -> str:
        count, standard = pipeline.prior.config.num_components, "the standard normal" if self.variational else "none"
        return standard if count == 1 and not pipeline.prior.means.any() else f"a mixture of {count} Gaussians"

    def _pipeline_with(self, autoencoder: nn.Module, prior: nn.Module) -> Any:
        prior = prior.to(autoencoder.device)
        return hfgen.VAEPipeline(autoencoder, prior, **self.options, variational=self.variational)


class QuantizedRecipe(AutoencoderRecipe):
    """The recipe for latents that are grids of codes."""

    models, can_sample = ("vq", "vqmodel"), False

    def check(self) -> None:
        pass

    def player(self, data: ImageData) -> nn.Module:
        return self.autoencoder(data.resolution, data.channels)

    def objective(self, player: nn.Module) -> Any:
        return self.build_objective(self.likelihood, (1, 1, 1), self.objective_args)

    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        return hfgen.VQPipeline(networks["autoencoder"], **self.options)

    def with_fitted_prior(self, pipeline: Any, data: ImageData, seed: int) -> Any:
        return pipeline

    def measure(
        self, pipeline: Any, fitted_pipeline: Any, images: Tensor, samples: int, seed: int
    ) -> list[Measurement]:
        perplexity, num_codes = fitted_pipeline.perplexity(images), fitted_pipeline.num_codes
        return [
            *measure_reconstructions(fitted_pipeline, images),
            Measurement(f"codebook perplexity, of {num_codes}", perplexity, str(num_codes)),
        ]

    def describe_prior(self, pipeline: Any) -> str:
        return "none over codes"


def make_recipe(
    data_args: DataArgs,
    network_args: AutoencoderArgs,
    objective_args: CodingArgs,
    prior_args: PriorArgs,
    args: TrainArgs,
    objectives: Mapping[str, ObjectiveEntry] = OBJECTIVES,
) -> AutoencoderRecipe:
    """Return the recipe for these options.

    Args:
        data_args, network_args, objective_args, prior_args, args: the options.
        objectives: value of `--objective` -> entry.

    Raises:
        ValueError: options out of range, or that do not go together. No data are read before.
    """
    recipe = QuantizedRecipe if objective_args.objective == "vq" else ContinuousRecipe
    entry, network_args = objectives[objective_args.objective], default_choice(network_args, objective_args)
    return recipe(data_args, network_args, objective_args, prior_args, args.gradient_checkpointing, entry)

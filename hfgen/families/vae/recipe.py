"""The recipe of an autoencoder: network, objective, prior and pipeline that belong to one another."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import hfgen

from ...data.images import ImageData
from ...data.summary import sample
from ...distributions.likelihoods import build_likelihood
from ...metrics.measures import Measurement, mean_measurement
from ...models.autoencoder_with_prior import AutoencoderWithPrior, latent_shape
from ...models.priors import GaussianMixturePriorModel
from ...options import DataArgs, TrainArgs
from ...utils.pixels import from_levels
from ..fit_mixture import fit_mixture
from .evaluation import ELBO_SAMPLES, measure_reconstructions
from .options import AutoencoderArgs, CodingArgs, PriorArgs

MOST_FITTED = 20_000
"""Training images to whose latents a mixture is fitted, at most."""

FULL_COVARIANCE = 128
"""Dimensions of a latent up to which Gaussians have full covariance; beyond, diagonal."""


class ObjectiveEntry(NamedTuple):
    """An objective of autoencoders.

    Attributes:
        title: name of its models on a card.
        kind: the same in the card's text.
        make: (likelihood, shape (d, h, w) of latents, options) -> objective.
    """

    title: str
    kind: str
    make: Callable[[Any, tuple[int, int, int], Any], Any]


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
"""By the value of `--objective`."""


class AutoencoderRecipe(ABC):
    """Network, objective, prior and pipeline of an autoencoder.

    Attributes:
        models: architectures that the objective can train.
        draws: whether the pipeline draws images.
        likelihood: p(x | z).
        title, kind: names of the model.

    Args:
        data_args, network_args, objective_args, prior_args: the options.
        gradient_checkpointing: recompute activations in the backward pass.
        entry: of the objective.

    Raises:
        ValueError: options that do not go together, or out of range: before any data are read.
    """

    models: tuple[str, ...]
    draws: bool

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
        self.title, self.kind, self.make = entry
        if objective_args.beta != 1:
            self.title += f" (beta {objective_args.beta:g})"
        if network_args.model not in self.models:
            raise ValueError(
                f"--model {network_args.model} can't be trained by --objective {objective_args.objective}, which takes "
                f"{' or '.join(self.models)}."
            )
        self.check()
        self.make(self.likelihood, (1, 1, 1), objective_args)
        with torch.device("meta"):
            self.autoencoder(data_args.resolution or 32, data_args.channels or 1)

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError for options that this kind of autoencoder can't follow."""

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
            ValueError: images that the architecture can't take, or too few of them.
        """

    @abstractmethod
    def objective(self, player: nn.Module) -> Any:
        """Return the objective of this network, or of the autoencoder in it."""

    @abstractmethod
    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        """Return the pipeline of the networks, with the prior of the training."""

    @abstractmethod
    def with_fitted_prior(self, trained: Any, data: ImageData, seed: int) -> Any:
        """Return the pipeline to keep: `trained` itself, or one whose prior is fitted to the data."""

    @abstractmethod
    def measure(self, trained: Any, fitted: Any, images: Tensor, samples: int, seed: int) -> list[Measurement]:
        """Measure the pipeline of the training and the one with the fitted prior.

        Args:
            trained: of `pipeline`.
            fitted: of `with_fitted_prior`.
            images (N, C, H, W): held-out images in [-1, 1].
            samples: latents an image for the log-likelihood.
            seed: of the latents.
        """

    @abstractmethod
    def describe_prior(self, pipeline: Any) -> str:
        """Return the pipeline's prior as a text."""


class ContinuousRecipe(AutoencoderRecipe):
    """Latents are real numbers: z ~ q(z | x), or the encoder's mean."""

    models, draws = ("mlp", "conv", "kl"), True

    @property
    def variational(self) -> bool:
        """Return whether q(z | x) is trained, so that there are bounds on log p(x)."""
        return self.objective_args.objective in ("elbo", "iwae")

    def check(self) -> None:
        for name in ("mixture_components", "num_pseudo_inputs"):
            if (value := getattr(self.prior_args, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.objective_args.free_bits and self.prior_args.prior == "vamp":
            raise ValueError(
                f"--free_bits {self.objective_args.free_bits} needs KL in closed form, which --prior vamp has not."
            )

    def player(self, data: ImageData) -> AutoencoderWithPrior:
        autoencoder = self.autoencoder(data.resolution, data.channels)
        args, prior = self.prior_args, None
        if args.prior == "vamp":
            prior = hfgen.VampPriorModel(data.resolution, data.channels, args.num_pseudo_inputs)
            prior.start_from(from_levels(sample(data, args.num_pseudo_inputs)[0]))
        if args.prior == "mixture" and not data.streaming:
            size = GaussianMixturePriorModel(latent_shape(autoencoder), covariance="diag").means.numel()
            if min(len(data), MOST_FITTED) < max(args.mixture_components, size + 1):
                raise ValueError(
                    f"A mixture of {args.mixture_components} Gaussians in {size} dimensions can't be fitted to "
                    f"{len(data)} images. Lower --mixture_components and --latent_channels, or --prior standard_normal."
                )
        return AutoencoderWithPrior(autoencoder, prior)

    def objective(self, player: nn.Module) -> Any:
        autoencoder = getattr(player, "autoencoder", player)
        return self.make(self.likelihood, latent_shape(autoencoder), self.objective_args)

    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        player = networks["autoencoder"]
        if player.prior is not None:
            return self._with(player.autoencoder, player.prior.as_mixture(player.autoencoder.encode))
        normal = GaussianMixturePriorModel(latent_shape(player.autoencoder), covariance="diag")
        return self._with(player.autoencoder, normal)

    def with_fitted_prior(self, trained: Any, data: ImageData, seed: int) -> Any:
        if self.prior_args.prior != "mixture":
            return trained
        count = self.prior_args.mixture_components
        start, latents = time.perf_counter(), self.latents(trained.autoencoder, data, seed)
        covariance = "full" if latents[0].numel() <= FULL_COVARIANCE else "diag"
        print(f"Fitting the prior: {count} Gaussians ({covariance} covariance) to {len(latents):,} latents", flush=True)
        prior = fit_mixture(latents, count, seed, covariance)
        print(f"Fitted in {time.perf_counter() - start:.1f} s", flush=True)
        return self._with(trained.autoencoder, prior)

    @torch.no_grad()
    def latents(self, autoencoder: nn.Module, data: ImageData, seed: int) -> Tensor:
        """Return latents (N, d, h, w) of training images: samples of q(z | x), or the encoder's mean without q."""
        generator, latents = torch.Generator().manual_seed(seed), []
        for part in from_levels(sample(data, MOST_FITTED, seed)[0]).split(256):
            x = self.likelihood.prepare(part, lambda x: torch.rand(x.shape, generator=generator))
            q = autoencoder.encode(x.to(autoencoder.device)).latent_dist
            noise = torch.randn(q.mean.shape, generator=generator) if self.variational else torch.zeros(q.mean.shape)
            latents.append((q.mean + q.std * noise.to(q.mean)).float().cpu())
        return torch.cat(latents)

    def measure(self, trained: Any, fitted: Any, images: Tensor, samples: int, seed: int) -> list[Measurement]:
        measurements = []

        def add(pipeline: Any, name: str, method: str, count: int, better: str) -> None:
            pipeline.set_progress_bar_config(desc=name, disable=None)
            generator = torch.Generator().manual_seed(seed)
            values = getattr(pipeline, method)(images, count, generator)
            measurements.append(mean_measurement(name, values, better))

        if self.variational:
            bound = f"log-likelihood, K = {samples}, nats"
            add(trained, "ELBO, nats", "elbo", ELBO_SAMPLES, "higher")
            add(trained, bound, "log_likelihood", samples, "higher")
            if fitted is not trained:
                add(fitted, f"fitted prior: {bound}", "log_likelihood", samples, "higher")
            if self.likelihood.levels == 256:
                add(trained, f"bits per dimension, K = {samples}", "bits_per_dim", samples, "lower")
        return [*measurements, *measure_reconstructions(fitted, images)]

    def describe_prior(self, pipeline: Any) -> str:
        count, standard = pipeline.prior.config.num_components, "the standard normal" if self.variational else "none"
        return standard if count == 1 and not pipeline.prior.means.any() else f"a mixture of {count} Gaussians"

    def _with(self, autoencoder: nn.Module, prior: nn.Module) -> Any:
        prior = prior.to(autoencoder.device)
        return hfgen.VAEPipeline(autoencoder, prior, **self.options, variational=self.variational)


class QuantizedRecipe(AutoencoderRecipe):
    """Latents are grids of codes."""

    models, draws = ("vq", "vqmodel"), False

    def check(self) -> None:
        pass

    def player(self, data: ImageData) -> nn.Module:
        return self.autoencoder(data.resolution, data.channels)

    def objective(self, player: nn.Module) -> Any:
        return self.make(self.likelihood, (1, 1, 1), self.objective_args)

    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        return hfgen.VQPipeline(networks["autoencoder"], **self.options)

    def with_fitted_prior(self, trained: Any, data: ImageData, seed: int) -> Any:
        return trained

    def measure(self, trained: Any, fitted: Any, images: Tensor, samples: int, seed: int) -> list[Measurement]:
        perplexity = fitted.perplexity(images)
        return [
            *measure_reconstructions(fitted, images),
            Measurement(f"codebook perplexity, of {fitted.num_codes}", perplexity, str(fitted.num_codes)),
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
        objectives: by the value of `--objective`.

    Raises:
        ValueError: options out of range, or that do not go together: before any data are read.
    """
    kind = QuantizedRecipe if objective_args.objective == "vq" else ContinuousRecipe
    entry = objectives[objective_args.objective]
    return kind(data_args, network_args, objective_args, prior_args, args.gradient_checkpointing, entry)

"""From options to what `train_vae` trains and leaves: a network, objective, prior, pipeline and figures that belong to
one another."""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import hfgen

from ...data.images import ImageData, load_images
from ...data.summary import sample
from ...distributions.likelihoods import build_likelihood
from ...metrics import report
from ...metrics.measures import Measurement, mean_measurement
from ...models.autoencoder_with_prior import AutoencoderWithPrior, latent_shape
from ...models.priors import GaussianMixturePriorModel
from ...options import DataArgs, SampleArgs, TrainArgs
from ...utils.pixels import from_levels
from .. import preview as gallery
from ..fit_mixture import fit_mixture
from . import reconstruction
from .options import AutoencoderArgs, CodingArgs, HeldOutArgs, PriorArgs

FITTED = 20_000
"""Training images whose latents a mixture is fitted to, at most."""

FULL_COVARIANCE = 128
"""Latents of up to so many dimensions get Gaussians of full covariance, larger ones of diagonal."""

ELBO_SAMPLES = 10
"""Latents an image for the ELBO of held-out images, which their number does not change in expectation."""


class Row(NamedTuple):
    """What its models are called on a card, and in its text, and what makes the objective of a likelihood, the shape
    (d, h, w) of latents and the options."""

    title: str
    kind: str
    make: Callable[[Any, tuple[int, int, int], Any], Any]


ROWS = {
    "elbo": Row(
        "VAE",
        "variational autoencoder",
        lambda likelihood, shape, args: hfgen.ELBO(
            likelihood, shape, args.beta, args.beta_warmup_steps, args.free_bits
        ),
    ),
    "iwae": Row(
        "IWAE",
        "importance-weighted autoencoder",
        lambda likelihood, shape, args: hfgen.IWAE(likelihood, shape, args.num_importance_samples),
    ),
    "ae": Row("Autoencoder", "autoencoder", lambda likelihood, shape, args: hfgen.Reconstruction(likelihood)),
    "dae": Row(
        "Denoising autoencoder",
        "denoising autoencoder",
        lambda likelihood, shape, args: hfgen.Reconstruction(likelihood, args.corruption, args.corruption_strength),
    ),
    "vq": Row(
        "VQ-VAE",
        "vector-quantised autoencoder",
        lambda likelihood, shape, args: hfgen.VectorQuantized(likelihood, args.commitment),
    ),
}
"""By objective."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Images (N, C, H, W) in [-1, 1] to measure, and where they come from."""

    images: Tensor
    data: str
    split: str


class Design(ABC):
    """What the options ask for. `models` are the architectures that it can be made of; `draws` says whether its
    pipeline draws images.

    Raises:
        ValueError: options that do not go together, or out of range: before any data are read.
    """

    models: tuple[str, ...]
    draws: bool

    def __init__(
        self,
        data_args: DataArgs,
        network_args: AutoencoderArgs,
        bound_args: CodingArgs,
        prior_args: PriorArgs,
        gradient_checkpointing: bool,
        row: Row,
    ):
        self.network_args, self.bound_args, self.prior_args = network_args, bound_args, prior_args
        self.gradient_checkpointing = gradient_checkpointing
        likelihood = network_args.likelihood, network_args.likelihood_sigma, network_args.likelihood_components
        self.likelihood = build_likelihood(*likelihood)
        self.options = dict(zip(("likelihood", "likelihood_sigma", "likelihood_components"), likelihood, strict=True))
        self.title, self.kind, self.make = row
        if bound_args.beta != 1:
            self.title += f" (beta {bound_args.beta:g})"
        if network_args.model not in self.models:
            raise ValueError(
                f"--model {network_args.model} can't be trained by --objective {bound_args.objective}, which takes "
                f"{' or '.join(self.models)}."
            )
        self.check()
        self.make(self.likelihood, (1, 1, 1), bound_args)
        with torch.device("meta"):
            self.autoencoder(data_args.resolution or 32, data_args.channels or 1)

    @abstractmethod
    def check(self) -> None:
        """Refuse what only this kind of autoencoder can't do. Raises ValueError."""

    def autoencoder(self, resolution: Any, channels: int) -> nn.Module:
        """The network without a prior, for images of this shape."""
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
    def player(self, autoencoder: nn.Module, data: ImageData) -> nn.Module:
        """What is trained around the autoencoder. Raises ValueError where the data are too few for what follows."""

    @abstractmethod
    def objective(self, autoencoder: nn.Module) -> Any:
        """What it is trained for."""

    @abstractmethod
    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        """The pipeline of what is being trained, under the prior that it is trained under."""

    @abstractmethod
    def finished(self, trained: Any, data: ImageData, seed: int) -> Any:
        """The pipeline to keep, which is `trained` itself or has a prior fitted to the data."""

    @abstractmethod
    def figures(self, trained: Any, kept: Any, held_out: HeldOut, samples: int, seed: int) -> list[Measurement]:
        """What is measured of `pipeline` and `finished` on held-out images."""

    @abstractmethod
    def prior_of(self, pipeline: Any) -> str:
        """The pipeline's prior in words."""


class ContinuousRecipe(Design):
    """Latents are vectors: z ~ q(z | x), or the encoder's mean."""

    models, draws = ("mlp", "conv", "kl"), True

    @property
    def variational(self) -> bool:
        """Whether there is a q(z | x) that was trained, and so bounds on log p(x)."""
        return self.bound_args.objective in ("elbo", "iwae")

    def check(self) -> None:
        for name in ("mixture_components", "num_pseudo_inputs"):
            if (value := getattr(self.prior_args, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.bound_args.free_bits and self.prior_args.prior == "vamp":
            raise ValueError(
                f"--free_bits {self.bound_args.free_bits} needs KL in closed form, which --prior vamp has not."
            )

    def player(self, autoencoder: nn.Module, data: ImageData) -> AutoencoderWithPrior:
        args, prior = self.prior_args, None
        if args.prior == "vamp":
            prior = hfgen.VampPriorModel(data.resolution, data.channels, args.num_pseudo_inputs)
            prior.start_from(from_levels(sample(data, args.num_pseudo_inputs)[0]))
        if args.prior == "mixture" and not data.streaming:
            size = GaussianMixturePriorModel(latent_shape(autoencoder), covariance="diag").means.numel()
            if min(len(data), FITTED) < max(args.mixture_components, size + 1):
                raise ValueError(
                    f"A mixture of {args.mixture_components} Gaussians in {size} dimensions can't be fitted to "
                    f"{len(data)} images. Lower --mixture_components and --latent_channels, or --prior standard_normal."
                )
        return AutoencoderWithPrior(autoencoder, prior)

    def objective(self, autoencoder: nn.Module) -> Any:
        return self.make(self.likelihood, latent_shape(autoencoder), self.bound_args)

    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        player = networks["autoencoder"]
        if player.prior is not None:
            return self._with(player.autoencoder, player.prior.as_mixture(player.autoencoder.encode))
        normal = GaussianMixturePriorModel(latent_shape(player.autoencoder), covariance="diag")
        return self._with(player.autoencoder, normal)

    def finished(self, trained: Any, data: ImageData, seed: int) -> Any:
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
        """Latents (N, d, h, w) of training images, a sample of q(z | x) each, or the mean where there is no q."""
        generator, found = torch.Generator().manual_seed(seed), []
        for part in from_levels(sample(data, FITTED, seed)[0]).split(256):
            seen = self.likelihood.prepare(part, lambda x: torch.rand(x.shape, generator=generator))
            q = autoencoder.encode(seen.to(autoencoder.device)).latent_dist
            noise = torch.randn(q.mean.shape, generator=generator) if self.variational else torch.zeros(q.mean.shape)
            found.append((q.mean + q.std * noise.to(q.mean)).float().cpu())
        return torch.cat(found)

    def figures(self, trained: Any, kept: Any, held_out: HeldOut, samples: int, seed: int) -> list[Measurement]:
        images, found = held_out.images, []

        def measured(pipeline: Any, name: str, method: str, count: int, better: str) -> Measurement:
            pipeline.set_progress_bar_config(desc=name, disable=None)
            generator = torch.Generator().manual_seed(seed)
            return mean_measurement(name, getattr(pipeline, method)(images, count, generator), better)

        if self.variational:
            bound = f"log-likelihood, K = {samples}, nats"
            found.append(measured(trained, "ELBO, nats", "elbo", ELBO_SAMPLES, "higher"))
            found.append(measured(trained, bound, "log_likelihood", samples, "higher"))
            if kept is not trained:
                found.append(measured(kept, f"fitted prior: {bound}", "log_likelihood", samples, "higher"))
            if self.likelihood.levels == 256:
                bits = f"bits per dimension, K = {samples}"
                found.append(measured(trained, bits, "bits_per_dim", samples, "lower"))
        return [*found, *reconstruction.figures(kept, images)]

    def prior_of(self, pipeline: Any) -> str:
        count, standard = pipeline.prior.config.num_components, "the standard normal" if self.variational else "none"
        return standard if count == 1 and not pipeline.prior.means.any() else f"a mixture of {count} Gaussians"

    def _with(self, autoencoder: nn.Module, prior: nn.Module) -> Any:
        prior = prior.to(autoencoder.device)
        return hfgen.VAEPipeline(autoencoder, prior, **self.options, variational=self.variational)


class QuantizedRecipe(Design):
    """Latents are grids of codes."""

    models, draws = ("vq", "vqmodel"), False

    def check(self) -> None:
        pass

    def player(self, autoencoder: nn.Module, data: ImageData) -> nn.Module:
        return autoencoder

    def objective(self, autoencoder: nn.Module) -> Any:
        return self.make(self.likelihood, (1, 1, 1), self.bound_args)

    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        return hfgen.VQPipeline(networks["autoencoder"], **self.options)

    def finished(self, trained: Any, data: ImageData, seed: int) -> Any:
        return trained

    def figures(self, trained: Any, kept: Any, held_out: HeldOut, samples: int, seed: int) -> list[Measurement]:
        used = kept.perplexity(held_out.images)
        return [
            *reconstruction.figures(kept, held_out.images),
            Measurement(f"codebook perplexity, of {kept.num_codes}", used, str(kept.num_codes)),
        ]

    def prior_of(self, pipeline: Any) -> str:
        return "none over codes"


def design(
    data_args: DataArgs,
    network_args: AutoencoderArgs,
    bound_args: CodingArgs,
    prior_args: PriorArgs,
    held_args: HeldOutArgs,
    sample_args: SampleArgs,
    args: TrainArgs,
    rows: Mapping[str, Row] = ROWS,
) -> Design:
    """What the options of a run ask for, by which rows.

    Raises:
        ValueError: options out of range, or that do not go together: before any data are read.
    """
    gallery.check(sample_args)
    if held_args.eval_images < 2 or held_args.likelihood_samples < 1:
        raise ValueError(
            f"eval_images={held_args.eval_images} must be at least 2, and likelihood_samples="
            f"{held_args.likelihood_samples} at least 1."
        )
    kind = QuantizedRecipe if bound_args.objective == "vq" else ContinuousRecipe
    row = rows[bound_args.objective]
    return kind(data_args, network_args, bound_args, prior_args, args.gradient_checkpointing, row)


def held_out(data_args: DataArgs, args: HeldOutArgs, data: ImageData, accelerator: Accelerator) -> HeldOut:
    """The images to measure after training. Where no split is named and there is no test split, training images are
    taken, and it is said.

    Raises:
        ValueError: no such split, or images of another shape.
    """
    with accelerator.main_process_first():
        part, split, why = _part(data_args, args.eval_split, data)
    if why is not None:
        accelerator.print(f"{why} Figures after training will be of training images.")
    if (part.channels, part.size) != (data.channels, data.size):
        raise ValueError(f"The images of split {split!r} have another shape than those of {data_args.dataset_split!r}.")
    return HeldOut(from_levels(sample(part, args.eval_images)[0]), data.name, split)


def _part(data_args: DataArgs, split: str | None, data: ImageData) -> tuple[ImageData, str, str | None]:
    """The images of a split (None: test), what it is called, and why it is the training images if it is."""
    asked = dataclasses.replace(data_args, dataset_split=split or "test", max_train_samples=None)
    try:
        return load_images(asked), asked.dataset_split, None
    except ValueError as error:
        if split is not None:
            raise
        return data, f"{data_args.dataset_split}, which was trained on", str(error).splitlines()[0]


def evaluated(design: Design, trained: Any, kept: Any, held_out: HeldOut, samples: int, seed: int) -> list[dict]:
    """Figures of held-out images with their protocol, printed."""
    print(f"Measuring {len(held_out.images):,} images of {held_out.data}, {held_out.split}", flush=True)
    figures = design.figures(trained, kept, held_out, samples, seed)
    print(report.table(figures))
    protocol = {
        "data": held_out.data,
        "split": held_out.split,
        "real images": len(held_out.images),
        "likelihood": design.options["likelihood"],
        "pixels": "made binary, anew" if design.likelihood.levels == 2 else "of 256 levels",
        "prior": design.prior_of(trained),
        **({} if kept is trained else {"fitted prior": design.prior_of(kept)}),
        "seed": seed,
    }
    return report.entries(figures, protocol)

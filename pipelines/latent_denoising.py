"""Denoising inside an autoencoder: latent diffusion, latent rectified flow and latent flow maps."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from hfgen.distributions.bounds import log_ratio
from hfgen.distributions.latents import coded
from hfgen.distributions.likelihoods import build_likelihood
from hfgen.utils.arguments import checked

from .base import HFGenPipeline
from .denoiser import DenoiserMixin
from .images import image_batch
from .inputs import Generators, check_count, check_latents, check_levels, check_network, noise_of, uniform_of
from .latents import DecoderMixin, NormalisedLatentsMixin
from .outputs import require_numbers

NO_BOUND = "no bound on log p(x) holds for this pipeline: "


class LatentPipeline(DenoiserMixin, NormalisedLatentsMixin, DecoderMixin, HFGenPipeline):
    """From noise to latents along a path, and from latents to images by a decoder (Rombach et al. 2022,
    https://arxiv.org/abs/2112.10752): a `DenoisingPipeline` of normalised latents, of mean 0 and deviation 1 on the
    scale that the configuration of the autoencoder states, see `hfgen.distributions.latents`.

    Calls, schedulers, guidance and inversion are those of `DenoisingPipeline`. Noise, trajectories, guides and
    `output_type="latent"` have the shape of latents. `encode` and `decode` are those of the autoencoder, and lead to
    normalised latents and back; `invert` leads on to noise, which `pipeline(latents=noise)` draws from.

    Args:
        denoiser, scheduler, num_classes, label_names, variance_head: see `DenoisingPipeline`; the denoiser is one of
            latents (d, h, w).
        vae: called as diffusers' `AutoencoderKL`, or as a `VQModel`, whose decoder quantises latents first.
        likelihood, likelihood_sigma, likelihood_components: p(x | z), see `hfgen.distributions.likelihoods`. None: the
            decoder's output is the image, and no likelihood is known.
        variational: whether q(z | x) was trained; without it no bound on log p(x) holds.
        sample_size: [H, W] of the images; None: that of the autoencoder's configuration.

    Raises:
        ValueError: an autoencoder without a scale, a denoiser of other latents, or an unknown likelihood.
    """

    model_cpu_offload_seq = "denoiser->variance_head->vae"

    @checked
    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        vae: ModelMixin,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
        variance_head: ModelMixin | None = None,
        likelihood: str | None = None,
        likelihood_sigma: float = 0.1,
        likelihood_components: int = 5,
        variational: bool = True,
        sample_size: list[int] | None = None,
    ):
        super().__init__()
        self._register(denoiser, scheduler, num_classes, label_names, variance_head)
        check_network("vae", vae, ("encode", "decode", "config"), "an AutoencoderKL, or an autoencoder of hfgen")
        build_likelihood(likelihood or "gaussian", likelihood_sigma, likelihood_components)  # refuses an unknown one
        self._check_scale(vae, "denoiser", self.item_shape[0])
        self.register_modules(vae=vae)
        self.register_to_config(
            likelihood=likelihood,
            likelihood_sigma=likelihood_sigma,
            likelihood_components=likelihood_components,
            variational=variational,
            sample_size=sample_size,
        )

    @property
    def autoencoder(self) -> ModelMixin:
        """Return the autoencoder."""
        return self.vae

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of an image."""
        return self._image_shape()

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Return (d, h, w) of a latent."""
        return self.item_shape

    @checked
    def encode(self, images: Any) -> Tensor:
        """Return the normalised latents (B, d, h, w) of images, see `image_batch`: the mean of q(z | x).

        Raises:
            ValueError: images that do not fit the model.
        """
        return self.to_items(self._batch(images))

    @checked
    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] of normalised latents (B, d, h, w): the mean of p(x | z).

        Raises:
            ValueError: latents of another shape or not finite.
        """
        check_latents(latents, self.latent_shape)
        return self.to_samples(latents)

    @checked
    def reconstruct(self, images: Any) -> Tensor:
        """Return decode(encode(images)), (B, C, H, W): what the autoencoder keeps of images.

        Raises:
            ValueError: images that do not fit the model.
        """
        return self.decode(self.encode(images))

    @checked
    def to_items(self, samples: Tensor) -> Tensor:
        """Return the normalised latents of images (B, C, H, W), without the checks of `encode`."""
        return self.latent_scale.normalise(self._moments(samples)[0])

    @checked
    def to_samples(self, items: Tensor) -> Tensor:
        """Return the images of normalised latents (B, d, h, w), without the checks of `decode`."""
        latents = self.latent_scale.restore(items.float()).to(self.vae.dtype)
        return self._decoded(latents, lambda z: self.vae.decode(z).sample)

    @checked
    @torch.no_grad()
    def log_likelihood(
        self,
        x: Any,
        class_labels: Any = None,
        num_inference_steps: int = 20,
        num_probes: int = 1,
        trace: Literal["auto", "exact", "hutchinson"] = "auto",
        generator: Generators = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Return a lower bound on log p(x), or on log p(x | class), in nats, (B,) float64, from one draw of q(z | x):

            log p(x) >= E_q [log p(x | z) + log p(z) - log q(z | x)],

        where the probability-flow ODE gives log p(z). The autoencoder's part is a bound however exact the ODE is.

        Args:
            x: images, see `image_batch`.
            class_labels, num_inference_steps, num_probes, trace, generator, batch_size: see `DenoisingPipeline`.

        Raises:
            ValueError: the autoencoder states no p(x | z) or no q(z | x), and as `DenoisingPipeline.log_likelihood`.
        """
        call = class_labels, num_inference_steps, num_probes, trace, generator, batch_size
        return self._elbo("log_prob", image_batch(x, self.sample_shape, "x"), *call)

    @checked
    @torch.no_grad()
    def bits_per_dim(
        self,
        images: Any,
        class_labels: Any = None,
        num_inference_steps: int = 20,
        num_probes: int = 1,
        trace: Literal["auto", "exact", "hutchinson"] = "auto",
        generator: Generators = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Return an upper bound on the bits per dimension of 8-bit images, (B,) float64; see `log_likelihood`, with the
        mass of the 256 levels under p(x | z). Two gaps belong to it: that of the autoencoder's q(z | x), and that of
        the flow of latents.

        Args:
            images: 8-bit images, see `image_batch`; floats are k / 127.5 - 1.
            class_labels, num_inference_steps, num_probes, trace, generator, batch_size: see `DenoisingPipeline`.

        Raises:
            ValueError: images that are not on the 256 levels, and as `log_likelihood`.
        """
        images = image_batch(images, self.sample_shape)
        check_levels(images)
        call = class_labels, num_inference_steps, num_probes, trace, generator, batch_size
        return -self._elbo("log_mass", images, *call) / (images[0].numel() * math.log(2))

    @checked
    def variational_bound(
        self,
        images: Any,
        class_labels: Any = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Raise ValueError: the chain's last step is a decoder of 8-bit pixels, and latents have none."""
        raise ValueError("variational_bound is one of pixels, and this pipeline denoises latents. Use bits_per_dim.")

    def _elbo(
        self,
        method: str,
        x: Tensor,
        class_labels: Any,
        steps: int,
        num_probes: int,
        trace: str,
        generator: Generators,
        batch_size: int,
    ) -> Tensor:
        """Return log p(x | z) + log p(z) - log q(z | x) for a draw z of q(z | x), (B,) in nats; `method` of the
        likelihood gives the first."""
        for count, name in ((steps, "num_inference_steps"), (batch_size, "batch_size")):
            check_count(name, count)
        if self.config.likelihood is None:
            raise ValueError(f"{NO_BOUND}its autoencoder states no p(x | z). Give the pipeline a likelihood.")
        if not self.config.variational:
            raise ValueError(
                f"{NO_BOUND}its autoencoder was trained without q(z | x). Train one with --objective elbo."
            )
        _, kwargs = self._kwargs(len(x), class_labels, 1.0)
        device = self._execution_device
        x = self.likelihood.prepare(x.to(device), lambda like: uniform_of(like.shape, generator, device))
        mean, deviation = (part.to(device) for part in self._moments(x))
        if not bool((deviation > 0).all()):
            raise ValueError(f"{NO_BOUND}its autoencoder has no q(z | x), only codes.")
        z = mean + deviation * noise_of(mean.shape, None, generator, device)
        scale = self.latent_scale
        log_prior = self._ode(scale.normalise(z), kwargs, False, steps, num_probes, trace, generator, batch_size)
        log_prior = log_prior - scale.log_volume(self.latent_shape)
        log_x = self._log_given(getattr(self.likelihood, method), x, z, batch_size)
        rest = log_ratio(z[:, None], mean, 2 * deviation.log(), log_prior[:, None])[:, 0]
        return require_numbers(log_x + rest, "bounds", self.components)

    def _log_given(self, log_prob: Callable[[Tensor, Tensor], Tensor], x: Tensor, z: Tensor, batch_size: int) -> Tensor:
        """Return log p(x | z), (B,), for images (B, C, H, W) and latents (B, d, h, w)."""
        parts = zip(x.split(batch_size), z.to(self.vae.dtype).split(batch_size), strict=True)
        return torch.cat([log_prob(self.vae.decode(part).sample, images).to(self._real) for images, part in parts])

    @torch.no_grad()
    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (B, d, h, w) of q(z | x) for images x (B, C, H, W)."""

        def both(part: Tensor) -> Tensor:
            return torch.cat(coded(self.vae, part, self.config.variational), 1)

        mean, deviation = self._encoded(x, both).chunk(2, 1)
        return mean, deviation

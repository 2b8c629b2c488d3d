"""Sampling from an autoencoder through a prior of its latents, and likelihoods of images by sampling latents."""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from hfgen.distributions.bounds import log_mean_exp, log_ratio
from hfgen.distributions.likelihoods import build_likelihood
from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior
from hfgen.utils.arguments import checked

from .base import HFGenPipeline, PipelineOutput
from .inputs import (
    Generators,
    check_count,
    check_generators,
    check_levels,
    check_network,
    check_number,
    count_of,
    noise_of,
    uniform_of,
)
from .latents import AutoencoderMixin
from .outputs import require_finite, require_numbers, require_sound

CHUNK = 50
"""Most latents of one image that are drawn and decoded in one pass."""


class VAEPipeline(AutoencoderMixin, HFGenPipeline):
    """From latents to images in one pass: z ~ p(z), x = E[x | z] (Kingma & Welling 2014,
    https://arxiv.org/abs/1312.6114).

    Likelihoods are bounds on log p(x). With z_k from q(z | x) and w_k = p(x | z_k) p(z_k) / q(z_k | x), whose mean is
    p(x), see `hfgen.distributions.bounds`:

        E log w_1 = ELBO <= E log 1/K sum_k w_k <= log p(x)    (Burda et al. 2016, https://arxiv.org/abs/1509.00519)

    and the middle one rises to log p(x) with K. Under `bernoulli` x is a binary image, drawn from the grey one with
    numbers of the generator, see `hfgen.distributions.likelihoods`.

    Args:
        autoencoder: a network called as diffusers' `AutoencoderKL`, whose decoder gives the parameters of p(x | z).
        prior: p(z): called as prior(z, encode) for log p(z), sampled by prior.sample; `GaussianMixturePriorModel`,
            which is the standard normal by default.
        likelihood, likelihood_sigma, likelihood_components: p(x | z), see `hfgen.distributions.likelihoods`.
        variational: whether q(z | x) was trained, so that bounds on log p(x) hold; False for a plain autoencoder.

    Raises:
        ValueError: an unknown likelihood.
    """

    model_cpu_offload_seq = "autoencoder"

    @checked
    def __init__(
        self,
        autoencoder: ModelMixin,
        prior: ModelMixin,
        likelihood: str = "bernoulli",
        likelihood_sigma: float = 0.1,
        likelihood_components: int = 5,
        variational: bool = True,
    ):
        super().__init__()
        build_likelihood(likelihood, likelihood_sigma, likelihood_components)  # refuses an unknown one
        _check_latents_of(autoencoder, prior)
        self.register_modules(autoencoder=autoencoder, prior=prior)
        self.register_to_config(
            likelihood=likelihood,
            likelihood_sigma=likelihood_sigma,
            likelihood_components=likelihood_components,
            variational=variational,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (d, h, w) of a latent."""
        return tuple(self.prior.config.latent_shape)

    @checked
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        temperature: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: number of images; default 1, or as many as there are latents.
            num_inference_steps: None or 1: it is one pass.
            generator: one, or one for each image; with a list, an image is the same alone and in any batch.
            latents: z (B, d, h, w) in place of samples of the prior; `encode` gives those of images.
            temperature: spread of the prior's components: 1 is p(z), below 1 images are more typical and less diverse.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` in [-1, 1].
            return_dict: return a `PipelineOutput`, else a tuple of the images.

        Raises:
            ValueError: more than one step, a number out of range, or latents of another shape or not finite.
        """
        if num_inference_steps not in (None, 1):
            raise ValueError(f"{num_inference_steps=}: a VAEPipeline draws in one pass. Leave the steps out.")
        check_number("temperature", temperature, 0)
        batch_size = count_of(batch_size, latents)
        batch_size = 1 if batch_size is None else batch_size
        check_count("batch_size", batch_size)
        check_generators(generator, batch_size)
        device = self._execution_device
        if latents is None:
            require_sound(self.prior, "prior")
            z = self.prior.sample(batch_size, generator, device, temperature)
            require_finite(z, "prior's latents", {"prior": self.prior})
        else:
            z = noise_of((batch_size, *self.latent_shape), latents, None, device)
        images = self.to_images(self.decode(z), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

    @checked
    def elbo(self, images: Any, num_samples: int = 10, generator: Generators = None, batch_size: int = 800) -> Tensor:
        """Return the evidence lower bound in nats, (B,) float64: the mean of log w over K samples.

        Arguments and errors are those of `log_likelihood`.
        """
        draws = self._batch(images), num_samples, generator, batch_size
        return self._bound(self.likelihood.log_prob, lambda w: w.mean(1), *draws)

    @checked
    def log_likelihood(
        self, images: Any, num_samples: int = 100, generator: Generators = None, batch_size: int = 800
    ) -> Tensor:
        """Estimate log p(x) in nats, (B,) float64, by importance sampling with K samples.

        In expectation it is a lower bound, the tighter the more samples: report K with it. For a `gaussian` p is a
        density in units of [-1, 1].

        Args:
            images: see `image_batch`.
            num_samples: K.
            generator: one, or one for each image; with a list, an image's value is the same alone and in any batch.
            batch_size: latents decoded in one pass.

        Raises:
            ValueError: images that do not fit the model, a number out of range, or a model trained without q(z | x).
        """
        draws = self._batch(images), num_samples, generator, batch_size
        return self._bound(self.likelihood.log_prob, log_mean_exp, *draws)

    @checked
    def bits_per_dim(
        self, images: Any, num_samples: int = 100, generator: Generators = None, batch_size: int = 800
    ) -> Tensor:
        """Estimate the bits per dimension of 8-bit images, (B,) float64: -log2 P(x) / d, P the mass of the levels.

        It uses importance sampling with K samples and is an upper bound in expectation. Below 8 is better than
        guessing.

        Args:
            images: 8-bit images, see `image_batch`; floats are k / 127.5 - 1.
            num_samples, generator, batch_size: see `log_likelihood`.

        Raises:
            ValueError: the likelihood is of binary pixels, images are not on the 256 levels, and as `log_likelihood`.
        """
        images = self._batch(images)
        check_levels(images)
        mass = self.likelihood.log_mass
        nats = self._bound(mass, log_mean_exp, images, num_samples, generator, batch_size)
        return -nats / (images[0].numel() * math.log(2))

    @torch.no_grad()
    def _bound(
        self,
        log_prob: Callable[[Tensor, Tensor, int], Tensor],
        reduce: Callable[[Tensor], Tensor],
        images: Tensor,
        num_samples: int,
        generator: Generators,
        batch_size: int,
    ) -> Tensor:
        """Return reduce(log w (B, K)), (B,), where log_prob(params, x, batch_ndim) gives log p(x | z)."""
        check_count("num_samples", num_samples)
        check_count("batch_size", batch_size)
        if not self.config.variational:
            raise ValueError(
                "This autoencoder was trained without q(z | x), so no bound on log p(x) holds for it. Train with "
                "--objective elbo or iwae."
            )
        device = self._execution_device
        data = self.likelihood.prepare(images.to(device), lambda x: uniform_of(x.shape, generator, device))
        size, values = max(1, batch_size // min(num_samples, CHUNK)), []
        for start in self.progress_bar(range(0, len(data), size)):
            x = data[start : start + size]
            generators = generator[start : start + size] if isinstance(generator, list) else generator
            counts = [min(CHUNK, num_samples - done) for done in range(0, num_samples, CHUNK)]
            weights = torch.cat([self._log_weights(log_prob, x, count, generators) for count in counts], 1)  # (b, K)
            values.append(reduce(weights.to(self._real)))
        self.maybe_free_model_hooks()
        return require_numbers(torch.cat(values), "bounds", self.components)

    def _log_weights(
        self, log_prob: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, count: int, generator: Generators
    ) -> Tensor:
        """Return log w of `count` latents for each of the images x (b, C, H, W): (b, count)."""
        dtype, shape = self.autoencoder.dtype, (len(x), count, *self.latent_shape)
        noise = noise_of(shape, None, generator, self._execution_device)
        coded = AutoencoderWithPrior(self.autoencoder, self.prior)(x.to(dtype), noise.to(dtype))
        ratio = log_ratio(coded.latents, coded.mean, coded.log_variance, coded.log_prior)
        return log_prob(coded.decoded, x.unsqueeze(1), 2) + ratio


def _check_latents_of(autoencoder: Any, prior: Any) -> None:
    """Raise ValueError for an autoencoder with codes, or a prior of latents that are none of the autoencoder's."""
    if "num_vq_embeddings" in autoencoder.config:
        raise ValueError(f"autoencoder ({type(autoencoder).__name__}) has codes and no q(z | x). Give a VQPipeline.")
    check_network("prior", prior, ("config.latent_shape",), "a GaussianMixturePriorModel or a FlowPriorModel")
    channels, shape = autoencoder.config.get("latent_channels"), tuple(prior.config.latent_shape)
    if channels is not None and channels != shape[0]:
        raise ValueError(f"The prior is one of latents {shape}, and the autoencoder's have {channels} channels.")

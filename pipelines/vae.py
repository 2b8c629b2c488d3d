"""Sampling from an autoencoder through a prior of its latents, and all that its latents are good for."""

from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from hfgen.distributions.likelihoods import build_likelihood

from .base import HFGenPipeline, PipelineOutput
from .bound import BoundMixin
from .coding import AutoencoderMixin
from .inputs import noise_of


class VAEPipeline(BoundMixin, AutoencoderMixin, HFGenPipeline):
    """From latents to images in one pass: z ~ p(z), x = E[x | z] (Kingma & Welling 2014,
    https://arxiv.org/abs/1312.6114).

    Args:
        autoencoder: a network called as diffusers' `AutoencoderKL`, whose decoder gives the parameters of p(x | z).
        prior: p(z): called as prior(z, encode) for log p(z), sampled by prior.sample; `GaussianMixturePriorModel`,
            which is the standard normal by default.
        likelihood, likelihood_sigma, likelihood_components: p(x | z), see `hfgen.distributions.likelihoods`.
        variational: whether q(z | x) was trained, so that bounds on log p(x) hold; False for a plain autoencoder.
    """

    model_cpu_offload_seq = "autoencoder"

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
        build_likelihood(likelihood, likelihood_sigma, likelihood_components)  # refuses what there is not
        self.register_modules(autoencoder=autoencoder, prior=prior)
        self.register_to_config(
            likelihood=likelihood,
            likelihood_sigma=likelihood_sigma,
            likelihood_components=likelihood_components,
            variational=variational,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(d, h, w) of a latent."""
        return tuple(self.prior.config.latent_shape)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        temperature: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: how many; default 1, or as many as there are latents.
            num_inference_steps: None or 1: it is one pass.
            generator: one, or one an image; with a list, an image is the same alone and in any batch.
            latents: z (B, d, h, w) in place of the prior's; for numbers and directions among them see `encode`.
            temperature: spread of the prior's components: 1 is p(z), below 1 images are more typical and less diverse.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` in [-1, 1].
            return_dict: `PipelineOutput`, or a tuple of the images.

        Raises:
            ValueError: more than one step, a number out of range, or latents of another shape.
        """
        if num_inference_steps not in (None, 1):
            raise ValueError(f"{num_inference_steps=}: a VAEPipeline draws in one pass. Leave the steps out.")
        if temperature < 0:
            raise ValueError(f"{temperature=} must not be negative.")
        if batch_size is None:
            batch_size = 1 if latents is None else len(latents)
        if batch_size < 1:
            raise ValueError(f"{batch_size=} must be at least 1.")
        device = self._execution_device
        if latents is None:
            z = self.prior.sample(batch_size, generator, device, temperature)
        else:
            z = noise_of((batch_size, *self.latent_shape), latents, None, device)
        images = self.to_images(self.decode(z), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

"""Priors: distributions of latents (B, d, h, w). They are mixtures of Gaussians, fitted or made of posteriors.

All priors are called as `prior(z, encode)`, which returns log p(z). `encode` is the autoencoder's method; priors that
are made of the encoder's posteriors need it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..utils.arguments import checked
from .layers import pair

Encode = Callable[[Tensor], Any]
"""A function from images to an output with `latent_dist`, such as AutoencoderKL.encode."""


def check_latents(z: Tensor, latent_shape: Sequence[int]) -> None:
    """Raise ValueError unless the latents (B, ...) have this shape."""
    if tuple(z.shape[1:]) != tuple(latent_shape):
        shape = ", ".join(map(str, latent_shape))
        raise ValueError(f"latents have shape {tuple(z.shape)}; this prior takes (B, {shape}).")


class GaussianMixturePriorModel(ModelMixin, ConfigMixin):
    """p(z) = sum_m w_m N(z; mu_m, L_m L_m^T) over latents of D = d h w dimensions.

    A new prior is the standard normal. Weights, means and scales are buffers: they are fitted
    (`hfgen.families.fit_mixture.fit_mixture`), not trained.

    Args:
        latent_shape: the shape of a latent, (d, h, w) or any other.
        num_components: M.
        covariance: `full`: L_m is lower triangular (D, D); `diag`: L_m is a diagonal (D,).

    Raises:
        ValueError: a number or a choice out of range.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        latent_shape: tuple[int, ...],
        num_components: int = 1,
        covariance: Literal["full", "diag"] = "full",
    ):
        super().__init__()
        if num_components < 1 or covariance not in ("full", "diag"):
            raise ValueError(f"{num_components=} must be at least 1, and {covariance=} full or diag.")
        dimensions = math.prod(latent_shape)
        spread = torch.eye(dimensions) if covariance == "full" else torch.ones(dimensions)
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components))  # (M,)
        self.register_buffer("means", torch.zeros(num_components, dimensions))  # (M, D)
        self.register_buffer("scale_tril", spread.repeat(num_components, *[1] * spread.ndim))  # (M, D, D) or (M, D)

    def forward(self, z: Tensor, encode: Encode | None = None) -> Tensor:
        """Compute `log_prob`. The encoder is not used."""
        return self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Compute log p(z) in nats, (B,), for latents (B, d, h, w).

        Raises:
            ValueError: latents of another shape.
        """
        check_latents(z, self.config.latent_shape)
        weights, means, scale = self._upcast_buffers()
        z = z.flatten(1).to(means)  # (B, D)
        if self.config.covariance == "diag":
            return diagonal_mixture_log_prob(z, weights.log(), means, scale.log())
        deviation = (z - means.unsqueeze(1)).mT  # (M, D, B)
        whitened = torch.linalg.solve_triangular(scale, deviation, upper=False)
        log_volume = scale.diagonal(dim1=1, dim2=2).log().sum(1) + means.shape[1] * math.log(2 * math.pi) / 2  # (M,)
        return ((weights.log() - log_volume).unsqueeze(1) - whitened.square().sum(1) / 2).logsumexp(0)

    def sample(
        self,
        count: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | str | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw latents z = mu_m + temperature L_m eps, (count, d, h, w).

        Args:
            count: number of latents.
            generator: one generator, or a list with one for each latent. With a list, a latent does not depend on the
                others of its batch.
            device: device of the latents; None: that of the prior.
            temperature: factor of each component's standard deviation; 1 for p itself.

        Raises:
            ValueError: a list of generators of another length than `count`.
        """
        weights, means, scale = self._upcast_buffers()
        generators = generator if isinstance(generator, list) else [generator]
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(
                f"{len(generator)} generators for {count} latents; give one generator, or one for each latent."
            )
        rows, dimensions = count // len(generators), means.shape[1]
        draws = [(_draw(torch.rand, (rows,), g), _draw(torch.randn, (rows, dimensions), g)) for g in generators]
        uniform, eps = (torch.cat(parts).to(means) for parts in zip(*draws, strict=True))
        component = torch.searchsorted(weights.cumsum(0), uniform, right=True).clamp(max=len(weights) - 1)  # (B,)
        diagonal = self.config.covariance == "diag"
        offset = scale[component] * eps if diagonal else (scale[component] * eps.unsqueeze(1)).sum(2)  # (B, D)
        z = means[component] + temperature * offset
        return z.unflatten(1, tuple(self.config.latent_shape)).to(device or means.device)

    def _upcast_buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights, means and scales in float32, or in float64 if they are float64."""
        buffers = self.weights, self.means, self.scale_tril
        return buffers if self.means.dtype == torch.float64 else tuple(buffer.float() for buffer in buffers)


def _draw(distribution: Callable[..., Tensor], shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draw from torch.rand or torch.randn on the generator's device."""
    return distribution(shape, generator=generator, device="cpu" if generator is None else generator.device)


def diagonal_mixture_log_prob(z: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """Compute log sum_m w_m N(z; mu_m, s_m^2), (B,), for z (B, D), log w (M,), and mu and log s (M, D)."""
    distance = ((z.unsqueeze(1) - means) * (-log_scales).exp()).square().sum(2)  # (B, M)
    log_volume = log_scales.sum(1) + means.shape[1] * math.log(2 * math.pi) / 2  # (M,)
    return (log_weights - log_volume - distance / 2).logsumexp(1)


class _InwardClamp(torch.autograd.Function):
    """x clamped to [-1, 1]. Outside, the gradient passes only if its descent leads back inside.

    Under `clamp` a value that once left the interval would have no gradient and would never change again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * ((x - x.clamp(-1, 1)) * gradient >= 0)


class VampPriorModel(ModelMixin, ConfigMixin):
    """p(z) = 1/K sum_k q(z | u_k), the mixture of the encoder's posteriors of K pseudo-inputs u_k (Tomczak & Welling
    2018, https://arxiv.org/abs/1705.07120).

    Pseudo-inputs are images that are learned. In a new prior they are noise, whose posteriors are far from those of
    data: call `start_from` with images before training. After training, `as_mixture` returns the same distribution
    without the encoder.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: channels of images.
        num_pseudo_inputs: K.

    Raises:
        ValueError: no pseudo-inputs.
    """

    @checked
    @register_to_config
    def __init__(self, sample_size: int | tuple[int, int] = 28, in_channels: int = 1, num_pseudo_inputs: int = 500):
        super().__init__()
        if num_pseudo_inputs < 1:
            raise ValueError(f"{num_pseudo_inputs=} must be at least 1.")
        self.pseudo_inputs = nn.Parameter(torch.randn(num_pseudo_inputs, in_channels, *pair(sample_size)) / 2)

    @torch.no_grad()
    def start_from(self, images: Tensor) -> "VampPriorModel":
        """Set the pseudo-inputs to K images (K, C, H, W) in [-1, 1], and return the prior.

        Raises:
            ValueError: another number of images, or another shape.
        """
        if images.shape != self.pseudo_inputs.shape:
            raise ValueError(
                f"{len(images)} images {tuple(images.shape[1:])} can't be the start of {len(self.pseudo_inputs)} "
                f"pseudo-inputs {tuple(self.pseudo_inputs.shape[1:])}. Give one for each, or lower num_pseudo_inputs."
            )
        self.pseudo_inputs.copy_(images)
        return self

    def forward(self, z: Tensor, encode: Encode) -> Tensor:
        """Compute log p(z) in nats, (B,).

        Args:
            z (B, d, h, w): latents.
            encode: the encoder whose posteriors p is made of.

        Raises:
            ValueError: latents of another shape than the encoder's.
        """
        means, log_variances = self._moments(encode)
        if z.shape[1:] != means.shape[1:]:
            shape = ", ".join(map(str, means.shape[1:]))
            raise ValueError(f"latents have shape {tuple(z.shape)}; the encoder's are (B, {shape}).")
        log_weights = means.new_full((len(means),), -math.log(len(means)))
        return diagonal_mixture_log_prob(
            z.flatten(1).to(means), log_weights, means.flatten(1), log_variances.flatten(1) / 2
        )

    @torch.no_grad()
    def as_mixture(self, encode: Encode) -> GaussianMixturePriorModel:
        """Return the same distribution as a mixture of Gaussians, which needs no encoder."""
        means, log_variances = self._moments(encode)  # (K, d, h, w)
        mixture = GaussianMixturePriorModel(
            latent_shape=tuple(means.shape[1:]), num_components=len(means), covariance="diag"
        ).to(means)
        mixture.means.copy_(means.flatten(1))
        mixture.scale_tril.copy_((log_variances.flatten(1) / 2).exp())
        return mixture

    def _moments(self, encode: Encode) -> tuple[Tensor, Tensor]:
        """Compute the means and log-variances (K, d, h, w) of q(z | u_k), in float32 or float64."""
        posterior = encode(_InwardClamp.apply(self.pseudo_inputs)).latent_dist
        moments = posterior.mean, posterior.logvar
        return moments if posterior.mean.dtype == torch.float64 else tuple(moment.float() for moment in moments)

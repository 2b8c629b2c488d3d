"""Distributions of latents (B, d, h, w): mixtures of Gaussians, fitted or made of an encoder's posteriors.

Priors are called alike: `prior(z, encode)` is log p(z); `encode` is the autoencoder's, for priors that are made
of it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .layers import pair

Encode = Callable[[Tensor], Any]
"""images -> an output with `latent_dist`, as AutoencoderKL.encode."""


class GaussianMixturePriorModel(ModelMixin, ConfigMixin):
    """p(z) = sum_m w_m N(z; mu_m, L_m L_m^T), D = d h w; the standard normal until other values are set.

    Its numbers are buffers: they are fitted (`hfgen.families.fit_mixture.fit_mixture`) rather than trained.

    Args:
        latent_shape: (d, h, w).
        num_components: M.
        covariance: `full`, L_m is lower triangular (D, D), or `diag`, L_m is a diagonal (D,).
    """

    @register_to_config
    def __init__(
        self,
        latent_shape: tuple[int, int, int],
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
        """As `log_prob`; the encoder is not asked."""
        return self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (B,), for latents (B, d, h, w)."""
        weights, means, scale = self._numbers()
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
        """`count` latents (count, d, h, w), z = mu_m + temperature L_m eps.

        Args:
            count: how many.
            generator: one, or one a latent; with a list, a latent is the same alone and in any batch.
            device: where to; None: where the prior is.
            temperature: the spread of each component, 1 for p itself.

        Raises:
            ValueError: a list of generators that are not one a latent.
        """
        weights, means, scale = self._numbers()
        each = generator if isinstance(generator, list) else [generator]
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} latents; give one generator, or one a latent.")
        rows, dimensions = count // len(each), means.shape[1]
        draws = [(_draw(torch.rand, (rows,), one), _draw(torch.randn, (rows, dimensions), one)) for one in each]
        uniform, eps = (torch.cat(parts).to(means) for parts in zip(*draws, strict=True))
        chosen = torch.searchsorted(weights.cumsum(0), uniform, right=True).clamp(max=len(weights) - 1)  # (B,)
        diagonal = self.config.covariance == "diag"
        offset = scale[chosen] * eps if diagonal else (scale[chosen] * eps.unsqueeze(1)).sum(2)  # (B, D)
        z = means[chosen] + temperature * offset
        return z.unflatten(1, tuple(self.config.latent_shape)).to(device or means.device)

    def _numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and scales in float32 at least."""
        numbers = self.weights, self.means, self.scale_tril
        return numbers if self.means.dtype == torch.float64 else tuple(number.float() for number in numbers)


def _draw(distribution: Callable[..., Tensor], shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return distribution(shape, generator=generator, device="cpu" if generator is None else generator.device)


def diagonal_mixture_log_prob(z: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log sum_m w_m N(z; mu_m, s_m^2), (B,), for z (B, D), log w (M,), mu and log s (M, D)."""
    distance = ((z.unsqueeze(1) - means) * (-log_scales).exp()).square().sum(2)  # (B, M)
    log_volume = log_scales.sum(1) + means.shape[1] * math.log(2 * math.pi) / 2  # (M,)
    return (log_weights - log_volume - distance / 2).logsumexp(1)


class _Bounded(torch.autograd.Function):
    """x between -1 and 1. Beyond, only a gradient whose descent leads back passes, so what once stepped over a bound
    can learn again; under `clamp` it never would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * ((x - x.clamp(-1, 1)) * gradient >= 0)


class VampPriorModel(ModelMixin, ConfigMixin):
    """p(z) = 1/K sum_k q(z | u_k): the encoder's posteriors of K pseudo-inputs, images that are learned (Tomczak &
    Welling 2018, https://arxiv.org/abs/1705.07120). A new one's are noise, whose posteriors lie where none of data do:
    before training, `start_from` images. What the trained one is, `as_mixture` says.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: of images.
        num_pseudo_inputs: K.
    """

    @register_to_config
    def __init__(self, sample_size: int | tuple[int, int] = 28, in_channels: int = 1, num_pseudo_inputs: int = 500):
        super().__init__()
        if num_pseudo_inputs < 1:
            raise ValueError(f"{num_pseudo_inputs=} must be at least 1.")
        self.pseudo_inputs = nn.Parameter(torch.randn(num_pseudo_inputs, in_channels, *pair(sample_size)) / 2)

    @torch.no_grad()
    def start_from(self, images: Tensor) -> "VampPriorModel":
        """This prior, its pseudo-inputs being K images (K, C, H, W) in [-1, 1] now.

        Raises:
            ValueError: images of another number or shape.
        """
        if images.shape != self.pseudo_inputs.shape:
            raise ValueError(
                f"{len(images)} images {tuple(images.shape[1:])} can't be the start of {len(self.pseudo_inputs)} "
                f"pseudo-inputs {tuple(self.pseudo_inputs.shape[1:])}. Give one for each, or lower num_pseudo_inputs."
            )
        self.pseudo_inputs.copy_(images)
        return self

    def forward(self, z: Tensor, encode: Encode) -> Tensor:
        """log p(z) in nats, (B,), for latents (B, d, h, w) and the encoder whose posteriors make up p."""
        means, log_variances = self._moments(encode)
        log_weights = means.new_full((len(means),), -math.log(len(means)))
        return diagonal_mixture_log_prob(
            z.flatten(1).to(means), log_weights, means.flatten(1), log_variances.flatten(1) / 2
        )

    @torch.no_grad()
    def as_mixture(self, encode: Encode) -> GaussianMixturePriorModel:
        """The same distribution without the encoder."""
        means, log_variances = self._moments(encode)  # (K, d, h, w)
        mixture = GaussianMixturePriorModel(
            latent_shape=tuple(means.shape[1:]), num_components=len(means), covariance="diag"
        ).to(means)
        mixture.means.copy_(means.flatten(1))
        mixture.scale_tril.copy_((log_variances.flatten(1) / 2).exp())
        return mixture

    def _moments(self, encode: Encode) -> tuple[Tensor, Tensor]:
        """Means and log-variances (K, d, h, w) of q(z | u_k), in float32 at least."""
        posterior = encode(_Bounded.apply(self.pseudo_inputs)).latent_dist
        moments = posterior.mean, posterior.logvar
        return moments if posterior.mean.dtype == torch.float64 else tuple(moment.float() for moment in moments)

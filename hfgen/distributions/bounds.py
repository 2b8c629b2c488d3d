"""Bounds on log p(x) of an autoencoder, from what its encoder and decoder say: one place for training and pipelines."""

import math

import torch
from torch import Tensor

from .likelihoods import Likelihood, real


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each dimension in nats, of the shape of both:

    (mean^2 + variance - 1 - log variance) / 2    (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114, appendix B).
    """
    mean, log_variance = real(mean), real(log_variance)
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


def log_ratio(latents: Tensor, mean: Tensor, log_variance: Tensor, log_prior: Tensor | None) -> Tensor:
    """log p(z) - log q(z | x) in nats, (B, K), for latents (B, K, d, h, w) and q's moments (B, d, h, w).

    `log_prior` (B, K) is log p(z) in nats; None: the standard normal's.
    """
    latents, mean, log_variance = real(latents), real(mean).unsqueeze(1), real(log_variance).unsqueeze(1)
    distance = (latents - mean).square() * (-log_variance).exp() + log_variance  # -2 log q, but for log 2 pi
    if log_prior is None:
        return (distance - latents.square()).flatten(2).sum(2) / 2
    return log_prior + (distance + math.log(2 * math.pi)).flatten(2).sum(2) / 2


def log_weights(
    observation: Likelihood,
    x: Tensor,
    decoded: Tensor,
    latents: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    log_prior: Tensor | None = None,
) -> Tensor:
    """log p(x, z_k) / q(z_k | x) in nats, (B, K): their mean is the ELBO, their log-mean-exp the IWAE bound.

    Args:
        observation: p(x | z).
        x: images (B, C, H, W), as `observation.prepare` left them.
        decoded: parameters of p(x | z_k), (B, K, channels, H, W).
        latents: z_k, (B, K, d, h, w).
        mean, log_variance: of q(z | x), (B, d, h, w).
        log_prior: log p(z_k), (B, K); None: the standard normal's.
    """
    return observation.log_prob(decoded, x.unsqueeze(1)) + log_ratio(latents, mean, log_variance, log_prior)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log 1/K sum_k exp(w_k) over the last dimension: (B,) of (B, K) (Burda et al. 2016, https://arxiv.org/abs/1509.00519)."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])

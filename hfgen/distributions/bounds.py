"""Bounds on log p(x) of an autoencoder, from q(z | x), p(z) and p(x | z): one place for training and pipelines.

Items x and latents z may have any shape. The dimensions before an item's own are B, the items, and K, the latents of
each item.
"""

import math

import torch
from torch import Tensor

from ..utils.arguments import checked
from .likelihoods import Likelihood, upcast


@checked
def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute KL(N(mean, variance) || N(0, 1)) of each dimension in nats, for moments of any common shape:

    (mean^2 + variance - 1 - log variance) / 2    (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114, appendix B).

    The result has that shape. The KL of a latent is the sum over its dimensions.

    Raises:
        ValueError: the moments have different shapes.
    """
    _check_moments(mean, log_variance)
    mean, log_variance = upcast(mean), upcast(log_variance)
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


@checked
def log_ratio(latents: Tensor, mean: Tensor, log_variance: Tensor, log_prior: Tensor | None) -> Tensor:
    """Compute log p(z_k) - log q(z_k | x) in nats, summed over the dimensions of z: (B, K).

    Args:
        latents (B, K, ...): z_k, of any shape after B and K.
        mean, log_variance (B, ...): moments of q(z | x), of the shape of one latent.
        log_prior (B, K): log p(z_k) in nats; None: that of the standard normal.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_moments(mean, log_variance)
    if latents.ndim < 3 or latents.shape[:1] + latents.shape[2:] != mean.shape:
        raise ValueError(
            f"latents {tuple(latents.shape)} and moments {tuple(mean.shape)} do not fit: they must be (B, K, ...) and "
            "(B, ...) with the same dimensions of a latent."
        )
    if log_prior is not None and log_prior.shape != latents.shape[:2]:
        raise ValueError(f"log_prior {tuple(log_prior.shape)} must be (B, K) = {tuple(latents.shape[:2])}.")
    latents, mean, log_variance = upcast(latents), upcast(mean).unsqueeze(1), upcast(log_variance).unsqueeze(1)
    distance = (latents - mean).square() * (-log_variance).exp() + log_variance  # -2 log q without the log 2 pi
    if log_prior is None:
        return (distance - latents.square()).flatten(2).sum(2) / 2
    return log_prior + (distance + math.log(2 * math.pi)).flatten(2).sum(2) / 2


@checked
def log_weights(
    likelihood: Likelihood,
    x: Tensor,
    decoded: Tensor,
    latents: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    log_prior: Tensor | None = None,
) -> Tensor:
    """Compute log p(x, z_k) / q(z_k | x) in nats, (B, K). Their mean is the ELBO, their log-mean-exp the IWAE bound.

    Args:
        likelihood: p(x | z).
        x (B, C, ...): items, as `likelihood.prepare` returned them.
        decoded (B, K, channels, ...): parameters of p(x | z_k).
        latents (B, K, ...): z_k.
        mean, log_variance (B, ...): moments of q(z | x).
        log_prior (B, K): log p(z_k); None: that of the standard normal.

    Raises:
        ValueError: the shapes do not fit.
    """
    log_likelihood = likelihood.log_prob(decoded, x.unsqueeze(1), batch_ndim=2)
    return log_likelihood + log_ratio(latents, mean, log_variance, log_prior)


@checked
def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Compute log 1/K sum_k exp(w_k) over the last dimension, (B,) from (B, K) (Burda et al. 2016,
    https://arxiv.org/abs/1509.00519)."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])


def _check_moments(mean: Tensor, log_variance: Tensor) -> None:
    if mean.shape != log_variance.shape:
        raise ValueError(f"mean {tuple(mean.shape)} and log_variance {tuple(log_variance.shape)} differ in shape.")

"""How anomalous an image is to an autoencoder, by name: numbers that are the higher, the less normal it is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from hfgen.distributions.bounds import log_mean_exp, log_weights
from hfgen.distributions.likelihoods import Likelihood, upcast
from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior

ROUNDING = (2 / 255) ** 2 / 12
"""Variance of rounding pixels in [-1, 1] to 256 levels: no reconstruction is better than that."""


class AnomalyOutput(BaseOutput):
    """What an AnomalyPipeline says of B images.

    Args:
        scores (B,): the higher, the less normal.
        p_values (B,): how many normal images have such a score or a higher one, see `CalibrationModel`.
        decisions (B,): bool, whether the image is anomalous: its p-value is at most the false-alarm rate.
        heat_maps (B, H, W): squared error of the reconstruction at each pixel, summed over channels, pixels in [-1, 1].
    """

    scores: Tensor
    p_values: Tensor
    decisions: Tensor
    heat_maps: Tensor


class Seen(NamedTuple):
    """Images x (B, C, H, W), their latents z (B, d, h, w), the means of q(z | x), and the squared error
    (x - E[x | z])^2 of each pixel, summed over channels: (B, H, W)."""

    x: Tensor
    latents: Tensor
    errors: Tensor


class Scorer:
    """What scores are computed with.

    Args:
        autoencoder, likelihood: as a VAEPipeline's.
        prior: p(z); for `density` that of `described`.
        num_samples: K, latents an image for `elbo` and `likelihood`.
    """

    def __init__(self, autoencoder: nn.Module, prior: nn.Module, likelihood: Likelihood, num_samples: int):
        self.autoencoder, self.prior, self.likelihood, self.num_samples = autoencoder, prior, likelihood, num_samples

    def seen(self, x: Tensor) -> Seen:
        """One pass through the latents' means."""
        coded = AutoencoderWithPrior(self.autoencoder)(x)
        errors = (upcast(x) - self.likelihood.mean(coded.decoded.squeeze(1))).square().sum(1)
        return Seen(x, upcast(coded.mean), errors)

    def weights(self, seen: Seen) -> Tensor:
        """log p(x, z_k) / q(z_k | x), (B, K), at the same K standard normal numbers for every image: a score is a
        function of the image alone. `bernoulli` is of the grey image, see `Bernoulli.log_prob`."""
        shape = (1, self.num_samples, *seen.latents.shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(seen.x)
        coded = AutoencoderWithPrior(self.autoencoder, self.prior)(seen.x, noise.expand(len(seen.x), *shape[1:]))
        moments = coded.mean, coded.log_variance
        return log_weights(self.likelihood, seen.x, coded.decoded, coded.latents, *moments, coded.log_prior)


def described(seen: Seen) -> Tensor:
    """What the autoencoder makes of an image in D + 2 numbers, (B, D + 2, 1, 1): its latent, the log of the mean
    squared error of its reconstruction, and the log of that error's share of the image's variance, both with the error
    of rounding: a flat image is easily redone, and still nothing of it may be explained."""
    x = upcast(seen.x)
    error = seen.errors.flatten(1).sum(1, keepdim=True) / x[0].numel() + ROUNDING  # (B, 1)
    variance = x.flatten(2).var(2, unbiased=False).mean(1, keepdim=True) + ROUNDING  # (B, 1)
    numbers = [seen.latents.flatten(1), error.log(), (error / variance).log()]
    return torch.cat(numbers, 1)[:, :, None, None]


def _reconstruction(scorer: Scorer, seen: Seen) -> Tensor:
    return seen.errors.flatten(1).sum(1)


def _density(scorer: Scorer, seen: Seen) -> Tensor:
    return -scorer.prior(described(seen))


def _elbo(scorer: Scorer, seen: Seen) -> Tensor:
    return -scorer.weights(seen).mean(1)


def _likelihood(scorer: Scorer, seen: Seen) -> Tensor:
    return -log_mean_exp(scorer.weights(seen))


SCORES: dict[str, Callable[[Scorer, Seen], Tensor]] = {
    "density": _density,
    "reconstruction": _reconstruction,
    "elbo": _elbo,
    "likelihood": _likelihood,
}
"""Name -> score (B,):

- `density`: -log of the density of `described`, a mixture of Gaussians fitted to normal images: latents where normal
  images have none, or an error, absolute or beside the image's variance, that is unusual for that latent (after Zong
  et al. 2018, https://openreview.net/forum?id=BJJLHbb0-, who train the mixture along);
- `reconstruction`: the squared error, summed over pixels: what the autoencoder can't redo (Sakurada & Yairi 2014,
  https://doi.org/10.1145/2689746.2689747);
- `elbo`, `likelihood`: minus the evidence lower bound, and minus log p(x) by importance sampling, in nats (see
  `hfgen.distributions.bounds`; on its own p(x) can be high for what was never seen: Nalisnick et al. 2019,
  https://arxiv.org/abs/1810.09136).
"""

VARIATIONAL = ("elbo", "likelihood")
"""Scores that need a q(z | x) that was trained."""

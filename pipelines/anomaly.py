"""Anomaly detection with an autoencoder of normal images: scores, p-values, decisions, heat maps."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from hfgen.distributions.bounds import log_mean_exp, log_weights
from hfgen.distributions.likelihoods import Likelihood, upcast
from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior, latent_shape
from hfgen.utils.arguments import checked

from .base import HFGenPipeline
from .detector import DetectorMixin, check_detector
from .inputs import check_count
from .latents import AutoencoderMixin
from .outputs import require_finite, require_numbers

ROUNDING = (2 / 255) ** 2 / 12
"""Variance of rounding pixels in [-1, 1] to 256 levels: no reconstruction has a smaller error."""


class Encoding(NamedTuple):
    """Images x (B, C, H, W), the means z (B, d, h, w) of q(z | x), and the squared error (x - E[x | z])^2 of each
    pixel, summed over channels, (B, H, W)."""

    x: Tensor
    latents: Tensor
    errors: Tensor


class Scorer:
    """Networks and numbers that scores are computed with.

    Args:
        autoencoder, likelihood: as a VAEPipeline's.
        prior: p(z); for `density` the distribution of `density_features`.
        num_samples: K, latents of an image for `elbo` and `likelihood`.
        noise_seed: of their K latents.
    """

    def __init__(
        self, autoencoder: nn.Module, prior: nn.Module, likelihood: Likelihood, num_samples: int, noise_seed: int = 0
    ):
        self.autoencoder, self.prior, self.likelihood = autoencoder, prior, likelihood
        self.num_samples, self.noise_seed = num_samples, noise_seed

    def encoding(self, x: Tensor) -> Encoding:
        """Pass images through the means of their latents."""
        coded = AutoencoderWithPrior(self.autoencoder)(x)
        errors = (upcast(x) - self.likelihood.mean(coded.decoded.squeeze(1))).square().sum(1)
        return Encoding(x, upcast(coded.mean), errors)

    def weights(self, encoding: Encoding) -> Tensor:
        """Return log p(x, z_k) / q(z_k | x), (B, K).

        The K standard normal numbers are the same for every image: a score is a function of the image alone. Under
        `bernoulli` x is the grey image, see `Bernoulli.log_prob`.
        """
        shape = (1, self.num_samples, *encoding.latents.shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.noise_seed)).to(encoding.x)
        model, count = AutoencoderWithPrior(self.autoencoder, self.prior), len(encoding.x)
        coded = model(encoding.x, noise.expand(count, *shape[1:]))
        moments = coded.mean, coded.log_variance
        return log_weights(self.likelihood, encoding.x, coded.decoded, coded.latents, *moments, coded.log_prior)


def density_features(encoding: Encoding) -> Tensor:
    """Describe images by D + 2 numbers, (B, D + 2, 1, 1): the latent, the log of the mean squared error of the
    reconstruction, and the log of that error's share of the image's variance.

    The error of rounding is added to both. A flat image is easy to reconstruct: its absolute error is small even if the
    model explains none of its variance, so both errors are features.
    """
    x = upcast(encoding.x)
    error = encoding.errors.flatten(1).sum(1, keepdim=True) / x[0].numel() + ROUNDING  # (B, 1)
    variance = x.flatten(2).var(2, unbiased=False).mean(1, keepdim=True) + ROUNDING  # (B, 1)
    features = [encoding.latents.flatten(1), error.log(), (error / variance).log()]
    return torch.cat(features, 1)[:, :, None, None]


def _reconstruction(scorer: Scorer, encoding: Encoding) -> Tensor:
    return encoding.errors.flatten(1).sum(1)


def _density(scorer: Scorer, encoding: Encoding) -> Tensor:
    return -scorer.prior(density_features(encoding))


def _elbo(scorer: Scorer, encoding: Encoding) -> Tensor:
    return -scorer.weights(encoding).mean(1)


def _likelihood(scorer: Scorer, encoding: Encoding) -> Tensor:
    return -log_mean_exp(scorer.weights(encoding))


SCORES: dict[str, Callable[[Scorer, Encoding], Tensor]] = {
    "density": _density,
    "reconstruction": _reconstruction,
    "elbo": _elbo,
    "likelihood": _likelihood,
}
"""Name -> score (B,):

- `density`: -log of the density of `density_features`, a mixture of Gaussians fitted to normal images. It is high for a
  latent where normal images have none, and for an error, absolute or relative to the image's variance, that is unusual
  for that latent (after Zong et al. 2018, https://openreview.net/forum?id=BJJLHbb0-, who train the mixture along);
- `reconstruction`: the squared error, summed over pixels: the part of the image that the autoencoder can't reconstruct
  (Sakurada & Yairi 2014, https://doi.org/10.1145/2689746.2689747);
- `elbo`, `likelihood`: minus the evidence lower bound, and minus log p(x) by importance sampling, in nats (see
  `hfgen.distributions.bounds`; on its own p(x) can be high for what was never seen: Nalisnick et al. 2019,
  https://arxiv.org/abs/1810.09136).
"""

VARIATIONAL = ("elbo", "likelihood")
"""Scores that need a trained q(z | x)."""


class AnomalyPipeline(AutoencoderMixin, DetectorMixin, HFGenPipeline):
    """Find anomalies with an autoencoder that was trained on normal images only. `hfgen anomaly fit` makes this
    pipeline from a trained VAEPipeline; `calibrate` sets the threshold.

    Args:
        autoencoder: as a VAEPipeline's.
        prior: for `density` a distribution of `density_features`, else as a VAEPipeline's.
        calibration: scores of normal images that nothing was fitted to.
        score: a key of `SCORES`.
        num_samples: latents of an image for `elbo` and `likelihood`.
        false_alarm_rate: share of normal images that may be called anomalous.
        heat_scale: the value of a heat map that pictures show as hottest; `calibrate` sets it.
        center_crop, background: how training fitted images of another shape, and made transparent ones opaque; `hfgen
            anomaly score` does the same.
        likelihood, likelihood_sigma, likelihood_components, variational: as a VAEPipeline's.
        noise_seed: of the latents for `elbo` and `likelihood`, the same for the calibration and for every image.

    Raises:
        ValueError: an unknown score or likelihood, a score that this autoencoder can't give, or a number out of range.
    """

    model_cpu_offload_seq = "autoencoder->prior->calibration"

    @checked
    def __init__(
        self,
        autoencoder: ModelMixin,
        prior: ModelMixin,
        calibration: ModelMixin,
        score: str = "density",
        num_samples: int = 8,
        false_alarm_rate: float = 0.001,
        heat_scale: float = 1.0,
        center_crop: bool = True,
        background: str = "white",
        likelihood: str = "gaussian",
        likelihood_sigma: float = 0.2,
        likelihood_components: int = 5,
        variational: bool = True,
        noise_seed: int = 0,
    ):
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score={score!r} is not known. Choose one of: {', '.join(SCORES)}.")
        if score in VARIATIONAL and not variational:
            raise ValueError(f"score={score!r} needs an autoencoder trained with q(z | x): --objective elbo or iwae.")
        check_count("num_samples", num_samples)
        check_detector(false_alarm_rate, heat_scale)
        self.register_modules(autoencoder=autoencoder, prior=prior, calibration=calibration)
        self.register_to_config(
            score=score,
            num_samples=num_samples,
            false_alarm_rate=false_alarm_rate,
            heat_scale=heat_scale,
            center_crop=center_crop,
            background=background,
            likelihood=likelihood,
            likelihood_sigma=likelihood_sigma,
            likelihood_components=likelihood_components,
            variational=variational,
            noise_seed=noise_seed,
        )
        self.likelihood  # noqa: B018 - refuses an unknown likelihood

    @property
    def score_name(self) -> str:
        """Return the name of the score, a key of `SCORES`."""
        return self.config.score

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (d, h, w) of a latent."""
        return latent_shape(self.autoencoder)

    @checked
    @torch.no_grad()
    def describe(self, images: Any, batch_size: int = 256) -> Tensor:
        """Return `density_features` of images, (B, D + 2, 1, 1). Errors are a call's."""
        return torch.cat([density_features(batch) for _, batch in self._encodings(self._batch(images), batch_size)])

    def _scored(self, images: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for scorer, encoding in self._encodings(images, batch_size):
            yield self._score(scorer, encoding), encoding.errors

    def _score(self, scorer: Scorer, encoding: Encoding) -> Tensor:
        return require_numbers(SCORES[self.config.score](scorer, encoding), "scores", self.components)

    def _encodings(self, images: Tensor, batch_size: int) -> Iterator[tuple[Scorer, Encoding]]:
        """Encode images (B, C, H, W), a batch at a time."""
        check_count("batch_size", batch_size)
        scorer = Scorer(self.autoencoder, self.prior, self.likelihood, self.config.num_samples, self.config.noise_seed)
        for part in self.progress_bar(images.split(batch_size)):
            encoding = scorer.encoding(part.to(self._execution_device, self.autoencoder.dtype))
            for what, values in (("latents", encoding.latents), ("reconstructions", encoding.errors)):
                require_finite(values, what, self.components, part)
            yield scorer, encoding
        self.maybe_free_model_hooks()

"""What is not like the images that an autoencoder was trained on: scores, decisions, heat maps."""

from collections.abc import Iterator

import torch
from diffusers import ModelMixin
from torch import Tensor

from hfgen.models.autoencoder_with_prior import latent_shape
from hfgen.models.calibration import CalibrationModel, alarms

from .base import HFGenPipeline
from .coding import AutoencoderMixin
from .inputs import check_images
from .scores import SCORES, VARIATIONAL, AnomalyOutput, Scorer, Seen, described

HOTTEST = 0.99
"""Heat 1 is what this share of normal images has nowhere."""


class AnomalyPipeline(AutoencoderMixin, HFGenPipeline):
    """Anomalies are found by an autoencoder that has seen normal images only. `hfgen anomaly fit` makes this pipeline
    of a trained VAEPipeline; `calibrate` sets where "anomalous" begins.

    Args:
        autoencoder: as a VAEPipeline's.
        prior: for `density` a distribution of `hfgen.pipelines.scores.described`, else as a VAEPipeline's.
        calibration: scores of normal images that nothing was fitted to.
        score: a key of `SCORES`.
        num_samples: latents an image for `elbo` and `likelihood`.
        false_alarm_rate: share of normal images that may be called anomalous.
        heat_scale: the value of a heat map that pictures show as hottest; `calibrate` sets it.
        center_crop, background: how images of another shape were made to fit, and transparent ones opaque, before
            training; `hfgen anomaly score` does the same.
        likelihood, likelihood_sigma, likelihood_components, variational: as a VAEPipeline's.

    Raises:
        ValueError: an unknown score, or one that this autoencoder can't give.
    """

    model_cpu_offload_seq = "autoencoder->prior->calibration"

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
    ):
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score={score!r} is not known. Choose one of: {', '.join(SCORES)}.")
        if score in VARIATIONAL and not variational:
            raise ValueError(f"score={score!r} needs an autoencoder trained with q(z | x): --objective elbo or iwae.")
        if num_samples < 1:
            raise ValueError(f"{num_samples=} must be at least 1.")
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
        )
        self.likelihood  # noqa: B018 - refuses an unknown likelihood

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(d, h, w) of a latent."""
        return latent_shape(self.autoencoder)

    @property
    def threshold(self) -> float:
        """The score above which images are anomalous; ValueError where no calibration is large enough for the rate."""
        return self.calibration.threshold(self.config.false_alarm_rate)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, false_alarm_rate: float | None = None, batch_size: int = 256, return_dict: bool = True
    ) -> AnomalyOutput | tuple[Tensor, ...]:
        """Judge images.

        Args:
            images: (B, C, H, W) in [-1, 1].
            false_alarm_rate: in place of the pipeline's own.
            batch_size: images at a time.
            return_dict: `AnomalyOutput`, or a tuple of its fields.

        Raises:
            ValueError: images of another shape or with values that are not finite, a pipeline that is not calibrated,
                or a rate that its calibration is too small for.
        """
        rate = self.config.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        threshold = self.calibration.threshold(rate)
        parts = [(self._score(scorer, seen), seen.errors) for scorer, seen in self._seen(images, batch_size)]
        scores, heat_maps = (torch.cat(values) for values in zip(*parts, strict=True))
        said = {"scores": scores, "p_values": self.calibration(scores), "decisions": scores > threshold}
        output = AnomalyOutput(**said, heat_maps=heat_maps)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def anomaly_score(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """The scores (B,) of images (B, C, H, W) in [-1, 1]; no calibration is needed. Errors: as a call's."""
        return torch.cat([self._score(scorer, seen) for scorer, seen in self._seen(images, batch_size)])

    @torch.no_grad()
    def describe(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """What `density` is a density of, (B, D + 2, 1, 1), see `described`. Errors: as a call's."""
        return torch.cat([described(seen) for _, seen in self._seen(images, batch_size)])

    @torch.no_grad()
    def calibrate(self, images: Tensor, false_alarm_rate: float | None = None, batch_size: int = 256) -> float:
        """Learn the scores of normal images (N, C, H, W) in [-1, 1] that neither the autoencoder nor the prior was
        fitted to, and set the false-alarm rate (None: it stays). Returns the threshold.

        Raises:
            ValueError: fewer images than the rate needs, and as a call.
        """
        rate = self.config.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        alarms(len(images), rate)
        seen_by = self._seen(images, batch_size)
        parts = [(self._score(scorer, seen), seen.errors.flatten(1).amax(1)) for scorer, seen in seen_by]
        scores, hottest = (torch.cat(values) for values in zip(*parts, strict=True))
        calibration = CalibrationModel(len(scores)).to(scores.device)
        calibration.scores.copy_(scores.sort().values)
        self.register_modules(calibration=calibration)
        self.register_to_config(false_alarm_rate=rate, heat_scale=float(hottest.float().quantile(HOTTEST)))
        return self.threshold

    def _score(self, scorer: Scorer, seen: Seen) -> Tensor:
        return SCORES[self.config.score](scorer, seen)

    def _seen(self, images: Tensor, batch_size: int) -> Iterator[tuple[Scorer, Seen]]:
        """What the autoencoder makes of images, a batch at a time."""
        images = torch.as_tensor(images)
        check_images(images, self.image_shape)
        if batch_size < 1 or not images.isfinite().all():
            raise ValueError(f"{batch_size=} must be at least 1, and all values of images finite.")
        scorer = Scorer(self.autoencoder, self.prior, self.likelihood, self.config.num_samples)
        for part in images.split(batch_size):
            yield scorer, scorer.seen(part.to(self._execution_device, self.autoencoder.dtype))
        self.maybe_free_model_hooks()

"""What pipelines that find anomalies share: scores, p-values, decisions and heat maps, by a calibration."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from hfgen.models.calibration import CalibrationModel, max_alarms, refuse_nan
from hfgen.utils.arguments import checked

from .outputs import require_sound

HOTTEST = 0.99
"""Share of normal images whose hottest pixel is below heat 1."""


class AnomalyOutput(BaseOutput):
    """Judgement of B images.

    Args:
        scores (B,): the higher, the less normal.
        p_values (B,): share of normal images with such a score or a higher one, float64, see `CalibrationModel`.
        decisions (B,): bool, whether the image is anomalous: its p-value is at most the false-alarm rate.
        heat_maps (B, H, W): how much each pixel is to blame: by an autoencoder the squared error of its reconstruction,
            by an energy the square of its gradient; summed over channels, pixels in [-1, 1].
    """

    scores: Tensor
    p_values: Tensor
    decisions: Tensor
    heat_maps: Tensor


class DetectorMixin:
    """For a pipeline with a `calibration`, and `false_alarm_rate` and `heat_scale` in its configuration. A subclass
    says what the images are, `_batch`, how they are scored, `_scored`, and what the score is called, `score_name`."""

    score_name: str

    def _batch(self, images: Any) -> Tensor:
        """Return images as a tensor (B, C, H, W), see `image_batch`."""
        raise NotImplementedError

    def _scored(self, images: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the scores (b,) and the heat maps (b, H, W) of images (B, C, H, W), a batch at a time."""
        raise NotImplementedError

    @property
    def threshold(self) -> float:
        """Return the score above which images are anomalous. Raises ValueError if the calibration is too small for the
        false-alarm rate."""
        return self.calibration.threshold(self.config.false_alarm_rate)

    @checked
    @torch.no_grad()
    def __call__(
        self, images: Any, false_alarm_rate: float | None = None, batch_size: int = 256, return_dict: bool = True
    ) -> AnomalyOutput | tuple[Tensor, ...]:
        """Judge images.

        Args:
            images: see `image_batch`.
            false_alarm_rate: in place of the pipeline's own.
            batch_size: images in one pass.
            return_dict: return an `AnomalyOutput`, else a tuple of its fields.

        Raises:
            ValueError: images that do not fit the model, a pipeline that is not calibrated, a rate that its calibration
                is too small for, or a score that is NaN.
        """
        rate = self.config.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        self.calibration.threshold(rate)  # refuses a rate that the calibration is too small for
        require_sound(self.calibration, "calibration")
        parts = list(self._scored(self._batch(images), batch_size))
        scores, heat_maps = (torch.cat(values) for values in zip(*parts, strict=True))
        p_values = self.calibration(scores)
        output = AnomalyOutput(scores=scores, p_values=p_values, decisions=p_values <= rate, heat_maps=heat_maps)
        return output if return_dict else output.to_tuple()

    @checked
    @torch.no_grad()
    def anomaly_score(self, images: Any, batch_size: int = 256) -> Tensor:
        """Return the scores (B,) of images, see `image_batch`. No calibration is needed. Errors are a call's."""
        return torch.cat([scores for scores, _ in self._scored(self._batch(images), batch_size)])

    @checked
    @torch.no_grad()
    def calibrate(self, images: Any, false_alarm_rate: float | None = None, batch_size: int = 256) -> float:
        """Keep the scores of normal images, and set the false-alarm rate. Returns the threshold.

        Args:
            images: N images, see `image_batch`, that nothing in the pipeline was trained on or fitted to.
            false_alarm_rate: None: it stays.
            batch_size: images in one pass.

        Raises:
            ValueError: fewer images than the rate needs, and as a call.
        """
        rate = self.config.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        images = self._batch(images)
        max_alarms(len(images), rate)
        parts = [(scores, heat.flatten(1).amax(1)) for scores, heat in self._scored(images, batch_size)]
        scores, hottest = (torch.cat(values) for values in zip(*parts, strict=True))
        refuse_nan(scores)
        calibration = CalibrationModel(len(scores)).to(scores.device)
        calibration.scores.copy_(scores.sort().values)
        self.register_modules(calibration=calibration)
        self.register_to_config(false_alarm_rate=rate, heat_scale=float(hottest.float().quantile(HOTTEST)))
        return self.threshold


def check_detector(false_alarm_rate: float, heat_scale: float) -> None:
    """Raise ValueError for a rate outside of (0, 1), or a scale that is negative or not finite."""
    if not 0 < false_alarm_rate < 1 or not 0 <= heat_scale < float("inf"):
        raise ValueError(f"{false_alarm_rate=} must be between 0 and 1, and {heat_scale=} not negative.")

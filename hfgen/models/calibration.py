"""Calibration of an anomaly detector: the scores of normal images, and the p-values of new scores."""

import math
from collections.abc import Callable

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..utils.arguments import checked


class CalibrationModel(ModelMixin, ConfigMixin):
    """Scores s_i of N normal images that were not used for fitting, and the p-value of a new image with score s:

        p(s) = (1 + #{i: s_i >= s}) / (N + 1).

    If the new image is normal, its score is exchangeable with the others. Then p(s) <= r with probability at most r,
    for any distribution of scores: if images with p(s) <= r are called anomalous, the false-alarm rate is at most r
    (conformal p-values: Vovk et al. 2005, https://doi.org/10.1007/b106715; for outliers Bates et al. 2023,
    https://arxiv.org/abs/2104.08279). This is the rate over repetitions of the calibration. For one calibration the
    rate has the distribution Beta(m, N + 1 - m), m = floor(r (N + 1)), if scores have no ties.

    Args:
        num_images: N; 0: not calibrated yet.
    """

    may_be_infinite = ("scores",)  # of loaded weights: -log of a probability of 0

    @checked
    @register_to_config
    def __init__(self, num_images: int = 0):
        super().__init__()
        self.register_buffer("scores", torch.zeros(num_images))  # (N,), ascending

    def forward(self, scores: Tensor) -> Tensor:
        """Compute the p-values (B,) of scores (B,). They are multiples of 1 / (N + 1), in float64.

        Raises:
            ValueError: not calibrated, or a score is NaN.
        """
        calibration = self._calibration_scores()
        refuse_nan(scores)
        below = torch.searchsorted(calibration, scores.to(calibration), right=False)
        counts = 1 + len(calibration) - below
        device = "cpu" if counts.device.type == "mps" else counts.device  # there is no float64 on mps
        return counts.to(device, torch.float64) / (len(calibration) + 1)

    def threshold(self, rate: float) -> float:
        """Return the score above which p(s) <= rate: the m-th largest of the N.

        Raises:
            ValueError: not calibrated, a rate outside (0, 1), or one that is too small for N images.
        """
        calibration = self._calibration_scores()
        return float(calibration[len(calibration) - max_alarms(len(calibration), rate)])

    def _calibration_scores(self) -> Tensor:
        if not len(self.scores):
            raise ValueError("This pipeline is not calibrated. Call pipeline.calibrate(...) with normal images.")
        refuse_nan(self.scores)
        return self.scores.contiguous()


def refuse_nan(scores: Tensor) -> None:
    """Raise ValueError if one of the scores (B,) is NaN: it is neither normal nor anomalous."""
    if scores.isnan().any():
        row = int(scores.isnan().flatten().nonzero()[0])
        raise ValueError(
            f"{int(scores.isnan().sum())} of {scores.numel()} anomaly scores are NaN, the first of image {row}. The "
            "networks or the calibration hold values that are not finite, or overflow: use float32, or fit again."
        )


def max_alarms(num_images: int, rate: float) -> int:
    """Return m, the largest number of alarms among N calibration images and a new one: the largest m with
    m / (N + 1) <= rate, in the same arithmetic as p-values.

    Raises:
        ValueError: the rate is not in (0, 1), or smaller than 1 / (N + 1); names the number of images that it needs.
    """
    if not 0 < rate < 1:
        raise ValueError(f"false_alarm_rate={rate} must be between 0 and 1, such as 0.001.")
    count = _floor(rate * (num_images + 1), lambda m: m / (num_images + 1) <= rate)
    if not count:
        raise ValueError(
            f"false_alarm_rate={rate:g} needs at least {min_calibration_images(rate):,} normal images to calibrate "
            f"on, but there are {num_images:,}. Give more images, or a rate of {1 / (num_images + 1):.2g} or more."
        )
    return count


def min_calibration_images(rate: float) -> int:
    """Return the least number N of calibration images for a false-alarm rate: 1 / (N + 1) <= rate; at most 2^53."""
    return _floor(min(1 / rate, 2.0**53 - 1), lambda n: 1 / n > rate)


def _floor(value: float, holds: Callable[[int], bool]) -> int:
    """Return the largest integer that `holds`, which is near `value`: rounding may have moved it across an integer."""
    return max(n for n in range(math.floor(value) - 1, math.floor(value) + 2) if n == math.floor(value) - 1 or holds(n))

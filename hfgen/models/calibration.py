"""What scores normal images have: the scale on which a new score is judged."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class CalibrationModel(ModelMixin, ConfigMixin):
    """Scores of N normal images that nothing was fitted to, and what follows for a new one with score s:

        p(s) = (1 + #{i: s_i >= s}) / (N + 1).

    If the new image is normal, its score is exchangeable with theirs, so p(s) <= r with probability at most r, whatever
    the scores' distribution is: calling images with p(s) <= r anomalous has a false-alarm rate of at most r (conformal
    p-values: Vovk et al. 2005, https://doi.org/10.1007/b106715; for outliers Bates et al. 2023,
    https://arxiv.org/abs/2104.08279). That is the rate over repetitions of the calibration; for one calibration it is
    distributed as Beta(m, N + 1 - m), m = floor(r (N + 1)), where scores have no ties.

    Args:
        num_images: N; 0: not calibrated yet.
    """

    @register_to_config
    def __init__(self, num_images: int = 0):
        super().__init__()
        self.register_buffer("scores", torch.zeros(num_images))  # (N,), ascending

    def forward(self, scores: Tensor) -> Tensor:
        """p-values (B,) of scores (B,): multiples of 1 / (N + 1)."""
        known = self._known()
        below = torch.searchsorted(known, scores.to(known), right=False)
        return (1 + len(known) - below).to(known.dtype) / (len(known) + 1)

    def threshold(self, rate: float) -> float:
        """The score above which p(s) <= rate: the m-th largest of the N.

        Raises:
            ValueError: the rate is none, or so small that no p-value reaches it; says how many images it needs.
        """
        known = self._known()
        return float(known[len(known) - alarms(len(known), rate)])

    def _known(self) -> Tensor:
        if not len(self.scores):
            raise ValueError("This pipeline is not calibrated: give normal images to pipeline.calibrate(...).")
        return self.scores.contiguous()


def alarms(num_images: int, rate: float) -> int:
    """m = floor(rate (N + 1)), how many of N calibration images and a new one may be called anomalous.

    Raises:
        ValueError: the rate is not in (0, 1), or smaller than 1 / (N + 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"false_alarm_rate={rate} must be between 0 and 1, such as 0.001.")
    count = math.floor(rate * (num_images + 1) * (1 + 1e-9))
    if not count:
        raise ValueError(
            f"false_alarm_rate={rate:g} needs at least {images_needed(rate):,} normal images to calibrate on, and "
            f"there are {num_images:,}. Give more, or a rate of {1 / (num_images + 1):.2g} or more."
        )
    return count


def images_needed(rate: float) -> int:
    """The fewest calibration images that a false-alarm rate can be had with: 1 / (N + 1) <= rate."""
    return math.ceil((1 - 1e-9) / rate) - 1

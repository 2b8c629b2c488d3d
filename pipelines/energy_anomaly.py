"""Anomaly detection with an energy of normal images."""

from collections.abc import Iterator
from typing import Any

from diffusers import ModelMixin
from torch import Tensor, nn

from hfgen.utils.arguments import checked

from .base import HFGenPipeline
from .class_condition import ClassConditionMixin
from .classes import check_classes
from .detector import DetectorMixin, check_detector
from .energy_terms import Summand, require_energy, total_energy
from .images import image_batch
from .inputs import check_count, sample_shape_of
from .outputs import require_numbers


class EnergyAnomalyPipeline(DetectorMixin, ClassConditionMixin, HFGenPipeline):
    """Find anomalies with an energy E(x) that was trained on normal images only: the score of an image is its energy,
    minus the log of its density but for a constant, and its heat map the square of dE/dx. `hfgen anomaly fit
    --pipeline` makes this pipeline from a trained EnergyPipeline; `calibrate` sets the threshold.

    A model of a density can find images more likely that are unlike all training images (Nalisnick et al. 2019,
    https://arxiv.org/abs/1810.09136): try it on such images.

    Args:
        energy_model: as an EnergyPipeline's, of images (C, H, W); one with a gradient alone has no scores.
        calibration: scores of normal images that nothing was trained on.
        false_alarm_rate: share of normal images that may be called anomalous.
        heat_scale: the value of a heat map that pictures show as hottest; `calibrate` sets it.
        center_crop, background: how training fitted images of another shape, and made transparent ones opaque; `hfgen
            anomaly score` does the same.
        num_classes, label_names: as an EnergyPipeline's. Images are scored without a class, by the null label.

    Raises:
        ValueError: classes that do not fit the energy, no null label, an energy of other items than images or with a
            gradient alone, or a number out of range.
    """

    model_cpu_offload_seq = "energy_model->calibration"
    score_name = "energy"

    @checked
    def __init__(
        self,
        energy_model: ModelMixin,
        calibration: ModelMixin,
        false_alarm_rate: float = 0.001,
        heat_scale: float = 1.0,
        center_crop: bool = True,
        background: str = "white",
        num_classes: int | None = None,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        check_classes(num_classes, label_names, energy_model)
        check_detector(false_alarm_rate, heat_scale)
        require_energy([Summand(1.0, energy_model, {})], "anomaly scores", needed=True)
        self.register_modules(energy_model=energy_model, calibration=calibration)
        self.register_to_config(
            false_alarm_rate=false_alarm_rate,
            heat_scale=heat_scale,
            center_crop=center_crop,
            background=background,
            num_classes=num_classes,
            label_names=label_names,
        )
        if len(self.sample_shape) != 3:
            raise ValueError(f"The energy is one of items {self.sample_shape}, and anomalies are found in images.")
        if num_classes is not None and self.null_label is None:
            raise ValueError(
                "The energy needs a class, and an image to score has none. Train one with --label_dropout above 0, or "
                "without classes."
            )

    @property
    def _conditioned(self) -> nn.Module:
        return self.energy_model

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape (C, H, W) of an image."""
        return sample_shape_of(self.energy_model)

    def _batch(self, images: Any) -> Tensor:
        return image_batch(images, self.sample_shape)

    def _scored(self, images: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_count("batch_size", batch_size)
        for part in self.progress_bar(images.split(batch_size)):
            _, kwargs = self._kwargs(len(part), None, 1.0)
            summands = [Summand(1.0, self.energy_model, kwargs)]
            # With the gradient in any case: without it the last bits of an energy are others.
            energy, gradient = total_energy(summands, part.to(self._execution_device), True)
            scores = require_numbers(energy.float(), "scores", self.components)  # as the calibration keeps them
            yield scores, gradient.square().sum(1)
        self.maybe_free_model_hooks()

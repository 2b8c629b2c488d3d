"""Classification of images with noise: what classifier guidance needs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..paths import Path
from ..utils.arguments import checked
from ..utils.ranges import BELOW_1, check_range
from .base import Loss, Objective, Step, loss_with_logs
from .denoising import Denoising


class NoisyClassification(Objective):
    """Cross-entropy of p(class | x_t, t) at times of a path, low-discrepancy uniform in t (Dhariwal & Nichol 2021,
    https://arxiv.org/abs/2105.05233, section 4).

    Args:
        path: of the denoiser that the classifier is to guide.
        noise: off: only data without noise, at the path's first time step.
        label_smoothing: share of the target that is uniform over classes.

    Raises:
        ValueError: `label_smoothing` is out of range.
    """

    players = ("classifier",)

    @checked
    def __init__(self, path: Path, noise: bool = True, label_smoothing: float = 0.0):
        check_range("label_smoothing", label_smoothing, BELOW_1)
        # The weight is not used: with this one no prediction kind is refused.
        self._noise = Denoising(path, "epsilon", "low_discrepancy", weighting="min_snr")
        self.path, self.noise, self.label_smoothing = path, noise, label_smoothing

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the cross-entropy for "x" (B, *item) and "labels" (B,), with the accuracy in the logs.

        Raises:
            ValueError: there are no labels.
        """
        if "labels" not in batch:
            raise ValueError("A classifier needs labels, and the data have none; name the column: --label_column")
        count = len(batch["x"])
        t = self._noise.times(step, count) if self.noise else self.path.snap(torch.full((count,), 1e-9).double())
        noisy = self._noise.noisy(batch, step, t)
        seen = noisy.scaled if self.noise else noisy.x_0
        logits = networks[player](seen, noisy.timestep).logits.float()
        right = (logits.argmax(1) == batch["labels"]).float().mean()
        loss = cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)
        return loss_with_logs(loss, {"accuracy": right})

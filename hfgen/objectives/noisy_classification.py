"""Classification of images with noise: what classifier guidance needs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..paths import Path
from ..utils.arguments import checked
from ..utils.ranges import BELOW_1, check_range
from .augmentation import augment, check_names
from .base import Loss, Objective, Step, loss_with_logs
from .denoising import Denoising


class NoisyClassification(Objective):
    """Cross-entropy of p(class | x_t, t) at times of a path, low-discrepancy uniform in t (Dhariwal & Nichol 2021,
    https://arxiv.org/abs/2105.05233, section 4).

    Args:
        path: of the denoiser that the classifier is to guide.
        noise: off: only data without noise, at the path's first time step.
        label_smoothing: share of the target that is uniform over classes.
        augment: names in AUGMENTATIONS, for images (B, C, H, W) only; with `noise` off.

    Raises:
        ValueError: `label_smoothing` is out of range, an unknown augmentation, or one of images with noise.
    """

    players = ("classifier",)

    @checked
    def __init__(self, path: Path, noise: bool = True, label_smoothing: float = 0.0, augment: Sequence[str] = ()):
        check_range("label_smoothing", label_smoothing, BELOW_1)
        check_names(augment)
        if noise and augment:
            raise ValueError(f"augment={list(augment)} is for clean images. Set noise=False, or leave it out.")
        # The weight is not used: with this one no prediction kind is refused.
        self._noise = Denoising(path, "epsilon", "low_discrepancy", weighting="min_snr")
        self.path, self.noise, self.label_smoothing, self.augment = path, noise, label_smoothing, tuple(augment)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the cross-entropy for "x" (B, *item) and "labels" (B,), with the accuracy in the logs.

        Raises:
            ValueError: there are no labels.
        """
        if "labels" not in batch:
            raise ValueError("A classifier needs labels, and the data have none; name the column: --label_column")
        count = len(batch["x"])
        t = self._noise.times(step, count) if self.noise else self.path.snap(torch.full((count,), 1e-9).double())
        shown = {**batch, "x": augment(batch["x"], self.augment, step, "clean")}
        noisy = self._noise.noisy(shown, step, t)
        seen = noisy.scaled if self.noise else noisy.x_0
        logits = networks[player](seen, noisy.timestep).logits.float()
        right = (logits.argmax(1) == batch["labels"]).float().mean()
        loss = cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)
        return loss_with_logs(loss, {"accuracy": right})

"""Classes of a pipeline whose network is told them, with guidance by the null label."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.models.conditions import ClassCondition

from .inputs import labels_of


class ClassConditionMixin:
    """For a pipeline with `num_classes` and `label_names` in its configuration. A subclass says which network it is
    that has the classes: `_conditioned`."""

    @property
    def _conditioned(self) -> nn.Module:
        """Return the network that has the classes."""
        raise NotImplementedError

    @property
    def null_label(self) -> int | None:
        """Return the label that stands for "any class", or None if the model was trained without one."""
        config, classes = getattr(self._conditioned, "config", None), self.config.num_classes
        embeddings = getattr(config, "num_class_embeds", None)
        return classes if embeddings and classes is not None and embeddings > classes else None

    @property
    def condition(self) -> ClassCondition | None:
        """Return the class labels' condition, as in training; None for an unconditional model."""
        return None if self.config.num_classes is None else ClassCondition(self.config.num_classes)

    def _kwargs(self, batch_size: int | None, class_labels: Any, scale: float) -> tuple[int, dict[str, Tensor]]:
        """Return the batch size and the network's keyword arguments for these classes."""
        count, labels = labels_of(class_labels, batch_size, self.config.num_classes, self.config.label_names)
        self._check_guidance(scale, labels)
        if self.condition is None:
            return count, {}
        if labels is None and self.null_label is None:
            way = ", or use of_class(label)" if hasattr(self, "of_class") else ""
            raise ValueError(f"This model needs class_labels, from 0 to {self.config.num_classes - 1}{way}.")
        numbers = torch.zeros(count, dtype=torch.long) if labels is None else labels
        kwargs = self.condition.kwargs({"labels": numbers.to(self._execution_device)})
        return count, self.condition.null(kwargs) if labels is None else kwargs

    def _check_guidance(self, scale: float, labels: Any) -> None:
        """Raise ValueError for guidance without classes or of a model without a null label, and for one not finite."""
        if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
            raise ValueError(f"guidance_scale={scale} must be a finite number; 1 is no guidance.")
        if scale != 1.0 and (labels is None or self.null_label is None):
            why = "class_labels are needed" if labels is None else "the model was trained without label dropout"
            raise ValueError(f"guidance_scale={scale} can't be used: {why}. Use guidance_scale=1.")


def rows_of(kwargs: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return some rows of tensors (B, ...)."""
    return {name: value[rows.to(value.device)] for name, value in kwargs.items()}

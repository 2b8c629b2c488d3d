"""The condition of a loss: what the network is told besides the items, and for which of them it is dropped."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..models.conditions import ClassCondition, Condition
from .base import Step


def condition_of(num_classes: int | None, condition: Condition | None) -> Condition | None:
    """Return the condition of an objective, which a number of classes is short for.

    Raises:
        ValueError: both are given.
    """
    if num_classes is not None and condition is not None:
        raise ValueError(f"{num_classes=} stands for condition=ClassCondition(...). Give one of the two.")
    return condition if num_classes is None else ClassCondition(num_classes)


def dropped_rows(rate: float, step: Step, count: int) -> Tensor:
    """Return for each of `count` items whether its condition is dropped, bool (B,) on the CPU."""
    return step.rand("label_dropout", count) < rate


def condition_kwargs(
    condition: Condition | None,
    rate: float,
    batch: Mapping[str, Tensor],
    networks: Mapping[str, nn.Module],
    step: Step,
) -> dict[str, Tensor]:
    """Return the network's keyword arguments (B, ...) for the condition, null with probability `rate`."""
    if condition is None:
        return {}
    kwargs = condition.kwargs(batch, networks)
    return condition.dropped(kwargs, dropped_rows(rate, step, len(batch["x"])))

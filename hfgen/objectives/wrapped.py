"""Objectives around another one."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..utils.arguments import checked
from .base import Objective


class Wrapped(Objective):
    """Base of an objective that changes what another one sees of a batch. Players, turns, constraints, condition and
    state are those of the other one.

    Args:
        inner: the other objective.
    """

    @checked
    def __init__(self, inner: Objective):
        self.inner = inner
        for name in ("players", "needs", "batches_per_step", "differentiates_twice", "state"):
            setattr(self, name, getattr(inner, name))

    @property
    def condition(self) -> Any:
        """Return the condition of the inner objective, None if it has none."""
        return getattr(self.inner, "condition", None)

    @property
    def label_dropout(self) -> float:
        """Return the label dropout of the inner objective, 0 if it has none."""
        return getattr(self.inner, "label_dropout", 0.0)

    def turns(self, number: int) -> tuple[str, ...]:
        """Return the turns of the inner objective."""
        return self.inner.turns(number)

    def project(self, player: str, network: nn.Module) -> None:
        """Project weights as the inner objective does."""
        self.inner.project(player, network)

    def constrain(self, player: str, networks: Mapping[str, nn.Module]) -> None:
        """Change weights or `state` as the inner objective does."""
        self.inner.constrain(player, networks)

"""Prior preservation: a model that learns new items keeps what it knew (Ruiz et al. 2022,
https://arxiv.org/abs/2208.12242)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, check_range
from .base import Loss, Objective, Step

PRIOR = "prior_"
"""Beginning of the names of tensors in a batch that the model has drawn itself."""


class PriorPreservation(Objective):
    """An objective on new items, and on samples that the model drew before it learnt them:

        L = L(new) + weight L(samples)

    The samples are in the same batch, under names that begin with `prior_`. Both losses have random numbers of their
    own.

    Args:
        objective: L.
        weight: of the samples.

    Raises:
        ValueError: the weight is not above 0.
    """

    @checked
    def __init__(self, objective: Objective, weight: float = 1.0):
        check_range("prior_weight", weight, ABOVE_0)
        self.objective, self.weight = objective, weight
        for name in ("players", "needs", "call", "batches_per_step", "differentiates_twice", "state"):
            setattr(self, name, getattr(objective, name))

    @property
    def condition(self) -> Any:
        """Return the condition of the objective; None if it has none."""
        return getattr(self.objective, "condition", None)

    @property
    def label_dropout(self) -> float:
        """Return the share of items without their condition; 0 for an objective without conditions."""
        return getattr(self.objective, "label_dropout", 0.0)

    def turns(self, number: int) -> tuple[str, ...]:
        """Return the objective's turns."""
        return self.objective.turns(number)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the sum, with the loss of the samples in the log as "prior_loss"."""
        own = {name: tensor for name, tensor in batch.items() if not name.startswith(PRIOR)}
        drawn = {name.removeprefix(PRIOR): tensor for name, tensor in batch.items() if name.startswith(PRIOR)}
        if "x" not in drawn:
            raise ValueError(f"The batch has no {PRIOR}x: samples that the model drew before it learns new items.")
        apart = dataclasses.replace(step, turn=step.turn + len(self.turns(step.number)))
        new, old = (self.objective.loss(player, networks, *each) for each in ((own, step), (drawn, apart)))
        return Loss(new.value + self.weight * old.value, {**new.logs, "prior_loss": old.value.detach()})

    def project(self, player: str, network: nn.Module) -> None:
        """Project as the objective does."""
        self.objective.project(player, network)

    def constrain(self, player: str, networks: Mapping[str, nn.Module]) -> None:
        """Change weights and state as the objective does."""
        self.objective.constrain(player, networks)

"""Prior preservation: a model that learns new items keeps what it knew (Ruiz et al. 2022,
https://arxiv.org/abs/2208.12242)."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, check_range
from .base import Loss, Objective, Step
from .wrapped import Wrapped

PRIOR = "prior_"
"""Beginning of the names of tensors in a batch that the model has drawn itself."""


class PriorPreservation(Wrapped):
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
        super().__init__(objective)
        self.call, self.weight = objective.call, weight

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the sum, with the loss of the samples in the log as "prior_loss"."""
        own = {name: tensor for name, tensor in batch.items() if not name.startswith(PRIOR)}
        drawn = {name.removeprefix(PRIOR): tensor for name, tensor in batch.items() if name.startswith(PRIOR)}
        if "x" not in drawn:
            raise ValueError(f"The batch has no {PRIOR}x: samples that the model drew before it learns new items.")
        apart = dataclasses.replace(step, turn=step.turn + len(self.turns(step.number)))
        new, old = (self.inner.loss(player, networks, *each) for each in ((own, step), (drawn, apart)))
        return Loss(new.value + self.weight * old.value, {**new.logs, "prior_loss": old.value.detach()})

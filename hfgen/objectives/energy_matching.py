"""Energy matching: a flow's regression far from the data, and contrastive divergence near them, for one energy."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, COUNT_OR_0, check_range
from .base import Loss, Objective, Step, loss_with_logs
from .contrastive import ContrastiveDivergence
from .equilibrium import EquilibriumMatching


class EnergyMatching(Objective):
    """Energy matching (Balcerak et al. 2025, https://arxiv.org/abs/2504.10612): one energy that transports noise to the
    data, and has their density near them,

        L = L_flow                      for the first `flow_steps` steps,
        L = L_flow + weight L_CD        afterwards.

    L_flow is a regression of dE/dx on the way from noise to data, L_CD the contrastive divergence of chains of Langevin
    dynamics. The first phase makes the landscape that leads chains to the data, so that the second needs few and short
    chains. Where the paper's regression has a constant length, ours falls to zero at the data, as in equilibrium
    matching: there the contrastive part is left to shape the energy by itself.

    The logs are those of both: "loss", "flow" and, in the second phase, "gap" and energies.

    Args:
        flow: the regression.
        contrast: the contrastive part; its `state` is this objective's.
        flow_steps: optimiser steps of the first phase.
        weight: of L_CD.

    Raises:
        ValueError: a number out of range, or parts with different conditions.
    """

    players = ("energy",)
    differentiates_twice = True

    @checked
    def __init__(
        self, flow: EquilibriumMatching, contrast: ContrastiveDivergence, flow_steps: int, weight: float = 1.0
    ):
        check_range("flow_steps", flow_steps, COUNT_OR_0)
        check_range("weight", weight, AT_LEAST_0)
        classes = [getattr(part.condition, "num_classes", None) for part in (flow, contrast)]
        if classes[0] != classes[1]:
            raise ValueError(f"flow and contrast have num_classes {classes[0]} and {classes[1]}. Give both the same.")
        self.flow, self.contrast, self.flow_steps, self.weight = flow, contrast, flow_steps, weight
        self.condition, self.label_dropout, self.state = flow.condition, flow.label_dropout, contrast.state

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the loss for "x" (B, *item), and the condition."""
        flow = self.flow.loss(player, networks, batch, step)
        if step.number < self.flow_steps:
            return loss_with_logs(flow.value, {"flow": flow.value})
        contrast = self.contrast.loss(player, networks, batch, step)
        logs = {name: value for name, value in contrast.logs.items() if name != "loss"}
        value: Tensor = torch.add(flow.value, contrast.value, alpha=self.weight)
        return loss_with_logs(value, {"flow": flow.value, **logs})

"""A coupling flow of points in the plane, one coupling after the other."""

import torch
from torch import Tensor, nn

from ..distributions.densities import standard_normal_log_prob
from ..models.flow_layers import Coupling


class FlowStages:
    """The way of points from latents to samples of a flow with one level. At stage k, k couplings are undone.

    Attributes:
        count: number of couplings.

    Args:
        flow: a `CouplingFlowModel` of images (2, 1, 1).
    """

    def __init__(self, flow: nn.Module):
        self.layers = list(flow.levels[0])
        self.places = [at for at, layer in enumerate(self.layers) if isinstance(layer, Coupling)]
        self.count = len(self.places)

    @torch.no_grad()
    def density(self, x: Tensor, stage: int) -> Tensor:
        """Return the log density (M,) of points x (M, 2) at a stage: exactly, by the layers that are undone."""
        x, log_det = x.float()[:, :, None, None], 0.0
        for layer in self.layers[self._first_layer(stage) :]:
            x, change = layer(x)
            log_det = log_det + change
        return (standard_normal_log_prob(x) + log_det).double()

    @torch.no_grad()
    def moved(self, x: Tensor, stage: int) -> Tensor:
        """Return where points x (M, 2) of a stage are at the next one."""
        moved = x.float()[:, :, None, None]
        for layer in reversed(self.layers[self._first_layer(stage + 1) : self._first_layer(stage)]):
            moved = layer.inverse(moved)
        return moved.flatten(1).to(x)

    def _first_layer(self, stage: int) -> int:
        """Return the first of the layers that are undone; at the last stage these are all, with those before any
        coupling."""
        if stage in (0, self.count):
            return len(self.layers) if stage == 0 else 0
        return self.places[self.count - stage]

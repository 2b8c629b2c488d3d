"""An autoregressive model of points in the plane, one coordinate after the other."""

import math

import torch
from torch import Tensor, nn


class Coordinates:
    """The way of points from noise to samples: first along one axis, then along the other. At time t from 1 to 1/2 the
    first coordinate is on its way, from 1/2 to 0 the second one.

    Args:
        model: a `MaskedAutoregressiveModel` of points (2, 1, 1).
        noise: standard normal points (N, 2).
    """

    def __init__(self, model: nn.Module, noise: Tensor):
        self.model, self.noise = model, noise
        self.samples = model.draw(torch.special.ndtr(noise)[:, :, None]).flatten(1)
        self.half = torch.stack([self.samples[:, 0], noise[:, 1]], 1)

    def position(self, t: float) -> Tensor:
        """Return the points (N, 2) at a time."""
        if t > 0.5:
            return torch.lerp(self.half, self.noise, 2 * t - 1)
        return torch.lerp(self.samples, self.half, 2 * t)

    @torch.no_grad()
    def density(self, x: Tensor, t: float) -> Tensor:
        """Return the log density (M,) of points x (M, 2): that of the coordinates that are drawn, with a normal one for
        each of the others."""
        params = self.model(x.float()[:, :, None, None]).params[:, :, 0]  # (M, 2, P)
        learned = self.model.conditional.log_prob(params, x.float()).double()
        normal = -(x.square() + math.log(2 * math.pi)) / 2
        return torch.where(torch.tensor([t <= 0.5, t == 0]), learned, normal).sum(1)

    def slope(self, x: Tensor, t: float) -> Tensor:
        """Return the gradient of the log density of samples at points x (M, 2), whatever the time."""
        with torch.enable_grad():
            inputs = x.float()[:, :, None, None].requires_grad_()
            (gradient,) = torch.autograd.grad(self.model(inputs).log_prob.sum(), inputs)
        return gradient.flatten(1).double()

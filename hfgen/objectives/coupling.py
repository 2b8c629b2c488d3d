"""Couplings: which noise belongs to which item of a batch."""

import torch
from torch import Tensor


def optimal_coupling(x: Tensor, noise: Tensor) -> Tensor:
    """Return the same noise (B, *item) in the order that minimises sum_i |x_i - noise_i|^2: mini-batch optimal
    transport (Pooladian et al. 2023, https://arxiv.org/abs/2304.14772; Tong et al. 2024,
    https://arxiv.org/abs/2302.00482).

    Ways from noise to items then cross less, so that one direction at each place suffices, whatever the time. The
    assignment is SciPy's, whose time grows with the cube of B: a millisecond for 128 items.

    Args:
        x: the items (B, *item).
        noise: as many.
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x.detach().flatten(1).double().cpu(), noise.flatten(1).double().cpu()).square()
    _, order = linear_sum_assignment(cost.numpy())
    return noise[torch.from_numpy(order).to(noise.device)]

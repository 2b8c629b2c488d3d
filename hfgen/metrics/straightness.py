"""How far the trajectories of an ODE deviate from straight lines.

Liu et al. 2023, https://arxiv.org/abs/2209.03003 (section 2.2).
"""

from torch import Tensor

from ..utils.arguments import checked


@checked
def straightness(trajectory: Tensor) -> Tensor:
    """Compute S, the variation of each trajectory's velocity per dimension, (B,). A straight line has S = 0:

        S = 1/d int_0^1 || (x_1 - x_0) - v(x_t, t) ||^2 dt = 1/d ( n sum_i || D_i ||^2 - || sum_i D_i ||^2 )

    with the velocities n D_i of n equal Euler steps D_i, which sum to x_1 - x_0. d is the number of dimensions of an
    item. Where S is 0, one Euler step is exact.

    Args:
        trajectory (n + 1, B, ...): the samples before the first step, and after each of n >= 2 equal Euler steps.

    Raises:
        ValueError: no batch or item dimension, or fewer than two steps: a single step is straight for any model;
            or values that are not finite.
    """
    if trajectory.ndim < 3:
        raise ValueError(f"trajectory {tuple(trajectory.shape)} must be (n + 1, B, ...), with dimensions of an item.")
    if not trajectory.isfinite().all():
        raise ValueError("The trajectory holds values that are not finite (NaN or infinite).")
    if len(trajectory) < 3:
        raise ValueError(f"A trajectory of {len(trajectory)} points is always straight; take two Euler steps or more.")
    steps = trajectory.double().flatten(2).diff(dim=0)  # (n, B, d)
    return (len(steps) * steps.square().sum(0) - steps.sum(0).square()).mean(1)

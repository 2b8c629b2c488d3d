"""The posterior of a less noisy state, q(x_s | x_t, x_0), on any path."""

from typing import Any


def posterior_of(now: Any, then: Any, large: Any = None) -> tuple[Any, Any, Any, Any]:
    """Compute (keep, gain, small, large), see `hfgen.schedulers.table.posterior`, for numbers or tensors.

    Args:
        now, then: points of a path, with alpha and sigma, at t and at s < t.
        large: the variance of a step from s to t, where it is known; None: computed.
    """
    a, ratio = now.alpha / then.alpha, (then.sigma / now.sigma) ** 2
    large = now.sigma**2 - (a * then.sigma) ** 2 if large is None else large
    return a * ratio, then.alpha * large / now.sigma**2, ratio * large, large

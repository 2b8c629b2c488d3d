"""Limits on the estimate of x_0: clipping and dynamic thresholding."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def limiter(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """Return the function that a configuration applies to x_0 before it is used; None if it applies none.

    Raises:
        ValueError: a number out of range.
    """
    for name in ("dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range"):
        value = config.get(name, 1.0)
        if not 0 < value < math.inf or (name == "dynamic_thresholding_ratio" and value > 1):
            raise ValueError(f"{name}={value} must be above 0 and finite, and a ratio at most 1.")
    if config.get("thresholding"):
        ratio, largest = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        return lambda x_0: dynamic_threshold(x_0, ratio, largest)
    if config.get("clip_sample"):
        bound = config["clip_sample_range"]
        return lambda x_0: x_0.clamp(-bound, bound)
    return None


def dynamic_threshold(x_0: Tensor, ratio: float, largest: float) -> Tensor:
    """Compute clamp(x_0, -s, s) / s, where s is the `ratio` quantile of |x_0| of each sample, clamped to [1, largest].

    If `largest` is below 1, s is `largest`. Saharia et al. 2022, https://arxiv.org/abs/2205.11487, section 2.3.

    Args:
        x_0 (B, ...): float32 or float64.
        ratio: the quantile, in [0, 1].
        largest: upper bound of s.
    """
    s = torch.quantile(x_0.abs().flatten(1), ratio, dim=1).clamp(min=1).clamp(max=largest)
    s = s.reshape(-1, *[1] * (x_0.ndim - 1))
    return torch.clamp(x_0, -s, s) / s

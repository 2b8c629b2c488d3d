"""What may be done to an estimate of x_0 before it is used: clipping and dynamic thresholding."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def limiter(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """What a configuration says is to be done to x_0 before it is used; None: nothing."""
    if config.get("thresholding"):
        ratio, largest = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        return lambda x_0: dynamic_threshold(x_0, ratio, largest)
    if config.get("clip_sample"):
        bound = config["clip_sample_range"]
        return lambda x_0: x_0.clamp(-bound, bound)
    return None


def dynamic_threshold(x_0: Tensor, ratio: float, largest: float) -> Tensor:
    """clamp(x_0, -s, s) / s, s = the `ratio` quantile of |x_0| of each sample, kept in [1, largest].

    A `largest` below 1 wins over the 1. Saharia et al. 2022, https://arxiv.org/abs/2205.11487, section 2.3.
    x_0 (B, ...), float32 or float64.
    """
    s = torch.quantile(x_0.abs().flatten(1), ratio, dim=1).clamp(min=1).clamp(max=largest)
    s = s.reshape(-1, *[1] * (x_0.ndim - 1))
    return torch.clamp(x_0, -s, s) / s

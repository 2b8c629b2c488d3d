"""The optimisers of a player, as rows of one table: a new one is a row here, and its options in `hfgen.options`."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..options import TrainArgs


class OptimizerRow(NamedTuple):
    """An optimiser.

    Attributes:
        make: parameters, learning rate -> optimiser.
        settings: options of the run -> entries of the optimiser's parameter groups, set whenever a run begins or
            resumes.
        moments: number of tensors that it keeps for each parameter.
    """

    make: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    settings: Callable[[TrainArgs], dict[str, Any]]
    moments: int


def _adamw_settings(args: TrainArgs) -> dict[str, Any]:
    betas = args.adam_beta1, args.adam_beta2
    return {"betas": betas, "eps": args.adam_epsilon, "weight_decay": args.adam_weight_decay}


OPTIMIZERS = {
    "adamw": OptimizerRow(
        lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate, fused=True), _adamw_settings, moments=2
    ),
    "rmsprop": OptimizerRow(
        lambda parameters, rate: torch.optim.RMSprop(parameters, lr=rate),
        lambda args: {"alpha": args.rmsprop_alpha},
        moments=1,
    ),
}
"""Optimisers by the values of `--optimizer`: AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), which
without weight decay is Adam; and RMSProp (Tieleman & Hinton 2012) without momentum, the optimiser of WGAN."""

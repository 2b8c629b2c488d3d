"""The optimisers of a player, as rows of one table: a new one is a row here, and its options in `hfgen.options`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..options import TrainArgs
from .muon import Muon, hidden_matrices


class OptimizerRow(NamedTuple):
    """An optimiser.

    Attributes:
        make: network, learning rate -> optimiser of its parameters that learn.
        settings: options of the run -> entries of the optimiser's parameter groups, set whenever a run begins or
            resumes.
        moments: network -> bytes of the tensors that it keeps for the parameters that learn.
    """

    make: Callable[[nn.Module, float], torch.optim.Optimizer]
    settings: Callable[[TrainArgs], dict[str, Any]]
    moments: Callable[[nn.Module], int]


def learning(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a network that learn."""
    return [p for p in network.parameters() if p.requires_grad]


def _bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in learning(network))


def _muon_bytes(network: nn.Module) -> int:
    return 2 * _bytes(network) - sum(p.numel() * p.element_size() for p in hidden_matrices(network))


def _adamw_settings(args: TrainArgs) -> dict[str, Any]:
    betas = args.adam_beta1, args.adam_beta2
    return {"betas": betas, "eps": args.adam_epsilon, "weight_decay": args.adam_weight_decay}


def _muon_settings(args: TrainArgs) -> dict[str, Any]:
    matrices = {"ratio": args.muon_ratio, "momentum": args.muon_momentum, "matrix_decay": args.muon_weight_decay}
    return {**_adamw_settings(args), **matrices}


OPTIMIZERS = {
    "adamw": OptimizerRow(
        lambda network, rate: torch.optim.AdamW(learning(network), lr=rate, fused=True),
        _adamw_settings,
        moments=lambda network: 2 * _bytes(network),
    ),
    "rmsprop": OptimizerRow(
        lambda network, rate: torch.optim.RMSprop(learning(network), lr=rate),
        lambda args: {"alpha": args.rmsprop_alpha},
        moments=_bytes,
    ),
    "muon": OptimizerRow(Muon, _muon_settings, moments=_muon_bytes),
}
"""Optimisers by the values of `--optimizer`: AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), which
without weight decay is Adam; RMSProp (Tieleman & Hinton 2012) without momentum, the optimiser of WGAN; and Muon for
hidden matrices with AdamW for the rest, see `hfgen.trainer.muon`."""

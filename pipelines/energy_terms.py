"""Sums of energies: terms that a caller names, and networks ready to be evaluated."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .inputs import check_number


class EnergyTerm(NamedTuple):
    """A term of a sum of energies, weight E(x | class).

    Args:
        weight: its factor. The density is the product of those of the terms, each to the power of its weight: weights
            of 1 make samples that both terms find likely; a negative weight leads away from what its term finds likely.
        class_label: a class by number or name; None: any class.
        pipeline: an `EnergyPipeline` of items of the same shape; None: the one that is called.
    """

    weight: float = 1.0
    class_label: int | str | None = None
    pipeline: Any = None


class Summand(NamedTuple):
    """A term ready to be evaluated: factor, network, and the network's keyword arguments (B, ...)."""

    weight: float
    network: nn.Module
    kwargs: dict[str, Tensor]


SumAt = Callable[[float], list[Summand]]
"""Guidance scale -> the terms of a sum of energies."""


def total_energy(summands: Sequence[Summand], x: Tensor, with_gradient: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the sum of energies (B,), in float64 where the device has it, and its gradient (B, *item) in float32 on
    request.

    The energy is None if a network has its gradient alone.
    """
    energies, gradients = [], []
    for weight, network, kwargs in summands:
        dtype = next((p.dtype for p in network.parameters()), x.dtype)
        out = network(x.to(dtype), **kwargs, with_gradient=with_gradient)
        energies.append(None if out.energy is None else weight * out.energy)
        gradients.append(None if out.gradient is None else weight * out.gradient)
    real = torch.float32 if x.device.type == "mps" else torch.float64
    energy = None if any(value is None for value in energies) else sum(value.to(real) for value in energies)
    return energy, sum(value.float() for value in gradients) if with_gradient else None


def require_energy(summands: Sequence[Summand], what: str, needed: bool) -> None:
    """Raise ValueError where a network without an energy would have to say it."""
    if needed and not all(getattr(summand.network, "has_energy", True) for summand in summands):
        raise ValueError(
            f"This model has the gradient of an energy alone (form 'field'), and {what} need the energy itself. Train "
            "one with --form dot."
        )


def energy_terms(terms: Any) -> list[EnergyTerm]:
    """Return terms. Raises ValueError for what is none."""
    found = []
    for term in terms if isinstance(terms, Sequence) and not isinstance(terms, str | EnergyTerm) else [terms]:
        if not isinstance(term, tuple) or not 1 <= len(term) <= 3:
            raise ValueError(f"terms hold {term!r}; give tuples (weight, class, pipeline), or (weight, class).")
        check_number("weight", term[0])
        found.append(EnergyTerm(*term))
    if not found:
        raise ValueError("terms are empty; give at least one (weight, class).")
    return found

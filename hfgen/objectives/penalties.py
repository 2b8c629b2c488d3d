"""Penalties and constraints of a discriminator, which make the game settle.

A penalty holds a weight, a name for logs, and `value(turn)`: the mean over the batch in one turn of the discriminator.
Its fields have the names of the papers' hyperparameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, COUNT, check_range
from .augmentation import augment, check_names
from .base import Step


@dataclass(frozen=True)
class CriticTurn:
    """One turn of the discriminator D, the input of all penalties. Items may have any shape (B, *item).

    Attributes:
        score: items (B, *item) -> D's scores (B,) of them in float32, given the labels of this batch.
        real, fake: real and generated items (B, *item) of the turn, as D saw them. They require grad if an active
            penalty names them in `grad_inputs`.
        real_scores, fake_scores: D's scores (B,) of them.
        replay: uniform numbers (B,) in [0, 1) -> items (B, *item) generated in earlier steps; None in the first step.
        step: the source of randomness.
    """

    score: Callable[[Tensor], Tensor]
    real: Tensor
    fake: Tensor
    real_scores: Tensor
    fake_scores: Tensor
    replay: Callable[[Tensor], Tensor | None]
    step: Step


@checked
@dataclass(frozen=True)
class Term(ABC):
    """A term of a player's loss besides the adversarial loss. Raises ValueError for a number out of range.

    Attributes:
        weight: factor of the term.
        every: the term is added in every so many-th optimiser step only, with `every` times the weight (lazy
            regularisation, Karras et al. 2020, https://arxiv.org/abs/1912.04958).
        name: name in logs.
    """

    name: ClassVar[str]
    weight: float
    every: int = 1

    def __post_init__(self) -> None:
        check_range(f"{type(self).__name__}: weight", self.weight, ABOVE_0)
        check_range(f"{type(self).__name__}: every", self.every, COUNT)

    def is_active(self, step: Step) -> bool:
        """Return whether the term is part of the loss in this step."""
        return step.number % self.every == 0

    @abstractmethod
    def value(self, turn: Any) -> Tensor:
        """Compute the term without `weight` and `every`, a mean over the batch: ()."""


class Penalty(Term):
    """A term of D's loss, whose turn is a `CriticTurn`.

    Attributes:
        grad_inputs: "real", "fake" or both: the items of `CriticTurn` that must require grad.
    """

    grad_inputs: ClassVar[tuple[str, ...]] = ()


def weighted_values(terms: Iterable[Term], turn: Any) -> dict[str, Tensor]:
    """Compute weight x every x value of each term: {name: ()}."""
    return {term.name: term.weight * term.every * term.value(turn) for term in terms}


@checked
@dataclass(frozen=True)
class GradientPenalty(Penalty):
    """E (||grad D(x)|| - 1)^2 on lines between real and generated items, x = u x_r + (1 - u) x_f with u uniform in
    [0, 1): the soft 1-Lipschitz constraint of WGAN-GP (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028)."""

    name = "gradient_penalty"
    weight: float = 10.0

    def value(self, turn: CriticTurn) -> Tensor:
        """Compute the penalty: ()."""
        real, fake = turn.real.detach(), turn.fake.detach()
        u = turn.step.uniform("gradient_penalty", real.new_empty(len(real), *[1] * (real.ndim - 1)))
        x = torch.lerp(fake, real, u).requires_grad_()
        return (gradients(turn.score(x), x).norm(dim=1) - 1).square().mean()


@checked
@dataclass(frozen=True)
class R1(Penalty):
    """E ||grad D(x)||^2 / 2 on real items (Mescheder et al. 2018, https://arxiv.org/abs/1801.04406)."""

    name, grad_inputs = "r1", ("real",)

    def value(self, turn: CriticTurn) -> Tensor:
        """Compute the penalty: ()."""
        return gradients(turn.real_scores, turn.real).square().sum(1).mean() / 2


@checked
@dataclass(frozen=True)
class R2(Penalty):
    """E ||grad D(x)||^2 / 2 on generated items (Mescheder et al. 2018)."""

    name, grad_inputs = "r2", ("fake",)

    def value(self, turn: CriticTurn) -> Tensor:
        """Compute the penalty: ()."""
        return gradients(turn.fake_scores, turn.fake).square().sum(1).mean() / 2


@checked
@dataclass(frozen=True)
class Consistency(Penalty):
    """E |D(x) - D(T(x))|^2 on real images x (B, C, H, W), where T is an augmentation (Zhang et al. 2020,
    https://arxiv.org/abs/1910.12027).

    Attributes:
        transforms: names of the augmentations that make up T, in order.
    """

    name = "consistency"
    transforms: tuple[str, ...] = ("translation",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.transforms)

    def value(self, turn: CriticTurn) -> Tensor:
        """Compute the penalty: (). Raises ValueError for items that are not images."""
        augmented = augment(turn.real.detach(), self.transforms, turn.step, "consistency")
        return (turn.real_scores - turn.score(augmented)).square().mean()


@checked
@dataclass(frozen=True)
class Control(Penalty):
    """(E D(x)^2 + E D(x')^2) / 2, where x is real and x' was generated in earlier steps: closed-loop control, negative
    feedback on D as a function (CLC-GAN, Xu et al. 2020, https://arxiv.org/abs/1909.13188).

    The items x' come from the objective's `ReplayBuffer`. In the first step they are the generated items of that step.
    """

    name = "control"

    def value(self, turn: CriticTurn) -> Tensor:
        """Compute the penalty: ()."""
        past = turn.replay(turn.step.rand("recall", len(turn.real)))
        past_scores = turn.fake_scores if past is None else turn.score(past.to(turn.real.dtype))
        return (turn.real_scores.square().mean() + past_scores.square().mean()) / 2


@checked
@dataclass(frozen=True)
class WeightClipping:
    """A constraint: every parameter of D is clipped to [-bound, bound] after each turn of D, as in WGAN (Arjovsky et
    al. 2017, https://arxiv.org/abs/1701.07875). Raises ValueError unless the bound is above 0."""

    bound: float = 0.01

    def __post_init__(self) -> None:
        check_range("bound", self.bound, ABOVE_0)

    def apply(self, network: nn.Module) -> None:
        """Clip the parameters of a network in place."""
        for p in network.parameters():
            p.clamp_(-self.bound, self.bound)


def gradients(scores: Tensor, items: Tensor) -> Tensor:
    """Compute grad_x D(x) of each item, flattened: (B, dimensions).

    The result can be differentiated again.

    Args:
        scores (B,): D's scores. Each one depends on its own item only.
        items (B, *item): the items x, which require grad.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), items, create_graph=True)
    return gradient.flatten(1)


def mode_seeking(z: Tensor, other_z: Tensor, items: Tensor, other_items: Tensor) -> Tensor:
    """Compute E |z - z'| / |G(z) - G(z')| with mean absolute differences: ().

    It is large if different latents give the same item (Mao et al. 2019, https://arxiv.org/abs/1903.05628).

    Args:
        z, other_z (B, d): latents.
        items, other_items (B, *item): what G made of them.
    """
    distance = (items.float() - other_items.float()).flatten(1).abs().mean(1)
    return ((z - other_z).abs().mean(1) / (distance + 1e-5)).mean()

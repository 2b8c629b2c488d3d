"""What is added to an adversarial loss, or done to a discriminator's weights, so that the game settles.

Penalties are small values: a weight, a name for logs, and `value(turn)`, the mean over the batch of what a turn of the
discriminator pays. The names of their fields are those of the papers' hyperparameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .augmentation import augment, check_names
from .base import Step


@dataclass(frozen=True)
class CriticTurn:
    """A turn of the discriminator D, as penalties look at it.

    Attributes:
        score: images (B, C, H, W) -> D's scores (B,) of them with the labels of this batch, float32.
        real, fake: the images of the turn as D saw them; they require grad where a penalty that is due asks for it.
        real_scores, fake_scores: D's scores (B,) of them.
        recall: uniform numbers (B,) in [0, 1) -> images (B, C, H, W) generated in earlier steps, or None in the first.
        step: where randomness comes from.
    """

    score: Callable[[Tensor], Tensor]
    real: Tensor
    fake: Tensor
    real_scores: Tensor
    fake_scores: Tensor
    recall: Callable[[Tensor], Tensor | None]
    step: Step


@dataclass(frozen=True)
class Penalty(ABC):
    """Something that D pays beside its loss. Raises ValueError for a number out of range.

    Attributes:
        weight: its factor.
        every: it is paid in every so many-th optimiser step, `every` times as much (lazy regularisation, Karras et al.
            2020, https://arxiv.org/abs/1912.04958).
        name: in logs.
        differentiates: which of `CriticTurn`'s images must require grad.
    """

    name: ClassVar[str]
    differentiates: ClassVar[tuple[str, ...]] = ()
    weight: float
    every: int = 1

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.every < 1:
            raise ValueError(f"{self} needs a weight above 0 and every of at least 1.")

    def due(self, step: Step) -> bool:
        """Whether it is paid in this step."""
        return step.number % self.every == 0

    @abstractmethod
    def value(self, turn: CriticTurn) -> Tensor:
        """Without weight and `every`, a mean over the batch: ()."""


@dataclass(frozen=True)
class GradientPenalty(Penalty):
    """E (||grad D(x)|| - 1)^2 on lines between real and generated images, x = u x_r + (1 - u) x_f with u uniform in
    [0, 1): the soft 1-Lipschitz constraint of WGAN-GP (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028)."""

    name = "gradient_penalty"
    weight: float = 10.0

    def value(self, turn: CriticTurn) -> Tensor:
        """The penalty ()."""
        u = turn.step.uniform("gradient_penalty", turn.real[:, :1, :1, :1].detach())
        x = torch.lerp(turn.fake.detach(), turn.real.detach(), u).requires_grad_()
        return (gradients(turn.score(x), x).norm(dim=1) - 1).square().mean()


@dataclass(frozen=True)
class R1(Penalty):
    """E ||grad D(x)||^2 / 2 on real images (Mescheder et al. 2018, https://arxiv.org/abs/1801.04406)."""

    name, differentiates = "r1", ("real",)

    def value(self, turn: CriticTurn) -> Tensor:
        """The penalty ()."""
        return gradients(turn.real_scores, turn.real).square().sum(1).mean() / 2


@dataclass(frozen=True)
class R2(Penalty):
    """E ||grad D(x)||^2 / 2 on generated images (Mescheder et al. 2018)."""

    name, differentiates = "r2", ("fake",)

    def value(self, turn: CriticTurn) -> Tensor:
        """The penalty ()."""
        return gradients(turn.fake_scores, turn.fake).square().sum(1).mean() / 2


@dataclass(frozen=True)
class Consistency(Penalty):
    """E |D(x) - D(T(x))|^2 on real images, T an augmentation (Zhang et al. 2020, https://arxiv.org/abs/1910.12027).

    Attributes:
        transforms: names of augmentations that make up T.
    """

    name = "consistency"
    transforms: tuple[str, ...] = ("translation",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.transforms)

    def value(self, turn: CriticTurn) -> Tensor:
        """The penalty ()."""
        changed = turn.score(augment(turn.real.detach(), self.transforms, turn.step, "consistency"))
        return (turn.real_scores - changed).square().mean()


@dataclass(frozen=True)
class Control(Penalty):
    """(E D(x)^2 + E D(x')^2) / 2, x real and x' generated in earlier steps: closed-loop control, negative feedback on D
    as a function (CLC-GAN, Xu et al. 2020, https://arxiv.org/abs/1909.13188).

    x' are read from the objective's `ReplayBuffer`. In the first step they are the images of that step.
    """

    name = "control"

    def value(self, turn: CriticTurn) -> Tensor:
        """The penalty ()."""
        past = turn.recall(turn.step.rand("recall", len(turn.real)))
        past_scores = turn.fake_scores if past is None else turn.score(past.to(turn.real.dtype))
        return (turn.real_scores.square().mean() + past_scores.square().mean()) / 2


@dataclass(frozen=True)
class WeightClipping:
    """Every parameter of D is put back into [-bound, bound] after its turn: WGAN's constraint (Arjovsky et al. 2017,
    https://arxiv.org/abs/1701.07875). Raises ValueError for a bound that is not above 0."""

    bound: float = 0.01

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"bound={self.bound} must be above 0.")

    def apply(self, network: nn.Module) -> None:
        """Clip the parameters of a network in place."""
        for p in network.parameters():
            p.clamp_(-self.bound, self.bound)


def gradients(scores: Tensor, images: Tensor) -> Tensor:
    """grad_x D(x) of each image, (B, C H W), from scores (B,), each of which depends on its own image only; can be
    differentiated again."""
    (found,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return found.flatten(1)


def mode_seeking(z: Tensor, other_z: Tensor, images: Tensor, other: Tensor) -> Tensor:
    """E |z - z'| / |G(z) - G(z')|, mean absolute differences: large where different latents give the same image (Mao et
    al. 2019, https://arxiv.org/abs/1903.05628), ().

    Args:
        z, other_z: latents (B, d).
        images, other: what G made of them, (B, C, H, W).
    """
    apart = (images.float() - other.float()).flatten(1).abs().mean(1)
    return ((z - other_z).abs().mean(1) / (apart + 1e-5)).mean()

"""Terms of a generator's loss besides the adversarial one."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import BELOW_1, check_range
from .base import Step, at_least_float32
from .penalties import Term
from .step_mean import StepMean


@dataclass(frozen=True)
class GeneratorTurn:
    """One turn of the generator, the input of all regularisers.

    Attributes:
        output: what the generator returned.
        fake: its items (B, *item) in float32, with gradient.
        step: the source of randomness.
    """

    output: object
    fake: Tensor
    step: Step


class Regularizer(Term):
    """A term of the generator's loss, whose turn is a `GeneratorTurn`. Its `state` is part of the objective's."""

    state: nn.Module

    @abstractmethod
    def end_step(self) -> None:
        """Change the state by what the micro-batches of a step have measured. Every process calls this, without
        gradients, after each turn of the generator."""


class MeanLength(nn.Module):
    """The moving average a of path lengths.

    Attributes:
        mean (): a; 0 before the first measurement.
        steps: the lengths of the present step.

    Args:
        decay: of the average. The first measurement is taken as it is.
    """

    def __init__(self, decay: float):
        super().__init__()
        self.decay, self.steps = decay, StepMean()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))

    def reference(self, lengths: Tensor) -> Tensor:
        """Return a; before the first measurement the mean of these lengths (B,)."""
        return torch.where(self.mean > 0, self.mean, lengths.detach().mean().float())

    @torch.no_grad()
    def end_step(self) -> None:
        """Take the lengths of the step into the average, if there are any."""
        mean, count = self.steps.take()
        moved = torch.where(self.mean > 0, torch.lerp(mean, self.mean, self.decay), mean)
        self.mean.copy_(torch.where(count > 0, moved, self.mean))


@checked
@dataclass(frozen=True)
class PathLength(Regularizer):
    """E (|J^T y| - a)^2, where J is the Jacobian of the image by the styles of all layers, y ~ N(0, 1 / (H W)) an image
    of noise, and a the moving average of |J^T y| (Karras et al. 2020, https://arxiv.org/abs/1912.04958, section 3.2).

    A step in the space of styles then changes images by the same amount wherever it is made and wherever it leads. The
    generator's output must have `styles` (B, ...), from which its items were made. E |J^T y|^2 is the squared Frobenius
    norm of J, divided by H W.

    Attributes:
        decay: of the moving average.
    """

    name = "path_length"
    weight: float = 0.01
    every: int = 4
    decay: float = 0.99
    state: MeanLength = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(f"{type(self).__name__}: decay", self.decay, BELOW_1)
        object.__setattr__(self, "state", MeanLength(self.decay))

    def value(self, turn: GeneratorTurn) -> Tensor:
        """Compute the penalty: (). Raises ValueError for a generator without styles."""
        styles = getattr(turn.output, "styles", None)
        if styles is None:
            raise ValueError("PathLength needs a generator whose output has styles, such as StyleGeneratorModel.")
        lengths = path_lengths(turn.fake, styles, turn.step.randn("path_length", turn.fake))
        self.state.steps.add(lengths)
        return (lengths - self.state.reference(lengths)).square().mean()

    def end_step(self) -> None:
        """Take the lengths of the step into the moving average."""
        self.state.end_step()


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """Compute |J^T y| for each image, (B,), with a gradient.

    Args:
        images (B, C, H, W): made from the styles.
        styles (B, ...): with gradient.
        noise (B, C, H, W): y times sqrt(H W).
    """
    projected = (images * noise).sum() / math.sqrt(math.prod(images.shape[2:]))
    (gradient,) = torch.autograd.grad(projected, styles, create_graph=True)
    return (at_least_float32(gradient).flatten(1).square().sum(1) + 1e-12).sqrt()

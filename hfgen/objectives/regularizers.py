"""Terms of a generator's loss besides the adversarial one."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

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
        generator: the network.
    """

    output: object
    fake: Tensor
    step: Step
    generator: nn.Module


class Regularizer(Term):
    """A term of the generator's loss, whose turn is a `GeneratorTurn`.

    Attributes:
        state: part of the objective's; None: the term has none.
        differentiates_twice: whether its value is made of derivatives.
    """

    state: nn.Module | None = None
    differentiates_twice: ClassVar[bool] = False

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

    name, differentiates_twice = "path_length", True
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


@checked
@dataclass(frozen=True)
class Orthogonal(Regularizer):
    """Sum over the generator's matrices of ||W W^T - diag(W W^T)||_F^2, where a row of W makes one output (Brock et al.
    2019, https://arxiv.org/abs/1809.11096, equation 3, with weight 0.0001).

    Rows are pushed to be orthogonal, and their lengths are free. A generator of orthogonal rows stays smooth outside of
    the latents of training, which truncation needs. Kernels of convolutions are matrices, one row for each output
    channel. Vectors, such as biases, and tables of embeddings are left out.
    """

    name = "orthogonal"
    weight: float = 1e-4

    def value(self, turn: GeneratorTurn) -> Tensor:
        """Compute the term: (). It is the same for every batch."""
        return sum((off_diagonal(weight) for weight in matrices(turn.generator)), turn.fake.new_zeros(()))


def matrices(network: nn.Module) -> list[Tensor]:
    """Return the weights of a network as matrices, one row for each output: those of its layers that have a product.

    A weight that several layers share is returned once.
    """
    found: dict[int, Tensor] = {}
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or not isinstance(weight, nn.Parameter) or weight.ndim < 2:
            continue
        transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
        found.setdefault(id(weight), (weight.transpose(0, 1) if transposed else weight).flatten(1))
    return list(found.values())


def off_diagonal(matrix: Tensor) -> Tensor:
    """Compute ||W W^T - diag(W W^T)||_F^2 of W (n, m), in float32 or more: ()."""
    with torch.autocast(matrix.device.type, enabled=False):  # a difference of sums that are nearly equal
        w = at_least_float32(matrix)
        # ||W W^T||_F = ||W^T W||_F: the smaller one is computed.
        gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
        return gram.square().sum() - w.square().sum(1).square().sum()


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

"""Regressions of the gradient of an energy at noisy items: equilibrium matching, and noise-conditional scores."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..models.conditions import Condition
from ..paths import Path, StraightPath, VEPath, broadcast, compose
from ..utils.arguments import checked
from ..utils.ranges import SHARE, check_range
from .adversarial import uncompiled
from .base import Loss, Objective, Step, at_least_float32, choose
from .coupling import optimal_coupling
from .denoising import Denoising, TimeSampling, error_mask, mean_error, real_items

Coupling = Literal["independent", "optimal"]


class GradientRegression(Objective):
    """Regress the gradient of an energy without a clock on noisy items:

        L = E_{t, eps} || dE/dx(x_t | y) - c(t) target ||^2 / d,    x_t = alpha_t x_0 + sigma_t eps.

    It is `Denoising` for a network that is told no time, and whose output is the gradient of an energy. The subclasses
    say the path, the target and its scale c.

    The network, named `energy`, is called as network(x, **condition, with_gradient=True) for `gradient` (B, *item), as
    `EnergyModel`.

    Args:
        path: defines x_t.
        prediction_type: the target, a row of `hfgen.paths.PREDICTIONS`.
        time_sampling, num_classes, label_dropout, condition: see `Denoising`.
        coupling: which noise belongs to which item: `independent`, or `optimal`, the nearest ones in the batch, see
            `optimal_coupling`. A batch that carries its own "noise" is not coupled again.
    """

    players = ("energy",)
    differentiates_twice = True

    @checked
    def __init__(
        self,
        path: Path,
        prediction_type: str,
        time_sampling: TimeSampling = "low_discrepancy",
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        condition: Condition | None = None,
        coupling: Coupling = "independent",
    ):
        choose("coupling", coupling, ("independent", "optimal"))
        options = {"num_classes": num_classes, "label_dropout": label_dropout, "condition": condition}
        self.noise = Denoising(path, prediction_type, time_sampling, **options)
        self.path, self.prediction_type, self.coupling = path, prediction_type, coupling
        self.condition, self.label_dropout = self.noise.condition, label_dropout

    @abstractmethod
    def scale(self, t: Tensor) -> Tensor:
        """Compute c(t), of the shape of t."""

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the squared error for "x" (B, *item), "noise" (B, *item) if given, and the condition."""
        x_0 = real_items(batch["x"])
        eps = self.noise_for(batch, step)
        mask = error_mask(batch, x_0)
        if mask is not None:
            x_0, eps = x_0 * mask, eps * mask
        t = self.noise.times(step, len(x_0))  # (B,) float64 on the CPU
        x_t = self.path.mix(x_0, eps, t)
        kwargs = self.noise.condition_kwargs(batch, networks, step)
        gradient = gradient_of(networks[player], x_t, kwargs)
        target = compose(self.prediction_type, self.path(t), x_0, eps) * broadcast(self.scale(t), x_0)
        value = mean_error((gradient - at_least_float32(target)).square(), mask).mean()
        return Loss(value, {"loss": value.detach()})

    def noise_for(self, batch: Mapping[str, Tensor], step: Step) -> Tensor:
        """Return the noise (B, *item) of a batch."""
        if "noise" in batch:
            return batch["noise"]
        eps = step.randn("noise", batch["x"])
        return optimal_coupling(batch["x"], eps) if self.coupling == "optimal" else eps


class EquilibriumMatching(GradientRegression):
    """Equilibrium matching (Wang & Du 2025, https://arxiv.org/abs/2510.02300): flow matching without a clock, whose
    target falls to zero at the data,

        dE/dx (x_t)  ~  c(t) (eps - x_0),    x_t = (1 - t) x_0 + t eps,    c(t) = min(1, t / decay).

    Below t = `decay` the target is (x_t - x_0) / decay, the gradient of a parabola around x_0; above, its length no
    longer depends on the distance. So the target is that of Huber's loss: data are minima of the energy, and gradient
    descent from noise reaches them. (In the paper c(t) is 4 times as large, and the time runs the other way.)

    The network is called as that of `GradientRegression`.

    Args:
        decay: the time, above 0 and at most 1.
        time_sampling, num_classes, label_dropout, condition: see `Denoising`.
        coupling: see `GradientRegression`.

    Raises:
        ValueError: a number out of range, or both `num_classes` and `condition`.
    """

    @checked
    def __init__(
        self,
        decay: float = 0.2,
        time_sampling: TimeSampling = "low_discrepancy",
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        condition: Condition | None = None,
        coupling: Coupling = "independent",
    ):
        check_range("decay", decay, SHARE)
        told = (num_classes, label_dropout, condition)
        super().__init__(StraightPath(), "flow_prediction", time_sampling, *told, coupling)
        self.decay = decay

    def scale(self, t: Tensor) -> Tensor:
        """Compute c(t) = min(1, t / decay)."""
        return (t / self.decay).clamp(max=1)


class NoiseConditionalScore(GradientRegression):
    """Denoising score matching over many levels of noise (NCSN, Song & Ermon 2019, https://arxiv.org/abs/1907.05600):

        dE/dx (x_0 + sigma eps)  ~  eps,    log sigma uniform between log sigma_min and log sigma_max.

    The score at a level is -dE/dx / sigma, a network without a clock divided by the level (Song & Ermon 2020,
    https://arxiv.org/abs/2006.09011, technique 3); the squared error in eps is sigma^2 times that in the score, the
    papers' weight. With a network that is told the level this is `Denoising(VEPath(...), "epsilon")`, whose loss is the
    same number; `AnnealedLangevinScheduler` draws from both.

    The network is called as that of `GradientRegression`.

    Args:
        sigma_min, sigma_max: the levels at both ends; data are in [-1, 1].
        time_sampling, num_classes, label_dropout, condition: see `Denoising`.

    Raises:
        ValueError: levels that are not 0 < sigma_min < sigma_max, or both `num_classes` and `condition`.
    """

    @checked
    def __init__(
        self,
        sigma_min: float = 0.01,
        sigma_max: float = 10.0,
        time_sampling: TimeSampling = "low_discrepancy",
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        condition: Condition | None = None,
    ):
        path = VEPath(sigma_min, sigma_max)
        super().__init__(path, "epsilon", time_sampling, num_classes, label_dropout, condition)

    def scale(self, t: Tensor) -> Tensor:
        """Compute c(t) = 1."""
        return torch.ones_like(t)


def gradient_of(network: nn.Module, x: Tensor, kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient of an energy (B, *item), at least in float32.

    Args:
        network: called as network(x, **kwargs, with_gradient=True).
        x: the items.
        kwargs: the condition.
    """
    output = uncompiled(network)(x, **kwargs, with_gradient=True)  # compiled networks can't be differentiated twice
    return at_least_float32(output.gradient)


def energy_of(network: nn.Module, x: Tensor, kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return the energies (B,) of items, at least in float32.

    Raises:
        ValueError: the network has a gradient alone.
    """
    energy = network(x, **kwargs).energy
    if energy is None:
        raise ValueError("This network has no energy, only a gradient (form 'field'). Use the form 'dot' or 'scalar'.")
    return at_least_float32(energy)

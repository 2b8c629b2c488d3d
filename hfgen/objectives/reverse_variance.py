"""Variances of a denoiser's prediction: what a head beside the frozen denoiser learns, in three forms."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..models.conditions import Condition
from ..paths import Path, Point, broadcast, coefficients, compose
from ..utils.arguments import checked
from .base import Loss, Objective, Step, at_least_float32, choose, loss_with_logs, sample_of
from .conditioning import condition_kwargs, condition_of
from .denoising import Denoising, real_items

HeadTarget = Literal["npr", "sn", "ocm"]


class ReverseVariance(Objective):
    """Regress, at each dimension, a number whose mean given x_t determines Var[x_0 | x_t]:

        npr    (target - output)^2, the squared residual of the prediction (NPR-DPM)
        sn     target^2, the squared noise where the network predicts noise (SN-DPM)
        ocm    the diagonal of the Jacobian of E[x_0 | x_t], by v (v^T J) with random signs v (optimal covariance
               matching): Var[x_0 | x_t] = sigma^2 / alpha d E[x_0 | x_t] / dx_t

    In units of the squared prediction, Var[x_0 | x_t] = b^2 h for `npr` and `ocm` and b^2 (h - output^2) for `sn`, with
    b the factor of the output in x_0_hat. For a perfect network all three agree. For any other one the best variance of
    a step around its x_0_hat is that of `npr`, which also holds the squared bias.

    Targets of `npr` and `sn` are positive, and their loss is target/h + log h. Its minimum is the target's mean, as
    that of the papers' squared error is, but it counts relative errors, as the variational bound does. Targets of `ocm`
    may be negative, and its loss is the squared error.

    Sources: Bao et al. 2022, https://arxiv.org/abs/2206.07309; Ou et al. 2025, https://arxiv.org/abs/2406.10808.

    Args:
        path: of the denoiser.
        prediction_type: what it predicts.
        target: the form.
        num_classes, condition, label_dropout: what the denoiser is told, as in `Denoising`.

    Raises:
        ValueError: an unknown choice, or a number out of range.
    """

    players = ("variance_head",)
    needs = ("denoiser",)

    @checked
    def __init__(
        self,
        path: Path,
        prediction_type: str = "epsilon",
        target: HeadTarget = "npr",
        num_classes: int | None = None,
        condition: Condition | None = None,
        label_dropout: float = 0.1,
    ):
        choose("target", target, _TARGETS)
        # The weight is not used: with this one no prediction kind is refused.
        self._noise = Denoising(
            path, prediction_type, "low_discrepancy", weighting="min_snr", label_dropout=label_dropout
        )
        self.path, self.prediction_type, self.target = path, prediction_type, target
        self.condition, self.label_dropout = condition_of(num_classes, condition), label_dropout
        self.differentiates_twice = target == "ocm"

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the loss of the head for "x" (B, *item) and the condition."""
        x_0 = real_items(batch["x"])
        eps, t = step.randn("noise", x_0), self._noise.times(step, len(x_0))
        point = self.path(t)
        x = self.path.mix(x_0, eps, t) * broadcast(self.path.input_scale(t), x_0)
        timestep = self.path.timestep(t).to(x.device, torch.float32)
        kwargs = condition_kwargs(self.condition, self.label_dropout, batch, networks, step)

        def predict(x: Tensor) -> Tensor:
            return at_least_float32(sample_of(networks["denoiser"](x, timestep, **kwargs)))[:, : x_0.shape[1]]

        goal, output = _TARGETS[self.target](self, predict, x, compose(self.prediction_type, point, x_0, eps), t, step)
        stated = at_least_float32(sample_of(networks[player](x, output.to(x.dtype), timestep)))
        if self.target == "ocm":
            weight = broadcast(point.alpha.square() / (point.alpha.square() + point.sigma.square()), goal)
            return loss_with_logs((weight * (stated - goal).square()).mean(), {})
        return loss_with_logs((goal / stated + stated.log()).mean(), {})


Predict = Callable[[Tensor], Tensor]


def _squared_residual(
    objective: ReverseVariance, predict: Predict, x: Tensor, target: Tensor, t: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = predict(x)
    return (target - output).square(), output


def _squared_target(
    objective: ReverseVariance, predict: Predict, x: Tensor, target: Tensor, t: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = predict(x)
    return target.square(), output


def _diagonal(
    objective: ReverseVariance, predict: Predict, x: Tensor, target: Tensor, t: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    point: Point = objective.path(t)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = predict(x)
        signs = torch.where(step.uniform("probe", output) < 0.5, -1.0, 1.0)
        (product,) = torch.autograd.grad(output, x, signs)
    found, scale = coefficients(objective.prediction_type, point), objective.path.input_scale(t)
    # d x_0_hat / d x_t = a + b d output / d x_t, whose diagonal is estimated; then in units of the squared output.
    slope = broadcast(found.x_from_x_t, x) + broadcast(found.x_from_output * scale, x) * product * signs
    unit = point.sigma.square() / (point.alpha * found.x_from_output.square())
    return (broadcast(unit, x) * slope).detach(), output.detach()


_TARGETS = {"npr": _squared_residual, "sn": _squared_target, "ocm": _diagonal}

"""The objective of flow maps: one regression for flow matching, shortcut, mean flow and consistency."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..models.conditions import Condition
from ..paths import StraightPath, broadcast
from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, COUNT_OR_0, FINITE, SHARE, check_range
from .base import Loss, Objective, Step, choose, loss_with_logs
from .conditioning import dropped_rows
from .denoising import Denoising, TimeSampling, error_mask, mean_error, real_items
from .tangents import Draws, difference, forward_mode, has_dropout, output_of

Method = Literal["flow_matching", "shortcut", "mean_flow", "improved_mean_flow", "consistency"]
Tangent = Literal["jvp", "difference"]

LEAST_STEP = 0.02
"""The shortest step of a curriculum, as a share of the interval; after it come derivatives."""


class Corner(NamedTuple):
    """One method among flow maps.

    Args:
        moves: whether intervals have a length.
        to_data: whether all of them end at r = 0.
        direction: where x_t moves to along with t: "data", eps - x_0; "network", u(x_t, t, t); "half", u(x_t, t, s).
        step: the share of the interval that a step takes; None: the option `step_share`.
    """

    moves: bool = True
    to_data: bool = False
    direction: str = "data"
    step: float | None = None


CORNERS: dict[str, Corner] = {
    "flow_matching": Corner(moves=False),
    "shortcut": Corner(direction="half", step=0.5),
    "mean_flow": Corner(),
    "improved_mean_flow": Corner(direction="network"),
    "consistency": Corner(to_data=True),
}


class Interval(NamedTuple):
    """Intervals of a batch, float64 (B,) on the CPU: from t to r, and the point s to which the first step leads."""

    t: Tensor
    r: Tensor
    s: Tensor

    def rows(self, index: Tensor) -> "Interval":
        """Return those of some items."""
        return Interval(*(value[index] for value in self))


class FlowMap(Objective):
    """Learn the mean velocity u(x_t, t, r) with which one step leads from time t to any r <= t on the straight path,

        x_r = x_t - (t - r) u(x_t, t, r)

    (t = 0 is data, t = 1 is noise). Let s = t - h be a time between t and r. The mean velocity obeys
    (t - r) u = h v + (s - r) u(x_s, s, r), where v is the mean velocity from t to s. Each method is a choice of s and v
    in one regression for items of d values,

        L = E w || u(x_t, t, r) - stop(v - (s - r) D) ||^2 / d,    D = (u(x_t, t, r) - u(x_s, s, r)) / h.

    "stop" means: no gradient. For h -> 0 the difference D is the derivative du/dt along the trajectory, which
    `torch.func.jvp` computes.

        method               intervals    v and the direction to x_s
        flow_matching        r = t        eps - x_0, D does not count
        shortcut             any r        u(x_t, t, s), s in the middle
        mean_flow            any r        eps - x_0
        improved_mean_flow   any r        v: eps - x_0; direction: u(x_t, t, t)
        consistency          r = 0        eps - x_0

    A frozen teacher, the network of a rectified flow, replaces eps - x_0 and the direction by its velocity; shortcut
    has it at r = t alone. This is distillation. A share of the items has r = t, so that every other scheduler samples
    the network as a rectified flow. Targets are computed with the network itself, not with its moving average.

    Sources: Frans et al. 2024, https://arxiv.org/abs/2410.12557 (shortcut); Geng et al. 2025,
    https://arxiv.org/abs/2505.13447 (mean flow) and https://arxiv.org/abs/2512.02012 (improved); Song et al. 2023,
    https://arxiv.org/abs/2303.01469 (consistency); Geng et al. 2024, https://arxiv.org/abs/2406.14548 (curriculum
    of steps); Zhang et al. 2025, https://arxiv.org/abs/2510.20771 (steps between flow matching and mean flow).

    Args:
        method: a row of the table.
        tangent: how D is computed: `difference`, with one more evaluation; or `jvp`, exact and in float32, in about
            twice the time of a forward pass. The embedding of time in hfgen's networks has fast waves. They make noise
            in the derivative, and less in a difference over several waves.
        step_share: h / (t - r) of `difference`, in (0, 1].
        curriculum_steps: optimiser steps over which h / (t - r) falls evenly in its logarithm from 1, where every
            target is that of flow matching, to `step_share`, or to `LEAST_STEP` before `jvp`; 0: no curriculum.
        flow_share: share of items with r = t, in (0, 1].
        teacher: name of the teacher among the networks; None: no teacher.
        guidance_scale: of the velocities that are learnt; 1: none. Sampling is then guided without a second evaluation.
        adaptive_power: p of w = (error + 0.001)^-p, at least 0; 0: w = 1.
        time_sampling, logit_mean, logit_std, num_classes, label_dropout, condition: see `Denoising`.

    Raises:
        ValueError: an unknown choice, a number out of range, or options that do not go together.
    """

    players = ("denoiser",)
    call = ("timestep",)

    @checked
    def __init__(
        self,
        method: Method = "improved_mean_flow",
        tangent: Tangent = "difference",
        step_share: float = 0.05,
        curriculum_steps: int = 0,
        flow_share: float = 0.5,
        teacher: str | None = None,
        guidance_scale: float = 1.0,
        adaptive_power: float = 0.5,
        time_sampling: TimeSampling = "low_discrepancy",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        condition: Condition | None = None,
    ):
        choose("method", method, CORNERS)
        choose("tangent", tangent, ("jvp", "difference"))
        for name, value in (("step_share", step_share), ("flow_share", flow_share)):
            check_range(name, value, SHARE)
        check_range("curriculum_steps", curriculum_steps, COUNT_OR_0)
        check_range("adaptive_power", adaptive_power, AT_LEAST_0)
        check_range("guidance_scale", guidance_scale, FINITE)
        times = {"time_sampling": time_sampling, "logit_mean": logit_mean, "logit_std": logit_std}
        conditions = {"num_classes": num_classes, "label_dropout": label_dropout, "condition": condition}
        self.flow = Denoising(StraightPath(), "flow_prediction", **times, **conditions)
        self.method, self.corner, self.tangent = method, CORNERS[method], tangent
        self.step_share = step_share if self.corner.step is None else self.corner.step
        self.curriculum_steps, self.flow_share, self.teacher = curriculum_steps, flow_share, teacher
        self.guidance_scale, self.adaptive_power = guidance_scale, adaptive_power
        self.needs = () if teacher is None else (teacher,)
        self.differentiates_twice = True  # targets evaluate the network again, outside its hooks
        self._refuse()

    def _refuse(self) -> None:
        """Raise ValueError for options that do not go together."""
        if self.curriculum_steps and (not self.corner.moves or self.corner.step is not None):
            raise ValueError(f"curriculum_steps={self.curriculum_steps} does nothing for {self.method}. Leave it out.")
        if self.corner.step is not None and self.tangent == "jvp":
            raise ValueError(f"{self.method} takes steps, and tangent='jvp' derivatives. Give tangent='difference'.")
        if self.guidance_scale != 1 and (self.condition is None or not self.label_dropout):
            raise ValueError(
                f"guidance_scale={self.guidance_scale} needs a condition and label_dropout above 0. Give both, or 1."
            )

    @property
    def condition(self) -> Condition | None:
        """The condition y, as in `Denoising`."""
        return self.flow.condition

    @property
    def label_dropout(self) -> float:
        """The share of items trained on without their condition."""
        return self.flow.label_dropout

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the weighted error for "x" (B, *item), "noise" and "mask" if given, and the condition."""
        network, x_0 = networks[player], real_items(batch["x"])  # (B, *item)
        eps = batch["noise"] if "noise" in batch else step.randn("noise", x_0)
        mask = error_mask(batch, x_0)
        if mask is not None:
            x_0, eps = x_0 * mask, eps * mask
        times = self.intervals(step, len(x_0))
        x_t, kwargs = self.flow.path.mix(x_0, eps, times.t), self.flow.condition_kwargs(batch, networks, step)
        draws = Draws(x_t.device)
        u = output_of(network, x_t, times.t, times.r, kwargs)  # the one evaluation with a gradient
        with torch.no_grad():
            dropped = dropped_rows(self.label_dropout, step, len(x_0))
            v = self.velocity(networks, network, x_t, eps - x_0, times.t, kwargs, dropped)
            slope = self.slope(network, u.detach(), x_t, v, times, kwargs, draws, mask)
            target = slope.velocity - broadcast(times.s - times.r, x_t) * slope.value
        error = mean_error((u - target).square(), mask)  # (B,)
        weight = (error.detach() + 1e-3) ** -self.adaptive_power
        still = times.r == times.t
        logs = {"error": error.mean(), "flow_error": _mean_of(error, still), "du_dt": slope.size}
        return loss_with_logs((weight * error).mean(), logs)

    def intervals(self, step: Step, count: int) -> Interval:
        """Draw intervals for `count` items."""
        t = self.flow.times(step, count)
        r = torch.zeros_like(t) if self.corner.to_data else t * step.rand("end", count)
        moving = step.rand("interval length", count) >= self.flow_share
        r = torch.where(moving & self.corner.moves, r, t)
        return Interval(t, r, t - self.step_of(step.number) * (t - r))

    def step_of(self, number: int) -> float:
        """Return h / (t - r) in an optimiser step; 0: derivatives."""
        last = LEAST_STEP if self.tangent == "jvp" else self.step_share
        if number < self.curriculum_steps:
            return last ** (number / self.curriculum_steps)
        return 0.0 if self.tangent == "jvp" else self.step_share

    def velocity(
        self,
        networks: Mapping[str, nn.Module],
        network: nn.Module,
        x_t: Tensor,
        v: Tensor,
        t: Tensor,
        kwargs: Mapping[str, Tensor],
        dropped: Tensor,
    ) -> Tensor:
        """Return the velocity to learn at r = t (B, *item): the teacher's, or `v` of the data; guided under
        `guidance_scale` where the condition is not dropped. Without a teacher, the network itself says the velocity of
        the null condition."""
        if self.teacher is not None:
            v = output_of(networks[self.teacher], x_t, t, None, kwargs)
        if self.guidance_scale == 1:
            return v
        source, null = network if self.teacher is None else networks[self.teacher], self.condition.null(kwargs)
        scale = broadcast(torch.where(dropped, 1.0, self.guidance_scale), v)
        return torch.lerp(output_of(source, x_t, t, None, null), v, scale)

    def slope(
        self,
        network: nn.Module,
        u: Tensor,
        x_t: Tensor,
        v: Tensor,
        times: Interval,
        kwargs: Mapping[str, Tensor],
        draws: Draws,
        mask: Tensor | None,
    ) -> "Slope":
        """Return D for all items, 0 where r = t, with the velocity v of the target."""
        moving = times.r < times.s  # elsewhere D does not count
        value, velocity = torch.zeros_like(u), v.clone()
        if not moving.any():
            return Slope(value, velocity, u.new_zeros(()))
        # Items at rest are left out, unless that would draw another dropout for those that move.
        rows = torch.arange(len(u)) if has_dropout(network) else moving.nonzero().flatten()
        here = rows.to(u.device)
        part, some, given = times.rows(rows), x_t[here], {name: value[here] for name, value in kwargs.items()}
        direction = self.direction(network, some, v[here], part, given, draws)
        if mask is not None:
            direction = direction * mask[here]
        if bool((part.s == part.t).all()):  # no step
            derivative = forward_mode(network, some, direction, part.t, part.r, given, draws)
        else:
            derivative = difference(network, u[here], some, direction, *part, given, draws)
        counts = broadcast(part.r < part.s, derivative)
        value[here] = derivative * counts
        if self.corner.direction == "half":
            velocity[here] = torch.lerp(v[here], direction, counts)
        return Slope(value, velocity, _mean_of(value.square().flatten(1).mean(1), moving).sqrt())

    def direction(
        self,
        network: nn.Module,
        x_t: Tensor,
        v: Tensor,
        times: Interval,
        kwargs: Mapping[str, Tensor],
        draws: Draws,
    ) -> Tensor:
        """Return dx_t/dt (B, *item), along which x_t moves while D is taken."""
        own = {"network": times.t, "half": times.s}.get(self.corner.direction)
        if own is None or (self.teacher is not None and self.corner.direction != "half"):
            return v
        with draws.again():
            return output_of(network, x_t, times.t, own, kwargs)


class Slope(NamedTuple):
    """What a target is made of: D and the velocity (B, *item), and the root mean square of D over intervals, ()."""

    value: Tensor
    velocity: Tensor
    size: Tensor


def _mean_of(values: Tensor, rows: Tensor) -> Tensor:
    """Compute the mean of some of the values (B,), 0 if there are none."""
    weight = rows.to(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)

"""The objective of score distillation: a generator of one step from the scores of a teacher, with a discriminator or
without."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..models.conditions import Condition
from ..paths import Path, broadcast, decompose, start_time
from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, AT_LEAST_0, COUNT_OR_0, FINITE, INSIDE_0_1, check_range
from .adversarial import Adversarial
from .base import Loss, Objective, Step, at_least_float32, choose, loss_with_logs, sample_of
from .conditioning import condition_of
from .denoising import Denoising

START = 2.5
"""sigma / alpha where a generator that is a denoiser begins, as in the paper."""

Generate = Callable[[nn.Module, Tensor, Mapping[str, Tensor]], Tensor]
"""(generator, noise, condition) -> samples (B, *item)."""


def clean_estimate(
    network: nn.Module, path: Path, kind: str, x_t: Tensor, t: Tensor, kwargs: Mapping[str, Tensor]
) -> Tensor:
    """Return a denoiser's estimate of clean data (B, *item) at x_t and times t (B,), whatever it predicts.

    Args:
        network: called as network(x, timestep, **kwargs).
        path: of x_t.
        kind: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        x_t, t, kwargs: what it is told.
    """
    scaled = x_t * broadcast(path.input_scale(t), x_t)
    timestep = path.timestep(t).to(x_t.device, torch.promote_types(x_t.dtype, torch.float32))
    output = sample_of(network(scaled, timestep, **kwargs))
    channels = x_t.shape[1]  # without those of a learned variance
    return decompose(kind, path(t), x_t, output[:, :channels].to(x_t.dtype))[0]


class OneStep:
    """Draw samples by one step of a denoiser from noise z, at x_t = sqrt(alpha^2 + sigma^2) z.

    The sample is the estimate of clean data there. In pure noise the estimate of a teacher is the mean of the data,
    whatever z is. At a noise 2.5 times as strong as the signal it already shows images, so that a generator which
    starts as a copy of the teacher starts from them (Zhou et al. 2024, https://arxiv.org/abs/2404.04057, appendix). A
    flow map says in pure noise where the trajectory ends, so its step begins there.

    `hfgen.ConsistencyScheduler(start_ratio=...)` takes the same step.

    Args:
        path: of the denoiser.
        kind: what it predicts.
        two_times: whether it is a flow map, which is told r = 0.
        ratio: sigma / alpha where the step begins; default: `START`, or pure noise for a flow map.

    Attributes:
        ratio: as given; None: pure noise.
        time: where the step begins.
    """

    @checked
    def __init__(self, path: Path, kind: str, two_times: bool = False, ratio: float | None = None):
        if ratio is not None:
            check_range("ratio", ratio, ABOVE_0)
        self.path, self.kind, self.two_times = path, kind, two_times
        self.ratio = START if ratio is None and not two_times else ratio
        self.time = path.snap(torch.tensor(start_time(path, kind, self.ratio), dtype=torch.float64))

    def __call__(self, network: nn.Module, noise: Tensor, kwargs: Mapping[str, Tensor]) -> Tensor:
        """Return samples (B, *item) of noise (B, *item)."""
        t = self.time.expand(len(noise))
        point = self.path(t)
        x_t = noise * broadcast((point.alpha**2 + point.sigma**2).sqrt(), noise)
        if self.two_times:
            kwargs = {**kwargs, "r_timestep": torch.zeros(len(noise), device=noise.device)}
        return clean_estimate(network, self.path, self.kind, x_t, t, kwargs)

    @property
    def timestep(self) -> float:
        """Return the network's time step."""
        return float(self.path.timestep(self.time))


def one_pass(network: nn.Module, noise: Tensor, kwargs: Mapping[str, Tensor]) -> Tensor:
    """Draw samples (B, *item) by one pass of a generator, such as that of a GAN."""
    return sample_of(network(noise, **kwargs))


class Distilled(Objective):
    """Distil a denoiser into a generator of one step, by the scores of the teacher and of the samples.

    Two players take turns. The score network learns by denoising what the generator draws now, and the generator moves
    its samples x to where the teacher's score and that of the samples agree. With x_t = alpha_t x + sigma_t eps, and
    with the estimates of clean data f (teacher) and g (score network) at x_t, the loss of the generator for items of d
    values is

        sid:  w [ (f - g) . (g - x) + (1 - a) ||f - g||^2 ] / d, with gradients through both networks
              (Zhou et al. 2024, https://arxiv.org/abs/2404.04057),
        dmd:  the gradient w (g - f) / d at x, without the networks' own
              (Yin et al. 2024, https://arxiv.org/abs/2311.18828, without its regression),

    and w = 1 / mean |x - f|. At the fixed point both estimates agree everywhere, so the samples have the teacher's
    distribution. Only estimates of clean data are used, so the teacher may predict anything on any path. Of a batch,
    only the shape and the condition are read: these losses need no data.

    With `adversarial` a third player, the discriminator, tells the generator's samples from the real items of the
    batch, and the generator minimises `adversarial_weight` times its adversarial loss as well. It then learns
    from data, so it is not limited by its teacher (after Zhou et al. 2024, https://arxiv.org/abs/2410.14919, and Yin et
    al. 2024, https://arxiv.org/abs/2405.14867, whose discriminators see noisy items).

    Args:
        path: of the teacher.
        prediction_type: what the teacher and the score network predict, a row of `hfgen.paths.PREDICTIONS`.
        method: `sid` or `dmd`.
        alpha: a of `sid` at first; the paper's 1.2 is faster and not exact.
        last_alpha: a after `alpha_steps` optimiser steps.
        alpha_steps: see `last_alpha`.
        least_time, most_time: times of x_t are uniform between these, in (0, 1).
        guidance_scale: classifier-free guidance of the teacher's estimates; 1: none.
        generate: how the generator draws: an `OneStep` (the default: of the teacher's path), or `one_pass`.
        noise_shape: shape of the generator's noise; None: that of an item.
        adversarial: losses, penalties and constraints of a discriminator; None: there is none. It is called as
            `hfgen.Adversarial` says, in one turn a step.
        adversarial_weight: of the generator's adversarial loss.
        num_classes, condition: what all networks are told, see `Denoising`.
        label_dropout: share of items that all networks are told the null condition of, so that the generator can draw
            without a condition, too; 0 for a generator without it.

    Raises:
        ValueError: an unknown choice, a number out of range, or parts that do not go together.
    """

    needs = ("teacher",)

    @checked
    def __init__(
        self,
        path: Path,
        prediction_type: str = "flow_prediction",
        method: Literal["sid", "dmd"] = "sid",
        alpha: float = 1.2,
        last_alpha: float = 1.0,
        alpha_steps: int = 1000,
        least_time: float = 0.02,
        most_time: float = 0.98,
        guidance_scale: float = 1.0,
        generate: Generate | None = None,
        noise_shape: tuple[int, ...] | None = None,
        adversarial: Adversarial | None = None,
        adversarial_weight: float = 1.0,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        condition: Condition | None = None,
    ):
        choose("method", method, ("sid", "dmd"))
        for name, value in (("alpha", alpha), ("last_alpha", last_alpha), ("guidance_scale", guidance_scale)):
            check_range(name, value, FINITE)
        check_range("alpha_steps", alpha_steps, COUNT_OR_0)
        for name, value in (("least_time", least_time), ("most_time", most_time)):
            check_range(name, value, INSIDE_0_1)
        if least_time >= most_time:
            raise ValueError(f"least_time={least_time} must be below most_time={most_time}.")
        self.condition = condition_of(num_classes, condition)
        if guidance_scale != 1 and self.condition is None:
            raise ValueError(f"guidance_scale={guidance_scale} needs a condition. Give num_classes, or 1.")
        self.denoising = Denoising(path, prediction_type, label_dropout=label_dropout, condition=self.condition)
        self.path, self.prediction_type, self.method = path, prediction_type, method
        self.alphas, self.alpha_steps, self.times = (alpha, last_alpha), alpha_steps, (least_time, most_time)
        self.guidance_scale, self.noise_shape = guidance_scale, noise_shape
        self.generate = OneStep(path, prediction_type) if generate is None else generate
        check_range("adversarial_weight", adversarial_weight, AT_LEAST_0)
        self._refuse_adversary(adversarial)
        self.adversarial, self.adversarial_weight = adversarial, adversarial_weight
        self.players = ("score", *(() if adversarial is None else ("discriminator",)), "generator")
        self.differentiates_twice = adversarial is not None and adversarial.differentiates_twice

    def _refuse_adversary(self, adversarial: Adversarial | None) -> None:
        """Raise ValueError for an adversarial loss of other conditions, turns or generators."""
        if adversarial is None:
            return
        if adversarial.conditional != (self.condition is not None):
            raise ValueError(
                f"adversarial.conditional={adversarial.conditional} and the condition of the networks must agree. Give "
                "Adversarial(..., conditional=True) with num_classes, and False without."
            )
        more = adversarial.state or adversarial.mode_seeking or adversarial.regularizers or adversarial.inputs
        if len(adversarial.players) > 2 or more:
            raise ValueError(
                "adversarial takes one turn a step here, without mode_seeking, replay, regularizers, inputs and an "
                "adaptive augmentation. Leave them out."
            )

    def project(self, player: str, network: nn.Module) -> None:
        """Apply the constraints to a discriminator."""
        if self.adversarial is not None:
            self.adversarial.project(player, network)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the player's loss for a batch of the shape of "x" (B, *item); a discriminator reads "x" itself."""
        kwargs = self.denoising.condition_kwargs(batch, networks, step)
        like = batch["x"] if self.noise_shape is None else batch["x"].new_empty(len(batch["x"]), *self.noise_shape)
        with torch.set_grad_enabled(player == "generator"):
            x = self.generate(networks["generator"], step.randn("latent", like), kwargs)  # (B, *item)
        x = at_least_float32(x)
        if player == "score":
            return self.denoising.loss("score", networks, {**batch, "x": x}, step)
        if player == "discriminator":
            return self.adversarial.judgement(networks["discriminator"], batch, x, step)
        found = self._generator_loss(networks, x, kwargs, step)
        if self.adversarial is None:
            return found
        deceit = self.adversarial.deceit(networks["discriminator"], batch, x, step)
        logs = {name: value for name, value in found.logs.items() if name != "loss"}
        logs |= {"distillation": found.value, "adversarial": deceit}
        return loss_with_logs(found.value + self.adversarial_weight * deceit, logs)

    def _generator_loss(
        self, networks: Mapping[str, nn.Module], x: Tensor, kwargs: Mapping[str, Tensor], step: Step
    ) -> Loss:
        low, high = self.times
        t = self.path.snap(low + (high - low) * step.rand("time", len(x)))
        x_t = self.path.mix(x, step.randn("noise", x.detach()), t)
        through = self.method == "sid"
        with torch.set_grad_enabled(through):
            f = self.estimate(networks["teacher"], x_t, t, kwargs, self.guidance_scale)
            g = self.estimate(networks["score"], x_t, t, kwargs)
        difference = f - g
        weight = broadcast(1 / (x - f).detach().abs().flatten(1).mean(1).clamp(min=1e-5), x)
        if through:
            first, last = self.alphas
            alpha = first if step.number < self.alpha_steps else last
            value = (weight * (difference * (g - x) + (1 - alpha) * difference.square())).mean()
        else:
            value = -(weight * difference * x).mean()  # its gradient at x is weight (g - f)
        return loss_with_logs(value, {"gap": difference.square().mean().sqrt()})

    def estimate(
        self, network: nn.Module, x_t: Tensor, t: Tensor, kwargs: Mapping[str, Tensor], guidance_scale: float = 1.0
    ) -> Tensor:
        """Return a network's estimate of clean data (B, *item) at x_t and times t (B,), guided away from the null
        condition at a scale above 1."""
        given = self.path, self.prediction_type, x_t, t
        estimate = clean_estimate(network, *given, kwargs)
        if guidance_scale == 1:
            return estimate
        return torch.lerp(clean_estimate(network, *given, self.condition.null(kwargs)), estimate, guidance_scale)

"""Options of distillation into one step. No torch here: `--help` reads this file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ...options import NEVER, POSITIVE, AnyOf, DataArgs, Options, SampleArgs, TrainArgs, option, variant
from ...utils.ranges import ABOVE_0, AT_LEAST_0, COUNT, COUNT_OR_0, FINITE, INSIDE_0_1, PROBABILITY
from ..adversarial_options import AdversarialTrainArgs
from ..reflow.options import MeasureArgs

GENERATORS = ("dcgan", "residual", "resnet", "mlp")
"""Students that are generators of a GAN."""

SID, NEW, OLD = {"method": ("sid",)}, {"student": GENERATORS}, {"student": ("teacher",)}


def has_gan_network(options: Any) -> bool:
    """Return whether generator or discriminator are networks of a GAN, which have a size."""
    return options.student in GENERATORS or options.adversarial_weight > 0


@dataclasses.dataclass
class DistillArgs(Options):
    """Distillation"""

    COMMON = ("pipeline", "student", "model_size", "method", "adversarial_weight")

    pipeline: str | None = option(None, "folder of the trained denoiser, the teacher", resumable=True, path=True)
    student: Literal["teacher", "dcgan", "residual", "resnet", "mlp"] = option(
        "teacher", "network that learns: the teacher's own, from its weights; or a new generator of a GAN"
    )
    model_size: Literal["xs", "s", "m"] = option(
        "s",
        "width, depth and latent dimension of a GAN's networks",
        AnyOf(("adversarial_weight", "student"), has_gan_network),
    )
    latent_channels: int | None = option(
        None, "dimension of a latent vector; default: that of the size", NEW, range=COUNT
    )
    method: Literal["sid", "dmd"] = option(
        "sid", "sid: score identity, with gradients through the scores; dmd: their difference at the samples"
    )
    alpha: float = option(
        1.2, "factor of the squared distance of scores at first; above 1 is faster", SID, range=FINITE
    )
    last_alpha: float = option(1.0, "the same after alpha_steps; 1 is exact", SID, range=FINITE)
    alpha_steps: int = option(1000, "optimiser steps with alpha", SID, range=COUNT_OR_0)
    least_time: float = option(0.02, "least time at which scores are compared", range=INSIDE_0_1)
    most_time: float = option(0.98, "latest time at which scores are compared", range=INSIDE_0_1)
    teacher_guidance_scale: float = option(
        1.0, "guidance of the teacher, so that one step draws guided images; 1: none", range=AT_LEAST_0
    )
    label_dropout: float = option(
        0.1, "share of images drawn without a class, where teacher and student can", OLD, range=PROBABILITY
    )
    adversarial_weight: float = option(
        0.0,
        "weight of a discriminator, which learns from the real images; 0: images are not learnt from",
        range=AT_LEAST_0,
    )
    r1: float = option(
        1.0,
        "weight of R1 in every fourth step, half the squared gradient of the discriminator at real images",
        {"adversarial_weight": POSITIVE},
        range=AT_LEAST_0,
    )


@dataclasses.dataclass
class DistillTrainArgs(AdversarialTrainArgs):
    """Training"""

    adam_beta1: float = variant(TrainArgs, "adam_beta1", 0.0, "AdamW beta1; with momentum the players oscillate")
    init_from: str | None = variant(
        TrainArgs, "init_from", None, "none: the training begins with the weights of --pipeline", only_with=NEVER
    )
    score_learning_rate: float | None = option(
        None, "peak learning rate of the score network; default: learning_rate", resumable=True, range=ABOVE_0
    )

    @property
    def learning_rates(self) -> Mapping[str, float]:  # type: ignore[override]
        """Return the peak learning rates of score network and discriminator, if they have their own."""
        own = {} if self.score_learning_rate is None else {"score": self.score_learning_rate}
        return {**super().learning_rates, **own}


DESCRIPTION = "Distil a trained denoiser into a generator of one step: its own network, or a small one of a GAN."
EXAMPLE = "hfgen train distill --pipeline outputs/quickstart --student dcgan --model_size xs --max_train_steps 500"
GROUPS = (DistillArgs, DataArgs, SampleArgs, MeasureArgs, DistillTrainArgs)

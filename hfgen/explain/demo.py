"""A demo: a family that is trained on points in the plane, its samples on their way, and its fields."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.batches import Batches
from ..data.tensors import EndlessData
from ..objectives.base import Objective
from ..options import TrainArgs
from ..trainer.loop import train
from ..utils.seeds import generator_of
from .problems import Problem

BATCH = 256
FRAMES = 32
"""Steps of the animation, and of schedulers."""
DATA_WIDTH = 0.04
"""Standard deviation of the Gaussian that smooths the data where their density is drawn."""
Field = Callable[[Tensor, float], Tensor]
"""(points (M, 2), time from 1, noise, to 0, data) -> arrows (M, 2)."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """A trained family.

    Attributes:
        title: its name for people.
        method: how it draws samples.
        times: time of each frame, from 1 to 0.
        positions: positions of the sampled points in each frame, (F, N, 2), from noise to samples.
        density: (points (M, 2), time) -> log density (M,) that the points should have at this time; for families
            without time the density of the data.
        field: the learned field.
        field_name: what its arrows are.
        exact_field: the field that it should have learned; None if there is no closed form.
        seconds: training time.
    """

    title: str
    method: str
    times: list[float]
    positions: Tensor
    density: Field
    field: Field
    field_name: str
    exact_field: Field | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class DemoSetup:
    """What all demos share.

    Attributes:
        problem: the data.
        steps: optimiser steps of each family.
        seed: of data, training and noise.
        num_samples: points that each family draws.
    """

    problem: Problem
    steps: int = 2000
    seed: int = 0
    num_samples: int = 1000

    def batches(self) -> Batches:
        """Return endless batches {"x": (B, 2, 1, 1)} of points."""

        def draw(count: int, generator: torch.Generator) -> dict[str, Tensor]:
            return {"x": self.problem.sample(count, generator)[:, :, None, None]}

        return Batches(EndlessData(draw, (2, 1, 1), "points", "points", stream="points"), BATCH, self.seed)

    def train(
        self, networks: Mapping[str, nn.Module], objective: Objective, **options: float | None
    ) -> tuple[dict[str, nn.Module], float]:
        """Train, and return the networks in evaluation mode and the seconds of training.

        Args:
            networks: by name.
            objective: the loss.
            options: of `TrainArgs`.
        """
        with tempfile.TemporaryDirectory() as folder:
            quiet = {"checkpointing_steps": 0, "sample_steps": 0, "logging_steps": self.steps, "report_to": "none"}
            args = TrainArgs(
                output_dir=folder,
                seed=self.seed,
                max_train_steps=self.steps,
                train_batch_size=BATCH,
                **quiet,
                **options,
            )
            result = train(networks, objective, self.batches(), args, Accelerator(cpu=True))
        return result.networks, result.seconds

    def generator(self, stream: str) -> torch.Generator:
        """Return a new generator for a named use of this demo."""
        return generator_of("explanation", self.seed, stream)

    def noise(self) -> Tensor:
        """Return standard normal points (N, 2), the same for all families."""
        return torch.randn(self.num_samples, 2, generator=self.generator("noise"))

    def data_density(self, x: Tensor, t: float) -> Tensor:
        """Return the log density (M,) of the smoothed data at x (M, 2), whatever the time."""
        return self.problem.log_prob(x, 1.0, DATA_WIDTH)


def as_images(points: Tensor) -> Tensor:
    """Return points (N, 2) as (N, 2, 1, 1), which networks for images take."""
    return points.float()[:, :, None, None]


def one_pass_times() -> list[float]:
    """Return the times of frames at equal distances, from 1 to 0."""
    return [1 - i / FRAMES for i in range(FRAMES + 1)]

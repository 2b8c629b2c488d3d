"""Pictures of energies: samples, and a film of the way from noise to them."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...options import SampleArgs
from ...utils import pictures
from ..preview import Preview
from .options import EnergySolverArgs

FRAMES = 25
"""Frames of the film, about."""


class EnergyPreview(Preview):
    """Samples, and a film of the chain or descent that leads to them.

    Args:
        title, kind: see `Preview`.
        solver_args, sample_args: the options of samples.
        seed: of the first sample.
    """

    card_options = ("objective", "form")

    def __init__(self, title: str, kind: str, solver_args: EnergySolverArgs, sample_args: SampleArgs, seed: int):
        super().__init__(title, kind, sample_args, seed)
        self.steps, self.guidance_scale = solver_args.num_inference_steps, solver_args.guidance_scale
        self.call_options = {} if self.steps is None else {"num_inference_steps": self.steps}
        self.protocol = {"guidance": 1.0}

    def grid(self, pipeline: Any) -> Image.Image:
        """Draw a grid of samples."""
        output, columns = self.draw(pipeline, **self.drawn_with(pipeline))
        return pictures.grid(output.images, columns, labels=self.row_names(pipeline))

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid, and a film of the way to it."""
        out, columns = self.draw(pipeline, return_trajectory=True, **self.drawn_with(pipeline))
        labels = self.row_names(pipeline)
        images = [pipeline.to_images(x.clamp(-1, 1)) for x in _thinned(out.trajectory)]
        self.write(output, self.grid_name, pictures.grid(images[-1], columns, labels=labels), pipeline)
        frames = [pictures.grid(stage, columns, width=256, labels=labels) for stage in images]
        pictures.animate(frames, output / "descent.gif")
        return {self.grid_name: "samples", "descent.gif": "from noise to images"}

    def drawn_with(self, pipeline: Any) -> dict[str, Any]:
        """Return steps and guidance, where they are not the default."""
        guided = {"guidance_scale": self.guidance_scale} if self.guidance_scale != 1 else {}
        return {**self.call_options, **guided}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return scheduler, steps and guidance of the samples."""
        scheduler = pipeline.scheduler
        steps = self.steps or scheduler.default_num_inference_steps
        name = type(scheduler).__name__
        return {"samples above": f"{name}, {steps} steps, guidance {self.guidance_scale}, fixed seeds"}


def _thinned(trajectory: Tensor) -> list[Tensor]:
    """Return about `FRAMES` of the states of a trajectory (n, B, ...), the last one among them."""
    every = max(1, len(trajectory) // FRAMES)
    return list(trajectory.flip(0)[::every].flip(0))

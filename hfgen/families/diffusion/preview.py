"""Pictures of denoisers: samples, and a film from noise to samples."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from ...options import SampleArgs, SolverArgs
from ...utils import pictures
from ..preview import Preview


class DenoisingPreview(Preview):
    """Samples, and a film from noise to samples.

    Args:
        title, kind: see `Preview`.
        solver_args, sample_args: the options of samples.
        seed: of the first sample.
    """

    protocol = MappingProxyType({"guidance": 1.0})
    card_options = ("path", "prediction_type")

    def __init__(self, title: str, kind: str, solver_args: SolverArgs, sample_args: SampleArgs, seed: int):
        super().__init__(title, kind, sample_args, seed)
        self.steps, self.guidance_scale = solver_args.num_inference_steps, solver_args.guidance_scale
        self.call_options = {} if self.steps is None else {"num_inference_steps": self.steps}

    def grid(self, pipeline: Any) -> Image.Image:
        """Draw a grid of samples."""
        output, columns = self.draw(pipeline, **self.drawn_with(pipeline))
        return pictures.grid(output.images, columns, labels=self.row_names(pipeline))

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid, and a film of every step on the way to it."""
        out, columns = self.draw(pipeline, return_trajectory=True, **self.drawn_with(pipeline))
        stages = [pipeline.to_images(pipeline.to_samples(x).clamp(-1, 1)) for x in out.trajectory]
        labels = self.row_names(pipeline)
        self.write(output, self.grid_name, pictures.grid(stages[-1], columns, labels=labels), pipeline)
        frames = [pictures.grid(images, columns, width=256, labels=labels) for images in stages]
        pictures.animate(frames, output / "denoising.gif")
        return {self.grid_name: "samples", "denoising.gif": "from noise to images"}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return scheduler, steps and guidance of the samples."""
        steps = self.steps or getattr(pipeline.scheduler, "default_num_inference_steps", "default")
        scheduler = type(pipeline.scheduler).__name__
        return {"samples above": f"{scheduler}, {steps} steps, guidance {self.guidance_scale}, fixed seeds"}

    def drawn_with(self, pipeline: Any) -> dict[str, Any]:
        """Return steps and guidance."""
        scale = 1.0 if pipeline.condition is None else self.guidance_scale
        return {"num_inference_steps": self.steps, "guidance_scale": scale}

"""Pictures of normalizing flows: samples, and a film between images through their latents."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...utils import pictures
from ..preview import Preview
from .options import FlowSampleArgs

FRAMES = 17
"""Number of frames of an interpolation."""

SHOWN = 16
"""Images between which the film goes, at most."""


class FlowPreview(Preview):
    """Samples, and a film between held-out images through their latents.

    Args:
        title, kind: see `Preview`.
        args: size of the grid, and temperature of samples.
        seed: of the first sample.
        images (N, C, H, W): held-out images in [-1, 1].
    """

    card_options = ("model", "model_size", "elementwise", "dequantisation")

    def __init__(self, title: str, kind: str, args: FlowSampleArgs, seed: int, images: Tensor):
        super().__init__(title, kind, args, seed)
        self.call_options, self.images = {"temperature": args.temperature}, images[: min(SHOWN, self.grid_size)]
        self.protocol = dict(self.call_options)

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid and, where the flow does not need to know classes, `interpolation.gif`."""
        self.write(output, self.grid_name, self.grid(pipeline), pipeline)
        captions = {self.grid_name: "samples"}
        if pipeline.config.num_classes is None or pipeline.null_label is not None:
            pictures.animate(self._film(pipeline), output / "interpolation.gif")
            captions["interpolation.gif"] = "between images, on a way through their latents"
        return captions

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return how the samples were drawn."""
        temperature = self.call_options["temperature"]
        noise = ", noise removed" if pipeline.config.noise_level else ""
        return {"samples above": f"exact inverse, temperature {temperature:g}{noise}, fixed seeds"}

    def _film(self, pipeline: Any) -> list[Image.Image]:
        """Draw images on the way from each image to the next."""
        path = pipeline.interpolate(self.images, self.images.roll(-1, 0), FRAMES, "spherical").cpu().clamp(-1, 1)
        columns = max(1, round(len(self.images) ** 0.5))
        return [pictures.grid(pipeline.to_images(stage), columns, width=256) for stage in path]

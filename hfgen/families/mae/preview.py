"""Pictures of masked autoencoders: images, what is visible of them, and what is made of that."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...options import SampleArgs
from ...utils import pictures
from ..preview import Preview, command

SHOWN = 27
"""Images in a picture, at most, three to a row."""

GREY = 0.0
"""Value of hidden pixels in pictures."""


class MaskedPreview(Preview):
    """Held-out images, each with its visible patches and with its reconstruction.

    Args:
        seed: of the masks.
        images (N, C, H, W): in [-1, 1].
    """

    grid_name = "reconstructions.png"
    card_options = ("model_size", "mask_ratio", "normalised_targets")
    task = "image-feature-extraction"
    outcome = ".features  # images: (B, C, H, W) in [-1, 1]"

    def __init__(self, seed: int, images: Tensor):
        super().__init__("Masked autoencoder", "masked autoencoder", SampleArgs(), seed)
        self.images = images[:SHOWN]

    def grid(self, pipeline: Any) -> Image.Image:
        """Draw triples of an image, its visible part and its reconstruction, three to a row."""
        hidden = pipeline.mask(len(self.images), seed=self.seed)
        visible = torch.where(hidden, GREY, self.images)
        made = pipeline.reconstruct(self.images, seed=self.seed).cpu()
        return pictures.grid(pipeline.to_images(torch.stack([self.images, visible, made], 1).flatten(0, 1)), 9)

    def action(self, pipeline: Any) -> str:
        """Return "reconstruct"."""
        return "reconstruct"

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid alone."""
        self.write(output, self.grid_name, self.grid(pipeline), pipeline, self.action(pipeline))
        return {self.grid_name: "images, what is visible of each, and what the model makes of that"}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return the origin of the images, and the length of a representation."""
        return {
            "pictures above": f"of the measured split, {pipeline.config.mask_ratio:.0%} of the patches hidden",
            "features of an image": pipeline.autoencoder.config.hidden_size,
        }

    def example(self, pipeline: Any) -> str:
        """Return the arguments of a call from images to features."""
        return "images"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return commands that measure reconstructions, and that print the features of a grey image."""
        measure = command("hfgen", "evaluate", output, "--metrics", "reconstruction")
        load = f"from hfgen import HFGenPipeline as P; p = P.from_pretrained({str(output)!r})"
        return [
            measure,
            command("python", "-c", f"import torch; {load}; print(p.encode(torch.zeros(1, *p.sample_shape)))"),
        ]

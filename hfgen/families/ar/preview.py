"""Pictures of autoregressive models: samples, and lower halves of images that the model completes."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...console.progress import quiet
from ...utils import pictures
from ...utils.seeds import sample_generators
from ..preview import Preview
from .options import ARSampleArgs

COMPLETIONS = 4
"""Completions of each image."""

SHOWN = 10
"""Images that are completed, at most."""


class ARPreview(Preview):
    """Samples, and completions of held-out images from their upper halves.

    Args:
        title, kind: see `Preview`.
        args: size of the grid, temperature and guidance of samples.
        seed: of the first sample.
        images (N, C, H, W): held-out images in [-1, 1] to complete; None: none, of a model that completes none.
    """

    card_options = ("model", "model_size", "pixels")

    def __init__(self, title: str, kind: str, args: ARSampleArgs, seed: int, images: Tensor | None = None):
        super().__init__(title, kind, args, seed)
        guided = {"guidance_scale": args.guidance_scale} if args.guidance_scale != 1 else {}
        self.call_options, self.images = {"temperature": args.temperature, **guided}, images
        self.protocol = dict(self.call_options)

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid and, where the model does not need to know classes, `completions.png`."""
        self.write(output, self.grid_name, self.grid(pipeline), pipeline)
        captions = {self.grid_name: "samples"}
        if self.images is not None and (pipeline.config.num_classes is None or pipeline.null_label is not None):
            self.write(output, "completions.png", self.completions(pipeline), pipeline, "complete")
            captions["completions.png"] = (
                "images in the first column, and lower halves that the model drew, given the rest"
            )
        return captions

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return how the samples were drawn."""
        options = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.call_options.items())
        return {"samples above": f"one token after the other, {options}, fixed seeds"}

    def completions(self, pipeline: Any) -> Image.Image:
        """Draw a row for each image: the image, and completions of its upper half, in whole patches."""
        patch, images = pipeline.model.config.get("patch_size", 1), self.images[:SHOWN]
        rows = images.shape[2] // 2 // patch * patch
        given = images.repeat_interleave(COMPLETIONS, 0)
        generators = sample_generators(self.seed, range(len(given)))
        with quiet(pipeline):
            options = {"generator": generators, "temperature": self.call_options["temperature"]}
            drawn = pipeline.complete(given, rows, **options, output_type="latent").images.cpu()
        table = torch.cat([images[:, None], drawn.unflatten(0, (-1, COMPLETIONS))], 1)
        return pictures.grid(pipeline.to_images(table.flatten(0, 1)), COMPLETIONS + 1)

"""Pictures of autoencoders: samples, reconstructions, interpolations and traversals of the latent space."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...options import SampleArgs
from ...utils import pictures
from ..preview import Preview, command

FRAMES = 17
"""Number of frames of an interpolation."""

STEPS = 9
"""Number of values of a latent dimension in a traversal."""


class ReconstructionPreview(Preview):
    """Images beside their reconstructions, for autoencoders that draw no samples.

    Args:
        title, kind, args, seed: see `Preview`.
        images (N, C, H, W): held-out images in [-1, 1] to show.
    """

    grid_name = "reconstructions.png"
    card_options = ("objective", "model", "likelihood")

    def __init__(self, title: str, kind: str, args: SampleArgs, seed: int, images: Tensor):
        super().__init__(title, kind, args, seed)
        self.images = images[: max(1, self.grid_size // 2)]

    def grid(self, pipeline: Any) -> Image.Image:
        """Draw pairs of an image and its reconstruction, five per row."""
        pairs = torch.stack([self.images, pipeline.reconstruct(self.images).cpu()], 1)
        return pictures.grid(pipeline.to_images(pairs.flatten(0, 1)), 10)

    def action(self, pipeline: Any) -> str:
        """Return "reconstruct"."""
        return "reconstruct"

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid alone."""
        self.write(output, self.grid_name, self.grid(pipeline), pipeline, self.action(pipeline))
        return {self.grid_name: "images, each with its reconstruction on the right"}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return the origin of the images."""
        return {"pictures above": "the first images of the measured split"}

    def example(self, pipeline: Any) -> str:
        """Return the arguments of a call of the pipeline from codes to images."""
        return "\n    codes=pipeline.encode(images)  # images: (B, C, H, W) in [-1, 1]\n"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return the command that measures reconstructions and, of a pipeline of codes, that which trains a prior."""
        measure = command("hfgen", "evaluate", output, "--metrics", "reconstruction")
        prior = command("hfgen", "train", "ar", "--pipeline", output, "--output_dir", f"{output}_prior")
        return [measure, prior] if hasattr(pipeline, "code_shape") else [measure]


class VAEPreview(Preview):
    """Samples, reconstructions, a film between images, and traversals of single latent dimensions.

    Args:
        title, kind, args, seed, images: see `ReconstructionPreview`.
        describe_prior: pipeline -> description of its prior.
    """

    card_options = ("objective", "model", "likelihood")

    def __init__(
        self,
        title: str,
        kind: str,
        args: SampleArgs,
        seed: int,
        images: Tensor,
        describe_prior: Callable[[Any], str],
    ):
        super().__init__(title, kind, args, seed)
        self.reconstructions = ReconstructionPreview(title, kind, args, seed, images)
        self.describe_prior = describe_prior

    def grid(self, pipeline: Any) -> Image.Image:
        """Draw a grid of samples, or of reconstructions if the pipeline has no prior yet."""
        if self.action(pipeline) == "reconstruct":
            return self.reconstructions.grid(pipeline)
        out, columns = self.draw(pipeline)
        return pictures.grid(out.images, columns)

    def action(self, pipeline: Any) -> str:
        """Return "reconstruct" if the pipeline has no prior yet, else "generate"."""
        fitted = pipeline.config.variational or pipeline.prior.config.num_components != 1
        return "generate" if fitted else "reconstruct"

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid, reconstructions, `interpolation.gif` and `traversal.png`."""
        self.write(output, self.grid_name, self.grid(pipeline), pipeline, self.action(pipeline))
        captions = {self.grid_name: "samples", **self.reconstructions.save(pipeline, output)}
        images = self.reconstructions.images
        path = pipeline.interpolate(images, images.roll(-1, 0), FRAMES).cpu()  # (frames, N, C, H, W)
        columns = max(1, round(len(images) ** 0.5))
        frames = [pictures.grid(pipeline.to_images(stage), columns, width=256) for stage in path]
        pictures.animate(frames, output / "interpolation.gif")
        rows = pipeline.traversal(images[0], self.widest_dimensions(pipeline), STEPS).cpu()  # (rows, steps, C, H, W)
        picture = pictures.grid(pipeline.to_images(rows.flatten(0, 1)), STEPS)
        self.write(output, "traversal.png", picture, pipeline, "traversal")
        captions["interpolation.gif"] = "between images, on a line through the latent space"
        captions["traversal.png"] = "an image with one dimension of its latent from -3 to 3 in each row"
        return captions

    def widest_dimensions(self, pipeline: Any, count: int = 10) -> list[int]:
        """Return the dimensions of the flattened latent with the largest variance over the images, largest first."""
        variances = pipeline.encode(self.reconstructions.images).flatten(1).var(0, unbiased=False)
        return variances.argsort(descending=True)[:count].tolist()

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return the prior of the samples."""
        prior = f"{self.describe_prior(pipeline)} in {math.prod(pipeline.latent_shape)} dimensions"
        return {"samples above": f"one pass, prior: {prior}, fixed seeds", **self.reconstructions.facts(pipeline)}


def make_preview(recipe: Any, args: SampleArgs, seed: int, images: Tensor) -> Preview:
    """Return the preview for an `AutoencoderRecipe`, with held-out images (N, C, H, W) in [-1, 1]."""
    if recipe.can_sample:
        return VAEPreview(recipe.title, recipe.kind, args, seed, images, recipe.describe_prior)
    return ReconstructionPreview(recipe.title, recipe.kind, args, seed, images)

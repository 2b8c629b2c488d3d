"""Pictures of autoencoders: what they draw, what they make of images, and what lies between and along."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...options import SampleArgs
from ...utils import pictures
from ..preview import Preview

FRAMES = 17
"""Of an interpolation."""

STEPS = 9
"""Values of a latent dimension that are shown."""


class ReconstructionPreview(Preview):
    """Images beside their reconstructions, for autoencoders that draw none.

    Args:
        title, kind, args, seed: see `Preview`.
        images (N, C, H, W): held-out images in [-1, 1] to show.
    """

    sheet_name = "reconstructions.png"
    chosen = ("objective", "model", "likelihood")

    def __init__(self, title: str, kind: str, args: SampleArgs, seed: int, images: Tensor):
        super().__init__(title, kind, args, seed)
        self.images = images[: max(1, self.most // 2)]

    def sheet(self, pipeline: Any) -> Image.Image:
        """Pairs of an image and its reconstruction, five a row."""
        both = torch.stack([self.images, pipeline.reconstruct(self.images).cpu()], 1)
        return pictures.grid(pipeline.to_images(both.flatten(0, 1)), 10)

    def hang(self, pipeline: Any, output: Path) -> dict[str, str]:
        """The sheet alone."""
        self.sheet(pipeline).save(output / self.sheet_name)
        return {self.sheet_name: "images, each with its reconstruction to the right"}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """What the pictures are of."""
        return {"pictures above": "images of the split that was measured, none picked"}

    def example(self, pipeline: Any) -> str:
        """From images to codes and back."""
        return "\n    codes=pipeline.encode(images)  # images: (B, C, H, W) in [-1, 1]\n"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Reconstruction is what it can be measured by."""
        return [f"hfgen evaluate {output} --metrics reconstruction"]


class VAEPreview(Preview):
    """Samples, reconstructions, a film from images to others, and what single dimensions of a latent do.

    Args:
        title, kind, args, seed, images: see `ReconstructionPreview`.
        prior_of: a pipeline's prior in words.
        protocol: what figures of samples hold for while the model trains.
    """

    chosen = ("objective", "model", "likelihood")

    def __init__(
        self,
        title: str,
        kind: str,
        args: SampleArgs,
        seed: int,
        images: Tensor,
        prior_of: Callable[[Any], str],
    ):
        super().__init__(title, kind, args, seed)
        self.pairs = ReconstructionPreview(title, kind, args, seed, images)
        self.prior_of = prior_of

    def sheet(self, pipeline: Any) -> Image.Image:
        """A grid of samples; before there is a prior to draw from, reconstructions."""
        if not pipeline.config.variational and pipeline.prior.config.num_components == 1:
            return self.pairs.sheet(pipeline)
        out, columns = self.draw(pipeline)
        return pictures.grid(out.images, columns)

    def hang(self, pipeline: Any, output: Path) -> dict[str, str]:
        """The sheet, reconstructions, `interpolation.gif` and `traversal.png`."""
        self.sheet(pipeline).save(output / self.sheet_name)
        captions = {self.sheet_name: "samples", **self.pairs.hang(pipeline, output)}
        images = self.pairs.images
        path = pipeline.interpolate(images, images.roll(-1, 0), FRAMES).cpu()  # (frames, N, C, H, W)
        columns = max(1, round(len(images) ** 0.5))
        frames = [pictures.grid(pipeline.to_images(stage), columns, width=256) for stage in path]
        pictures.animate(frames, output / "interpolation.gif")
        rows = pipeline.traversal(images[0], self.busiest(pipeline), STEPS).cpu()  # (rows, steps, C, H, W)
        pictures.grid(pipeline.to_images(rows.flatten(0, 1)), STEPS).save(output / "traversal.png")
        captions["interpolation.gif"] = "between images, on a line through the latent space"
        captions["traversal.png"] = "an image with single dimensions of its latent from -3 to 3, a row each"
        return captions

    def busiest(self, pipeline: Any, count: int = 10) -> list[int]:
        """The dimensions of the flattened latent that vary most over the images, most first."""
        spread = pipeline.encode(self.pairs.images).flatten(1).var(0, unbiased=False)
        return spread.argsort(descending=True)[:count].tolist()

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """How the samples were drawn."""
        prior = f"{self.prior_of(pipeline)} in {math.prod(pipeline.latent_shape)} dimensions"
        return {"samples above": f"one pass, prior: {prior}, fixed seeds", **self.pairs.facts(pipeline)}

    def example(self, pipeline: Any) -> str:
        """Four images."""
        return "batch_size=4"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """From the command line and from Python."""
        show = f"from hfgen import HFGenPipeline as P; P.from_pretrained('{output}')().images[0].show()"
        return [f"hfgen sample {output} --num 16 --grid grid.png", f'python -c "{show}"']


def gallery(design: Any, args: SampleArgs, seed: int, images: Tensor) -> Preview:
    """What is shown of models of this design (`hfgen.families.vae.recipe.Design`) with these held-out images."""
    if design.draws:
        return VAEPreview(design.title, design.kind, args, seed, images, design.prior_of)
    return ReconstructionPreview(design.title, design.kind, args, seed, images)

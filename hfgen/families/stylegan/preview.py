"""Pictures of style-based generators: those of a GAN, style mixing and edits by groups of layers."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...utils import pictures
from ...utils.seeds import generator_of
from ..gan.preview import GANPreview

MIXED, STEPS = 5, 9
"""Images along each side of a mixing grid, and images of an edit."""

REACH = 3.0
"""Largest factor of an edit, in deviations of styles along its direction."""

MEASURED = 512
"""Latents that the deviation is measured on."""


class StyleGANPreview(GANPreview):
    """Samples, a film along a closed path of latents, style mixing, edits, and the curves of `CollapseMonitor`."""

    card_options = ("model_size", "loss", "style_mixing", "path_length", "augment", "augment_target")

    def more_pictures(self, pipeline: Any) -> dict[str, tuple[Image.Image, str, str]]:
        """Return `mixing.png` and `edits.png`."""
        mixing, edits = self._mixing(pipeline), self._edits(pipeline)
        return {
            "mixing.png": (mixing, "the styles of a row with the coarse, middle or fine ones of a column", "mix"),
            "edits.png": (edits, "one image along the first direction of each group of layers", "edit"),
        }

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return how the samples were drawn."""
        size = pipeline.generator.config.latent_channels
        return {"samples above": f"one pass, standard normal latents of {size} dimensions, no truncation, fixed seeds"}

    def frame(self, pipeline: Any, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Return the images of latents, without noise."""
        return pipeline.decode(pipeline.styles(latents, labels))

    def latent_shape(self, pipeline: Any) -> tuple[int, ...]:
        """Return the shape of a latent."""
        return (pipeline.generator.config.latent_channels,)

    def _styles(self, pipeline: Any, count: int) -> Tensor:
        """Return styles of `count` latents, of all classes in turn."""
        classes = pipeline.config.num_classes
        z = torch.randn(count, *self.latent_shape(pipeline), generator=generator_of("mixing", self.seed))
        return pipeline.styles(z, None if classes is None else torch.arange(count) % classes)

    def _mixing(self, pipeline: Any) -> Image.Image:
        """Draw a block for each group of layers: styles of its rows, with those of this group from its columns."""
        styles = self._styles(pipeline, 2 * MIXED)
        rows, columns = styles[:MIXED], styles[MIXED:]
        noise = torch.randn(1, pipeline.noise_size, generator=generator_of("mixing", self.seed, "noise"))
        left, top = (_pil(pipeline, pipeline.decode(each, noise)) for each in (rows, columns))
        images: list[Image.Image | None] = []
        for group in pipeline.layer_groups:
            mixed = pipeline.mixing_grid(rows, columns, group, noise)
            images += [None, *top]
            for first, row in zip(left, mixed, strict=True):
                images += [first, *_pil(pipeline, row)]
        labels = [group if i == 0 else "" for group in pipeline.layer_groups for i in range(MIXED + 1)]
        return pictures.grid(images, MIXED + 1, labels=labels)

    def _edits(self, pipeline: Any) -> Image.Image:
        """Draw one image, moved along the first direction of each group of layers, a row each."""
        styles, images = self._styles(pipeline, MEASURED), []
        for group in pipeline.layer_groups:
            direction = pipeline.directions(group, 1)[0][0].to(styles)
            deviation = (styles[:, 0] @ direction).std().item()
            images += _pil(pipeline, pipeline.edits(styles[:1], direction, group, STEPS, REACH * deviation)[0])
        return pictures.grid(images, STEPS, labels=list(pipeline.layer_groups))


def _pil(pipeline: Any, images: Tensor) -> list[Image.Image]:
    return pipeline.to_images(images.clamp(-1, 1))

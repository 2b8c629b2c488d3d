"""Pictures of adversarial models: samples, a film between latents, and curves of the collapse monitor."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...disk.files import write_picture
from ...options import SampleArgs
from ...pipelines.latents import interpolate_latents
from ...utils import pictures
from ...utils.seeds import generator_of
from ..preview import Preview, command, show_command
from .collapse import CollapseMonitor

STOPS, FRAMES = 4, 10
"""Latents on the path of the film, and frames from one to the next."""


class GANPreview(Preview):
    """Samples, a film along a closed path of latents, and the curves of `CollapseMonitor`.

    Args:
        title, kind, args, seed: see `Preview`.
        monitor: holds the measurements of the training.
    """

    card_options = ("model", "model_size", "loss", "n_critic", "fresh_batches", "augment", "spectral_norm")

    def __init__(self, title: str, kind: str, args: SampleArgs, seed: int, monitor: CollapseMonitor):
        super().__init__(title, kind, args, seed)
        self.monitor = monitor

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid, `interpolation.gif`, `more_pictures`, and `health.png` after two measurements or more."""
        self.write(output, self.grid_name, self.grid(pipeline), pipeline)
        classes = "" if pipeline.config.num_classes is None else ", the same in each row of a class"
        captions = {self.grid_name: "samples", "interpolation.gif": f"along a path of latents{classes}"}
        pictures.animate(self._film(pipeline), output / "interpolation.gif", seconds=5, hold=0)
        if len(rows := self.monitor.rows) > 1:
            names = ("recall", "coverage", "diversity")
            lines = {name: [(row["step"], row[name]) for row in rows] for name in names}
            write_picture(output / "health.png", pictures.curves(lines))
            captions["health.png"] = "recall, coverage and diversity (1: as real images) over steps"
        for name, (picture, caption, action) in self.more_pictures(pipeline).items():
            self.write(output, name, picture, pipeline, action)
            captions[name] = caption
        return captions

    def more_pictures(self, pipeline: Any) -> dict[str, tuple[Image.Image, str, str]]:
        """Return further pictures by file name, with their captions and what the pipeline did for them: none."""
        return {}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return how the samples were drawn."""
        size = self.latent_shape(pipeline)[0]
        return {"samples above": f"one pass, standard normal latents of {size} dimensions, fixed seeds"}

    def latent_shape(self, pipeline: Any) -> tuple[int, ...]:
        """Return the shape of a standard normal latent."""
        return pipeline.latent_shape

    def frame(self, pipeline: Any, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Return images (B, C, H, W) of latents (B, *latent_shape), and of labels (B,) if there are classes."""
        return pipeline.decode(latents, labels)

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return command lines to try next."""
        classes = pipeline.config.num_classes
        labels, number = () if classes is None else ("--class_labels", "all"), max(100, classes or 0)
        return [
            command("hfgen", "sample", output, "--num_samples", number, *labels, "--grid", "grid.png"),
            show_command(output),
        ]

    def _film(self, pipeline: Any) -> list[Image.Image]:
        """Draw frames through STOPS latents and back to the first. The classes of a column share theirs."""
        (rows, columns), classes = self.layout(pipeline), pipeline.config.num_classes
        repeats, labels = (1, None) if classes is None else (rows, torch.arange(rows).repeat_interleave(columns))
        each = rows * columns // repeats
        noise = generator_of("film", self.seed)
        stops = torch.randn(STOPS, each, *self.latent_shape(pipeline), generator=noise)
        frames = []
        for first, second in zip(stops, stops.roll(-1, 0), strict=True):
            for z in interpolate_latents(first, second, FRAMES + 1, "spherical")[:-1]:
                latents = z.repeat(repeats, *[1] * (z.ndim - 1))
                images = self.frame(pipeline, latents, labels).clamp(-1, 1)
                frames.append(pictures.grid(pipeline.to_images(images), columns, 256, labels=self.row_names(pipeline)))
        return frames

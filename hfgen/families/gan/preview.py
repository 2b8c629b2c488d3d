"""Pictures of adversarial models: samples, a film between latents, and health over the steps."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...options import SampleArgs
from ...pipelines.latents import interpolate_latents
from ...utils import pictures
from ..preview import Preview
from .collapse import CollapseMonitor

STOPS, FRAMES = 4, 10
"""Latents that a film goes through, and frames from one to the next."""


class GANPreview(Preview):
    """Samples, a film from latents to others and back, and the curves of `CollapseMonitor`.

    Args:
        title, kind, args, seed: see `Preview`.
        watch: what has measured the model while it was trained.
    """

    chosen = ("model", "model_size", "loss", "n_critic", "augment", "spectral_norm")

    def __init__(self, title: str, kind: str, args: SampleArgs, seed: int, watch: CollapseMonitor):
        super().__init__(title, kind, args, seed)
        self.watch = watch

    def sheet(self, pipeline: Any) -> Image.Image:
        """A grid of samples, a row a class."""
        out, columns = self.draw(pipeline)
        return pictures.grid(out.images, columns)

    def hang(self, pipeline: Any, output: Path) -> dict[str, str]:
        """The sheet, `interpolation.gif`, and `health.png` where there are two rows or more."""
        self.sheet(pipeline).save(output / self.sheet_name)
        classes = "" if pipeline.config.num_classes is None else ", the same in each row of a class"
        captions = {self.sheet_name: "samples", "interpolation.gif": f"from latents to others{classes}"}
        pictures.animate(self._film(pipeline), output / "interpolation.gif", seconds=5, hold=0)
        if len(rows := self.watch.rows) > 1:
            names = ("recall", "coverage", "diversity")
            lines = {name: [(row["step"], row[name]) for row in rows] for name in names}
            pictures.curves(lines).save(output / "health.png")
            captions["health.png"] = "recall, coverage and diversity (1: as real images) over steps"
        return captions

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """How the samples were drawn."""
        size = pipeline.latent_shape[0]
        return {"samples above": f"one pass, standard normal latents of {size} dimensions, fixed seeds"}

    def example(self, pipeline: Any) -> str:
        """Two classes, or four images without."""
        return "batch_size=4" if pipeline.config.num_classes is None else "class_labels=[0, 1]"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """From the command line and from Python."""
        labels = "" if pipeline.config.num_classes is None else " --class_labels all"
        show = f"from hfgen import HFGenPipeline as P; P.from_pretrained('{output}')().images[0].show()"
        return [f"hfgen sample {output} --num 100{labels} --grid grid.png", f'python -c "{show}"']

    def _film(self, pipeline: Any) -> list[Image.Image]:
        """Frames through STOPS latents and back to the first; the classes of a column share theirs."""
        (rows, columns), classes = self.layout(pipeline), pipeline.config.num_classes
        repeats, labels = (1, None) if classes is None else (rows, torch.arange(rows).repeat_interleave(columns))
        each = rows * columns // repeats
        noise = torch.Generator().manual_seed(self.seed)
        stops = torch.randn(STOPS, each, *pipeline.latent_shape, generator=noise)
        frames = []
        for first, second in zip(stops, stops.roll(-1, 0), strict=True):
            for z in interpolate_latents(first, second, FRAMES + 1, "spherical")[:-1]:
                images = pipeline.decode(z.repeat(repeats, 1, 1, 1), labels).clamp(-1, 1)
                frames.append(pictures.grid(pipeline.to_images(images), columns, width=256))
        return frames

"""Pictures of anomaly detectors: the held-out images with the highest and the lowest scores."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...disk.files import write_picture
from ...options import SampleArgs
from ...utils import heatmap, pictures
from ..preview import Preview, command
from .options import AnomalyArgs

COUNT = 10
"""Number of images with the highest scores, and of images with the lowest scores."""


class AnomalyPreview(Preview):
    """Held-out normal images with their heat maps, which show where the reconstruction is wrong or an energy steep.

    Args:
        args: the options.
        sample_args, seed: see `Preview`.
        images (N, C, H, W): held-out images in [-1, 1].
    """

    grid_name = "anomalies.png"
    card_options = ("score", "objective", "model", "likelihood")
    task = "image-classification"
    outcome = ".decisions  # images: (B, C, H, W) in [-1, 1]"

    def __init__(self, args: AnomalyArgs, sample_args: SampleArgs, seed: int, images: Tensor):
        super().__init__("Anomaly detector", "anomaly detection", sample_args, seed)
        self.score, self.images = args.score, images
        if args.pipeline is not None:  # nothing is trained: the other options say nothing of it
            self.card_options = ("score",)

    def grid(self, pipeline: Any) -> Image.Image:
        """Draw rows of images and heat maps: those with the highest scores, then those with the lowest."""
        order = pipeline.anomaly_score(self.images).argsort(descending=True).cpu()
        images = self.images[[*order[:COUNT].tolist(), *order[-COUNT:].tolist()]]
        output = pipeline(images)
        originals, scale = pipeline.to_images(images), pipeline.config.heat_scale
        overlays = [heatmap.overlay(*pair, scale) for pair in zip(originals, output.heat_maps, strict=True)]
        half, rows = len(originals) // 2, []
        for part in (slice(0, half), slice(half, None)):
            rows += [*(image.convert("RGB") for image in originals[part]), *overlays[part]]
        return pictures.grid(rows, half)

    def action(self, pipeline: Any) -> None:
        """Return None: the images are those of the data, under colours."""

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid alone."""
        write_picture(output / self.grid_name, self.grid(pipeline))
        caption = "held-out normal images with the highest scores and their heat maps, then those with the lowest"
        return {self.grid_name: caption}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return the origin of the images."""
        return {"picture above": f"of {len(self.images):,} normal images held out from training"}

    def example(self, pipeline: Any) -> str:
        """Return the arguments of a call of the pipeline from images to decisions."""
        return "images"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return the command that scores images."""
        words = ("path/to/images", "--csv", "scores.csv", "--heat_maps", "heat_maps")
        return [command("hfgen", "anomaly", "score", output, *words)]

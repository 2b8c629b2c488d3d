"""Pictures of anomaly detectors: the most and the least normal of images that nothing was fitted to."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...options import SampleArgs
from ...utils import heatmap as heat
from ...utils import pictures
from ..preview import Preview
from .options import AnomalyArgs

SHOWN = 10
"""Images of each kind."""


class AnomalyPreview(Preview):
    """Normal images that were held out, and where the autoencoder fails on them.

    Args:
        args: what is detected how.
        sample_args, seed: see `Preview`.
        images (N, C, H, W): held-out images in [-1, 1].
    """

    sheet_name = "anomalies.png"
    chosen = ("score", "objective", "model", "likelihood")
    task = "image-classification"
    outcome = ".decisions  # images: (B, C, H, W) in [-1, 1]"

    def __init__(self, args: AnomalyArgs, sample_args: SampleArgs, seed: int, images: Tensor):
        super().__init__("Anomaly detector", "anomaly detection", sample_args, seed)
        self.score, self.images = args.score, images

    def sheet(self, pipeline: Any) -> Image.Image:
        """Rows of images and their heat maps: those with the highest scores first, then those with the lowest."""
        order = pipeline.anomaly_score(self.images).argsort(descending=True).cpu()
        chosen = self.images[[*order[:SHOWN].tolist(), *order[-SHOWN:].tolist()]]
        found = pipeline(chosen)
        plain = pipeline.to_images(chosen)
        hot = [heat.overlay(*pair, pipeline.config.heat_scale) for pair in zip(plain, found.heat_maps, strict=True)]
        half, rows = len(plain) // 2, []
        for part in (slice(0, half), slice(half, None)):
            rows += [*(image.convert("RGB") for image in plain[part]), *hot[part]]
        return pictures.grid(rows, half)

    def hang(self, pipeline: Any, output: Path) -> dict[str, str]:
        """The sheet alone."""
        self.sheet(pipeline).save(output / self.sheet_name)
        caption = "held-out normal images with the highest scores and their heat maps, then those with the lowest"
        return {self.sheet_name: caption}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """What the picture is of."""
        return {"picture above": f"of {len(self.images):,} normal images held out from training"}

    def example(self, pipeline: Any) -> str:
        """From images to decisions."""
        return "images"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """What it is for."""
        return [f"hfgen anomaly score {output} folder_of_images --csv scores.csv --heat_maps heat_maps"]

"""What the card of a classifier shows: accuracies, in place of pictures."""

from pathlib import Path
from typing import Any

from ...options import SampleArgs
from ..preview import Preview, command


class ClassifierPreview(Preview):
    """Commands and calls of a classifier of noisy images.

    Args:
        seed: of the run.
    """

    card_options = ("noise", "path", "model_size")

    def __init__(self, seed: int):
        super().__init__("Classifier of noisy images", "classifier", SampleArgs(), seed)

    def grid(self, pipeline: Any) -> None:
        """Return None: a classifier has no picture."""

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return the number of classes."""
        return {"classes": pipeline.config.num_classes}

    def example(self, pipeline: Any) -> str:
        """Return the arguments of a call for a list of images."""
        return "images=[image]"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return the command that prints the probabilities of a grey image."""
        load = f"from hfgen import HFGenPipeline as P; p = P.from_pretrained({str(output)!r})"
        return [command("python", "-c", f"import torch; {load}; print(p(torch.zeros(1, *p.sample_shape))[0])")]

"""Pictures of models with two clocks: a row of images for each prompt, and all five modes."""

from pathlib import Path
from typing import Any

from PIL import Image

from ...console.progress import quiet
from ...utils import pictures
from ...utils.seeds import sample_generators
from ..preview import command, show_command
from ..text_to_image.preview import TextPreview

COLUMNS = 4
"""Images of a mode in the picture of all modes."""


class TwoClockPreview(TextPreview):
    """Images of prompts, and a picture of all modes.

    Arguments are those of `TextPreview`.
    """

    card_options = ("path", "prediction_type", "text_weight", "end_share")

    def grid(self, pipeline: Any) -> Image.Image:
        """Draw a row of images for each prompt."""
        output = self._call(pipeline, self.shown(pipeline)["prompt"], **self.drawn_with(pipeline))
        return pictures.grid(output.images, self.layout(pipeline)[1], labels=self.row_names(pipeline))

    def drawn_with(self, pipeline: Any) -> dict[str, Any]:
        """Return steps and guidance."""
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the grid, and `modes.png`: a row for each mode that draws images or is given them."""
        self.write(output, self.grid_name, self.grid(pipeline), pipeline)
        self.write(output, "modes.png", self.modes(pipeline), pipeline, "modes")
        about = "images alone; pairs of image and text; images of a text; texts of these images"
        return {self.grid_name: "samples of prompts", "modes.png": about}

    def modes(self, pipeline: Any) -> Image.Image:
        """Draw a row for each mode: below each image the text that it was drawn with, from or to."""
        steps = {"num_inference_steps": self.steps}
        alone = self._call(pipeline, COLUMNS, mode="image", **steps)
        both = self._call(pipeline, COLUMNS, mode="joint", **steps)
        asked = [self.prompts[number % len(self.prompts)] for number in range(COLUMNS)]
        made = self._call(pipeline, asked, guidance_scale=self.guidance_scale, **steps)
        with quiet(pipeline):
            said = pipeline(images=made.images, generator=sample_generators(self.seed, range(COLUMNS)), **steps)
        texts = self._call(pipeline, COLUMNS, mode="text", **steps).texts
        blank = [Image.new("RGB", made.images[0].size, "white")] * COLUMNS
        rows = {
            "image": (alone.images, [""] * COLUMNS),
            "text": (blank, texts),
            "joint": (both.images, both.texts),
            "text to image": (made.images, asked),
            "image to text": (made.images, said.texts),
        }
        tiles = [pictures.tile(*pair) for images, words in rows.values() for pair in zip(images, words, strict=True)]
        return pictures.grid(tiles, COLUMNS, labels=list(rows))

    def text_facts(self, pipeline: Any) -> dict[str, str]:
        """Return the form of a text."""
        (count, channels), length = pipeline.text_shape, pipeline.text_autoencoder.config.max_length
        return {"text": f"{count} x {channels} numbers for at most {length} tokens"}

    def example(self, pipeline: Any) -> str:
        """Return the arguments of the card's example call."""
        scale = f", guidance_scale={self.guidance_scale}" if self.guidance_scale != 1 else ""
        return f"{self.prompts[0]!r}, batch_size=4{scale}"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return command lines to try next with the finished pipeline."""
        both = command("hfgen", "sample", output, "--num_samples", 16, "--grid", "grid.png")
        return [super().commands(pipeline, output)[0], both, show_command(output)]

    def _call(self, pipeline: Any, wanted: list[str] | int, **options: Any) -> Any:
        """Draw with fixed seeds: an image for each of these prompts, or as many samples."""
        given = {"batch_size": wanted} if isinstance(wanted, int) else {"prompt": wanted}
        count = wanted if isinstance(wanted, int) else len(wanted)
        with quiet(pipeline):
            return pipeline(**given, generator=sample_generators(self.seed, range(count)), **options)

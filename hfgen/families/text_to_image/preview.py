"""Pictures of models of images under texts: a row of samples for each prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...console.progress import quiet
from ...options import SampleArgs, SolverArgs
from ...utils.seeds import sample_generators
from ..diffusion.preview import DenoisingPreview
from ..preview import command, show_command

ROWS = 10
"""Prompts of a grid, at most, where the captions give them."""


class TextPreview(DenoisingPreview):
    """Samples of prompts, and a film from noise to samples.

    Args:
        title, kind, solver_args, sample_args, seed: see `DenoisingPreview`.
        prompts: a row of the grid each.
    """

    card_options = ("path", "prediction_type", "text_encoder", "label_dropout")
    task = "text-to-image"

    def __init__(
        self,
        title: str,
        kind: str,
        solver_args: SolverArgs,
        sample_args: SampleArgs,
        seed: int,
        prompts: Sequence[str],
    ):
        super().__init__(title, kind, solver_args, sample_args, seed)
        self.prompts = list(prompts)

    def layout(self, pipeline: Any) -> tuple[int, int]:
        """Return rows and columns of the grid: a row for each prompt."""
        rows = min(len(self.prompts), self.grid_size)
        return rows, max(1, min(self.grid_size // rows, 10))

    def row_names(self, pipeline: Any) -> list[str]:
        """Return the prompts of the rows."""
        return self.prompts[: self.layout(pipeline)[0]]

    def shown(self, pipeline: Any) -> dict[str, Any]:
        """Return the prompt of each sample."""
        columns = self.layout(pipeline)[1]
        return {"prompt": [text for text in self.row_names(pipeline) for _ in range(columns)]}

    def draw(self, pipeline: Any, **options: Any) -> tuple[Any, int]:
        """Draw samples with fixed seeds in this layout; return the pipeline's output and the number of columns."""
        rows, columns = self.layout(pipeline)
        generators = sample_generators(self.seed, range(rows * columns))
        with quiet(pipeline):
            output = pipeline(self.prompts[:rows], num_images_per_prompt=columns, generator=generators, **options)
        return output, columns

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return how the samples were drawn, and their prompts."""
        prompts = "; ".join(self.row_names(pipeline))
        return {**super().facts(pipeline), "prompts": prompts, **self.text_facts(pipeline)}

    def text_facts(self, pipeline: Any) -> dict[str, str]:
        """Return what texts are to the model."""
        return {"text encoder ": f"{type(pipeline.text_encoder).__name__}, {pipeline.config.max_length} tokens"}

    def example(self, pipeline: Any) -> str:
        """Return the arguments of the card's example call."""
        scale = f", guidance_scale={self.guidance_scale}" if self.guidance_scale != 1 else ""
        return f"{self.prompts[0]!r}, num_images_per_prompt=4{scale}"

    def condition_words(self) -> tuple[Any, ...]:
        """Return a prompt, and the guidance of these pictures."""
        scale = ("--guidance_scale", self.guidance_scale) if self.guidance_scale != 1 else ()
        return ("--prompt", self.prompts[0], "--num_samples", 16, *scale)

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return command lines to try next with the finished pipeline."""
        sample = command("hfgen", "sample", output, *self.condition_words(), "--grid", "grid.png")
        return [sample, show_command(output)]

"""The pictures of the family: curves of sequences under one prompt."""

from pathlib import Path
from typing import Any

from PIL import Image

from hfgen.families.preview import Preview, command, curves_of
from hfgen.options import SampleArgs

from .options import ToneSolverArgs


class TonePreview(Preview):
    """Curves of three sequences, under the prompt of the lowest and the highest frequency.

    Args:
        args: how samples are drawn.
        num_frequencies: number of tokens.
        seed: of the first sequence.
    """

    card_options = ("num_frequencies", "prompt_dropout", "replay_share", "replay_size")

    def __init__(self, args: ToneSolverArgs, num_frequencies: int, seed: int):
        super().__init__("Tone model", "rectified flow", SampleArgs(eval_batch_size=3), seed)
        self.prompt = [0, num_frequencies - 1]
        self.call_options = {
            "prompt": self.prompt,
            "num_inference_steps": args.num_inference_steps,
            "guidance_scale": args.guidance_scale,
        }

    def grid(self, pipeline: Any) -> Image.Image:
        """Draw the curves."""
        output, _ = self.draw(pipeline, **self.call_options)
        return curves_of(output.sequences)

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return prompt and guidance of the picture."""
        return {"samples above": f"prompt {self.prompt}, guidance {self.call_options['guidance_scale']}, fixed seeds"}

    def example(self, pipeline: Any) -> str:
        """Return the arguments of the card's example call."""
        return f"prompt={self.prompt}, batch_size=4"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return the command that draws more."""
        words = ("--num_samples", 3, "--call.prompt", self.prompt, "--output_dir", "sequences")
        return [command("hfgen", "sample", output, *words)]

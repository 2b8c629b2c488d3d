"""What the front doors of denoisers share: the scheduler to draw with, what can't be drawn, and their pictures."""

import copy
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

import hfgen

from ...options import SampleArgs, SolverArgs
from ...registry import PATHS, sampler
from ...utils import pictures
from ..preview import Preview


def check_size(model: str, size: str, resolution: int | None) -> None:
    """Refuse a resolution that the architecture can't take, without building it."""
    if resolution is not None and resolution > 0:
        with torch.device("meta"):
            hfgen.build_denoiser(model, size, resolution, 3)


def check_guidance(scale: float, class_conditional: bool, label_dropout: float) -> None:
    """Refuse to guide samples by classes that the network is not told, or by a null class that it never sees."""
    if scale == 1:
        return
    if not class_conditional:
        raise ValueError(f"guidance_scale={scale} needs a network that knows classes. Add --class_conditional.")
    if label_dropout <= 0:
        raise ValueError(
            f"guidance_scale={scale} needs images trained on without their class. Give --label_dropout 0.1."
        )


def make_scheduler(args: SolverArgs, path: str, prediction_type: str) -> Any:
    """The scheduler that samples are asked for with, on the path and for the prediction kind that a denoiser is trained
    with. Raises ValueError for what could not be drawn after training."""
    name = args.scheduler or ("rectified_flow" if path == "straight" else "dpmsolver++")
    cls, options = sampler(name)
    scheduler = getattr(hfgen, cls).from_config({**PATHS[path], "prediction_type": prediction_type, **options})
    if args.num_inference_steps is not None:
        copy.deepcopy(scheduler).set_timesteps(args.num_inference_steps)
    return scheduler


class DenoisingPreview(Preview):
    """Samples, and a film of them coming out of noise.

    Args:
        title, kind: see `Preview`.
        solver_args, sample_args: how samples are drawn, and how many.
        seed: of the first sample.
    """

    protocol = MappingProxyType({"guidance": 1.0})
    chosen = ("path", "prediction_type")

    def __init__(self, title: str, kind: str, solver_args: SolverArgs, sample_args: SampleArgs, seed: int):
        super().__init__(title, kind, sample_args, seed)
        self.steps, self.guidance_scale = solver_args.num_inference_steps, solver_args.guidance_scale
        self.options = {} if self.steps is None else {"num_inference_steps": self.steps}

    def sheet(self, pipeline: Any) -> Image.Image:
        """A grid of samples."""
        out, columns = self._drawn(pipeline)
        return pictures.grid(out.images, columns)

    def hang(self, pipeline: Any, output: Path) -> dict[str, str]:
        """The sheet, and every step on the way to it."""
        out, columns = self._drawn(pipeline, return_trajectory=True)
        stages = [pipeline.to_images(x.clamp(-1, 1)) for x in out.trajectory]
        pictures.grid(stages[-1], columns).save(output / self.sheet_name)
        frames = [pictures.grid(images, columns, width=256) for images in stages]
        pictures.animate(frames, output / "denoising.gif")
        return {self.sheet_name: "samples", "denoising.gif": "from noise to images"}

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """How the samples were drawn."""
        steps = self.steps or getattr(pipeline.scheduler, "default_num_inference_steps", "default")
        scheduler = type(pipeline.scheduler).__name__
        return {"samples above": f"{scheduler}, {steps} steps, guidance {self.guidance_scale}, fixed seeds"}

    def example(self, pipeline: Any) -> str:
        """Two classes, or four images without."""
        return "batch_size=4" if pipeline.config.num_classes is None else "class_labels=[0, 1]"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """From the command line and from Python."""
        labels = "" if pipeline.config.num_classes is None else " --class_labels 3"
        show = f"from hfgen import HFGenPipeline as P; P.from_pretrained('{output}')().images[0].show()"
        return [f"hfgen sample {output} --num 16{labels} --grid grid.png", f'python -c "{show}"']

    def _drawn(self, pipeline: Any, **call: Any) -> tuple[Any, int]:
        scale = 1.0 if pipeline.config.num_classes is None else self.guidance_scale
        return self.draw(pipeline, num_inference_steps=self.steps, guidance_scale=scale, **call)

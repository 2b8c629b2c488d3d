"""How far the samples of a student are from those of its teacher, at points of noise that never change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..console.progress import quiet
from ..disk.files import read_rows, write_rows
from ..disk.kinds import count, figure
from ..pipelines.outputs import require_finite
from ..utils.seeds import generator_of
from .callbacks import Callback

POINTS = 16
"""Points of noise, with the classes in turn."""

TEACHER_STEPS = 20

ROW = {"step": count, "gap": figure}
"""What each row of `gap.jsonl` holds."""


class TeacherGap(Callback):
    """Measures the root mean square between one step of a student and `TEACHER_STEPS` of its teacher, from the same
    noise, and writes rows {step, gap} of `gap.jsonl`.

    The teacher is an ODE, whose ends a flow map learns: at its optimum the gap is that of the teacher's own steps. A
    gap that grows tells of a failure before the samples do.

    Args:
        every: number of steps between measurements; 0: never.
        teacher: the pipeline of the teacher.
        pipeline: networks -> the pipeline of the student.
        output: folder of the run.
        guidance_scale: of the teacher.
    """

    def __init__(
        self,
        every: int,
        teacher: Any,
        pipeline: Callable[[dict[str, nn.Module]], Any],
        output: Path,
        guidance_scale: float = 1.0,
    ):
        super().__init__(every)
        self.teacher, self.pipeline, self.guidance_scale = teacher, pipeline, guidance_scale
        self.path, self.writes = Path(output) / "gap.jsonl", f"{output}/gap.jsonl"
        self._ends: Tensor | None = None

    def __call__(self, networks: dict[str, nn.Module], step: int) -> None:
        """Measure, and write a row. Rows of later steps, of a run that was taken up again before them, are dropped."""
        if self._ends is None:
            self._ends = self._draw(self.teacher, TEACHER_STEPS, self.guidance_scale)
        student = self.pipeline(networks)
        ends = require_finite(self._draw(student, 1), "samples", student.components)
        gap = float((ends - self._ends).square().mean().sqrt())
        earlier = [row for row in read_rows(self.path, ROW) if row["step"] < step]
        write_rows(self.path, [*earlier, {"step": step, "gap": gap}])

    def at_end(self, networks: dict[str, nn.Module], step: int) -> None:
        """Measure the finished networks."""
        self(networks, step)

    def facts(self) -> dict[str, str]:
        """Return rows for the card: the first gap and the last."""
        rows = read_rows(self.path, ROW) if self.every else []
        if not rows:
            return {}
        ends = rows if len(rows) == 1 else [rows[0], rows[-1]]
        text = " → ".join(f"{row['gap']:.3g} at step {row['step']:,}" for row in ends)
        return {f"gap between one step and {TEACHER_STEPS} of the teacher, same noise": text}

    def _draw(self, pipeline: Any, steps: int, guidance_scale: float = 1.0) -> Tensor:
        """Return what the denoisers model (POINTS, *item) of the fixed noise, on the CPU."""
        shape, classes = pipeline.item_shape, pipeline.config.num_classes
        noise = torch.stack([torch.randn(shape, generator=generator_of("few steps", "gap", i)) for i in range(POINTS)])
        with quiet(pipeline):
            return (
                pipeline(
                    batch_size=POINTS,
                    class_labels=None if classes is None else [i % classes for i in range(POINTS)],
                    num_inference_steps=steps,
                    guidance_scale=guidance_scale,
                    latents=noise,
                    output_type="latent",
                )
                .images.float()
                .cpu()
            )

"""The divergence monitor: measures whether chains follow the energy, and stops the training or rolls it back if not."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.images import ImageData
from ...data.summary import sample
from ...disk.kinds import count, figure, optional, text
from ...metrics import report
from ...metrics.measures import Measurement
from ...pipelines.outputs import NotFiniteError
from ...trainer.log import DivergenceError
from ...utils.pixels import from_levels
from ...utils.seeds import generator_of
from ..rollback import RollbackMonitor
from .options import GuardArgs

MEASURED = 256
"""Images, and states of chains, whose energies are compared."""

ROW = {
    "step": count,
    **dict.fromkeys(("gap", "energy_real", "energy_fake"), optional(figure)),
    "alarm": optional(text),
    "rolled_back_to": optional(count),
}
"""What each row of `divergence.jsonl` holds. A training that ended with an error has no energies there."""


class DivergenceMonitor(RollbackMonitor):
    """Compares the energies of training images and of the chains' states every so many steps: rows of
    `divergence.jsonl` {step, gap, energy_real, energy_fake, alarm}, energies per dimension.

    The gap, E(fake) - E(real), is near zero where chains follow the energy. Far above zero the energy has raised what
    its chains do not leave, and the training runs away; far below, chains have found a hole in it. A loss that is not
    finite is an alarm, too.

    Args:
        args: the options.
        every: number of steps between measurements.
        on_alarm: what follows an alarm.
        chains: the states that negatives come from, `PersistentChains`; None: samples of the pipeline.
        data: the training images.
        output: folder of the run.
        seed: of samples of the pipeline.
    """

    subject, happened, columns = "the energy", "diverged", ROW
    advice = "Lower --learning_rate or --chain_step_size, or raise --energy_penalty, --data_noise or --chain_steps."
    recovers = (DivergenceError,)

    def __init__(
        self, args: GuardArgs, every: int, on_alarm: str, chains: Any, data: ImageData, output: Path, seed: int
    ):
        super().__init__(every, on_alarm, output, "divergence.jsonl")
        self.most_gap, self.chains, self.data, self.seed = args.most_gap, chains, data, seed
        self._real: tuple[Tensor, Tensor | None] | None = None

    def row(self, pipeline: Any, step: int) -> dict[str, Any]:
        """Measure a pipeline; the alarm says which energy is too far from the other."""
        if self._real is None:
            levels, labels = sample(self.data, MEASURED)
            self._real = from_levels(levels), labels
        dimensions = self._real[0][0].numel()
        try:
            states = self._states(pipeline, len(self._real[0]))
            real, fake = (self._mean(pipeline, *each) / dimensions for each in (self._real, states))
        except NotFiniteError as error:
            return {"step": step, "gap": None, "energy_real": None, "energy_fake": None, "alarm": str(error)}
        gap, alarm = fake - real, None
        if not math.isfinite(gap) or abs(gap) > self.most_gap:
            where = "above" if gap > 0 else "below"
            alarm = f"its samples lie {abs(gap):.3g} {where} the data in energy per dimension, and {self.most_gap:g} "
            alarm += "is the most"
        return {"step": step, "gap": gap, "energy_real": real, "energy_fake": fake, "alarm": alarm}

    def line(self, row: Mapping[str, Any]) -> str:
        """Return a row as one line of text."""
        if row["gap"] is None:
            return "energies that are not finite"
        energies = f"data {row['energy_real']:.3g}, samples {row['energy_fake']:.3g}"
        return f"energy per dimension of {energies}, gap {row['gap']:.2g}"

    def failed(self, step: int) -> dict[str, Any]:
        """Return a row without energies."""
        return dict.fromkeys(("gap", "energy_real", "energy_fake"))

    def entries(self) -> list[dict[str, Any]]:
        """Return the last measurement with its protocol, for metrics.json and the card."""
        if not self.rows or self.rows[-1]["gap"] is None:
            return []
        protocol = {"data": self.data.name, "split": "the training images", "images": MEASURED}
        protocol["samples"] = "the states of the chains" if self.chains is not None else "drawn by the pipeline"
        return report.entries([Measurement("energy gap per dimension", self.rows[-1]["gap"], "0")], protocol)

    def _states(self, pipeline: Any, count: int) -> tuple[Tensor, Tensor | None]:
        """Return states of chains or, without any, samples, with their labels."""
        if self.chains is not None:
            begun = self.chains.ages > 0
            if (classes := pipeline.config.num_classes) is not None:
                begun = begun & (self.chains.labels < classes)  # chains of the null class have no like among the data
            if bool(begun.any()):
                rows = begun.nonzero()[:count, 0]
                return self.chains.items[rows], self.chains.labels[rows]
        labels = self._real[1] if pipeline.config.num_classes is not None else None
        told = None if labels is None else labels[:count].tolist()
        generator = generator_of("health", self.seed, "energies")
        return pipeline(count, told, generator=generator, output_type="latent").images, labels

    @staticmethod
    def _mean(pipeline: Any, x: Tensor, labels: Tensor | None) -> float:
        """Return the mean energy of items, under their classes if the model has classes."""
        return float(pipeline.energy(x, None if pipeline.config.num_classes is None else labels).mean())

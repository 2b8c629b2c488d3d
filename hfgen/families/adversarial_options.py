"""Options that all trainings with a discriminator share. No torch here: `--help` reads this file."""

import dataclasses
from collections.abc import Mapping

from ..options import TrainArgs, option
from ..utils.ranges import ABOVE_0


@dataclasses.dataclass
class AdversarialTrainArgs(TrainArgs):
    """Training"""

    discriminator_learning_rate: float | None = option(
        None,
        "peak learning rate of the discriminator (two time scales); default: learning_rate",
        resumable=True,
        range=ABOVE_0,
    )

    @property
    def learning_rates(self) -> Mapping[str, float]:  # type: ignore[override]
        """Return the peak learning rate of the discriminator, if it has its own (two time scales: Heusel et al. 2017,
        https://arxiv.org/abs/1706.08500)."""
        rate = self.discriminator_learning_rate
        return {} if rate is None else {"discriminator": rate}

    def slower(self, factor: float) -> "AdversarialTrainArgs":
        """Return the options with the learning rates of all players divided by `factor`."""
        own = self.discriminator_learning_rate
        rates = {"learning_rate": self.learning_rate / factor}
        rates |= {} if own is None else {"discriminator_learning_rate": own / factor}
        return dataclasses.replace(self, **rates)

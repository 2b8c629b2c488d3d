"""Options of adapters and of prior preservation. No torch here: `--help` reads this file."""

import dataclasses

from ..options import NEVER, POSITIVE, Options, ValueRule, option, variant
from ..utils.ranges import ABOVE_0, AT_LEAST_0, COUNT

GIVEN = ValueRule("a pipeline", "PIPELINE", lambda value: value is not None)
BEGUN, ADAPTER = {"init_from": GIVEN}, {"lora_rank": POSITIVE}
KEPT = {"prior_weight": POSITIVE}


@dataclasses.dataclass
class AdapterArgs(Options):
    """Fine-tuning"""

    COMMON = ("lora_rank",)

    lora_rank: int | None = option(
        None,
        "rank of an adapter (LoRA), which learns on the frozen pipeline and is saved alone; default: all weights learn",
        BEGUN,
        range=COUNT,
    )
    lora_alpha: float | None = option(
        None, "the adapter's change is scaled by lora_alpha / lora_rank; default: lora_rank", ADAPTER, range=ABOVE_0
    )
    lora_targets: str = option(
        "attention",
        "layers that are adapted, separated by commas: attention, linear, convolutions, or names such as to_q",
        ADAPTER,
    )
    new_class: str | None = option(
        None,
        "name of the class of all images, which have no labels of their own (with lora_rank or prior_weight)",
        BEGUN,
    )
    prior_weight: float = option(
        0.0,
        "weight of the loss on samples of the pipeline itself, which keeps what it knows; 0: none",
        BEGUN,
        range=AT_LEAST_0,
    )
    prior_samples: int = option(200, "samples that it draws for that, once", KEPT, range=COUNT)
    prior_steps: int | None = option(None, "steps of its scheduler; default: its own", KEPT, range=COUNT)

    @property
    def keeps_base(self) -> bool:
        """Return whether the training is one on the base: with its network, its path and its classes."""
        return self.lora_rank is not None or self.prior_weight > 0


@dataclasses.dataclass
class LowRankArgs(AdapterArgs):
    """Fine-tuning"""

    COMMON = ()

    prior_weight: float = variant(
        AdapterArgs,
        "prior_weight",
        0.0,
        "none: prior preservation is for models of pixels with classes",
        only_with=NEVER,
    )
    prior_samples: int = variant(AdapterArgs, "prior_samples", 200, "none: as prior_weight", only_with=NEVER)
    prior_steps: int | None = variant(AdapterArgs, "prior_steps", None, "none: as prior_weight", only_with=NEVER)

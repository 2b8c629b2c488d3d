"""Options of data of which only some have a class label. No torch here: `--help` reads this file."""

import dataclasses

from ..options import DataArgs, ValueRule, option
from ..utils.ranges import COUNT, SEED

MISSING = -1
"""The label of an item whose class is not known."""

A_NUMBER = ValueRule("a number of labels", "N", lambda value: value is not None)


@dataclasses.dataclass
class PartialLabelDataArgs(DataArgs):
    """Data"""

    num_labels: int | None = option(
        None,
        "keep the class labels of so many images, of each class as many, and hide all others",
        {"streaming": (False,)},
        range=COUNT,
    )
    label_seed: int = option(0, "seed of the choice of these images", {"num_labels": A_NUMBER}, range=SEED)


def with_all_labels(args: DataArgs) -> DataArgs:
    """Return the options without the hiding of labels: images that are measured keep theirs."""
    if isinstance(args, PartialLabelDataArgs):
        return dataclasses.replace(args, num_labels=None, label_seed=0)
    return args

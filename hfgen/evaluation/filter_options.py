"""Options of filters of samples. This module imports no torch, so that help is instant."""

import dataclasses
from typing import Literal

from ..options import AnyOf, Options, option
from ..utils.ranges import SHARE

ONLY_MEMORISED, ONLY_UNWANTED = AnyOf(("memorised",)), AnyOf(("unwanted_classes",))


@dataclasses.dataclass
class FilterOptions(Options):
    """Filters of samples"""

    COMMON = ("memorised", "unwanted_classes")

    memorised: Literal["refuse", "flag"] | None = option(
        None, "what is done with samples that are too near to a training image; default: nothing"
    )
    memorised_rate: float = option(
        0.01, "share of unseen images that are as near, at most", only_with=ONLY_MEMORISED, range=SHARE
    )
    memorised_features: str = option(
        "auto",
        "network whose features are compared, as those of `hfgen evaluate`; auto: the classifier for the images' shape",
        only_with=ONLY_MEMORISED,
        path=True,
    )
    training_data: str | None = option(
        None, "training images; default: those that the pipeline says", only_with=ONLY_MEMORISED, path=True
    )
    held_out_split: str = option("test", "split of images that it was not trained on", only_with=ONLY_MEMORISED)
    unwanted_classes: str | None = option(
        None, "classes by name or number, separated by commas, that are not to be seen"
    )
    unwanted: Literal["refuse", "flag"] = option("refuse", "what is done with them", only_with=ONLY_UNWANTED)
    unwanted_classifier: str | None = option(
        None,
        "folder of `hfgen train classifier`; default: the built-in classifier for the images' shape",
        only_with=ONLY_UNWANTED,
        path=True,
    )
    unwanted_probability: float = option(
        0.5,
        "probability of these classes together from which a sample is one of them",
        only_with=ONLY_UNWANTED,
        range=SHARE,
    )

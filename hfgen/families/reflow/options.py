"""Options of reflow: pairs, and measurements before and after. No torch here: `--help` reads this file."""

import dataclasses

from ...options import NEVER, DataArgs, Options, SampleArgs, SolverArgs, TrainArgs, option, variant
from ...utils.ranges import AT_LEAST_0, COUNT, PROBABILITY, SEED, TWO_OR_MORE


@dataclasses.dataclass
class PairArgs(Options):
    """Pairs of noise and sample"""

    COMMON = ("pipeline", "num_pairs", "pair_steps", "pair_guidance_scale", "label_dropout")

    pipeline: str | None = option(
        None, "folder of the trained pipeline; training starts from its weights", resumable=True, path=True
    )
    num_pairs: int = option(20000, "pairs of noise and sample to train on", range=COUNT)
    pair_steps: int = option(10, "network evaluations per pair", range=COUNT)
    pair_batch_size: int = option(128, "pairs drawn at a time and stored in one file", range=COUNT)
    pair_guidance_scale: float = option(1.0, "classifier-free guidance of the pairs; 1: none", range=AT_LEAST_0)
    pair_seed: int = option(0, "seed of the pairs' noise, which no other command draws", range=SEED)
    pair_dir: str | None = option(None, "folder of the pairs; default: pairs/ in output_dir", None, True, path=True)
    label_dropout: float = option(
        0.1, "share of pairs that are trained on without their class, for guidance", range=PROBABILITY
    )


@dataclasses.dataclass
class MeasureArgs(Options):
    """Measurements before and after"""

    features: str | None = option(
        None,
        "feature networks of Frechet distances, separated by commas, or 'none'; default: both that fit the images",
        None,
        True,
        path=True,
    )
    num_samples: int = option(
        5000,
        "number of samples, and of images, that a Frechet distance compares",
        resumable=True,
        range=TWO_OR_MORE,
        former=("eval_samples",),
    )


@dataclasses.dataclass
class ComparisonDataArgs(DataArgs):
    """Data to compare samples with"""

    random_flip: bool = variant(DataArgs, "random_flip", False, only_with=NEVER)
    dataloader_num_workers: int = variant(DataArgs, "dataloader_num_workers", 2, only_with=NEVER)


@dataclasses.dataclass
class PairTrainArgs(TrainArgs):
    """Training"""

    overfit_batch: bool = variant(TrainArgs, "overfit_batch", False, only_with=NEVER)
    init_from: str | None = variant(
        TrainArgs, "init_from", None, "none: the training begins with the weights of --pipeline", only_with=NEVER
    )


DESCRIPTION = "Straighten a trained rectified flow by training it again on its own pairs of noise and samples (reflow)."
EXAMPLE = "hfgen train reflow --pipeline outputs/quickstart --num_pairs 10000 --max_train_steps 500"
GROUPS = (PairArgs, ComparisonDataArgs, SolverArgs, SampleArgs, MeasureArgs, PairTrainArgs)

"""Options of reflow: couplings, and what is measured before and after. No torch here: `--help` reads this file."""

import dataclasses

from ...options import NEVER, DataArgs, SampleArgs, SolverArgs, TrainArgs, option, variant


@dataclasses.dataclass
class PairArgs:
    """Couplings"""

    pipeline: str | None = option(
        None, "folder of the trained pipeline, whose weights training starts from", resumable=True
    )
    num_pairs: int = option(20000, "couplings of noise and sample to train on")
    pair_steps: int = option(10, "network evaluations per coupling")
    pair_batch_size: int = option(128, "couplings drawn at a time, and kept in a file")
    pair_guidance_scale: float = option(1.0, "classifier-free guidance of the couplings; 1: none")
    pair_seed: int = option(0, "coupling i has noise from seed + i")
    pair_dir: str | None = option(None, "folder of the couplings; default: pairs/ in output_dir", resumable=True)
    label_dropout: float = option(0.1, "share of couplings trained on without their class, for guidance")


@dataclasses.dataclass
class MeasureArgs:
    """Before and after"""

    features: str | None = option(
        None, "feature network of Frechet distances, or 'none'; default: what fits the images", resumable=True
    )
    eval_samples: int = option(
        5000, "samples, and images of the data, that a Frechet distance compares", resumable=True
    )


@dataclasses.dataclass
class ComparisonDataArgs(DataArgs):
    """Data that samples are compared with"""

    random_flip: bool = variant(DataArgs, "random_flip", False, only_with=NEVER)
    dataloader_num_workers: int = variant(DataArgs, "dataloader_num_workers", 2, only_with=NEVER)


@dataclasses.dataclass
class PairTrainArgs(TrainArgs):
    """Training"""

    overfit_batch: bool = variant(TrainArgs, "overfit_batch", False, only_with=NEVER)


DESCRIPTION = (
    "Straighten a trained rectified flow by training it again on its own couplings of noise and samples (reflow)."
)
EXAMPLE = (
    "accelerate launch training/train_reflow.py --pipeline outputs/quickstart --num_pairs 10000 --max_train_steps 500"
)
GROUPS = (PairArgs, ComparisonDataArgs, SolverArgs, SampleArgs, MeasureArgs, PairTrainArgs)

"""Options of an evaluation. This module imports no torch, so that help is instant."""

import dataclasses
from typing import Literal

from ..options import AnyOf, Options, argument, option
from ..registry import ENERGY_SAMPLERS, SAMPLERS
from ..utils.adapters import ADAPTERS
from ..utils.ranges import AT_LEAST_0, COUNT, INTERVAL, REPEATS, SEED, TWO_OR_MORE

METRICS = (
    *(
        "frechet",
        "kernel_distance",
        "classifier_score",
        "precision_recall",
        "diversity",
        "class_coverage",
        "class_agreement",
        "memorisation",
    ),
    *("spectrum", "reconstruction", "bits_per_dimension"),
)
FORMER_METRICS = {
    "kid": "kernel_distance",
    "is": "classifier_score",
    "prdc": "precision_recall",
    "modes": "class_coverage",
    "bpd": "bits_per_dimension",
}
"""Names of metrics that are read as well, and the present ones."""

PIPELINE_METRICS = {"bits_per_dimension": "bits_per_dim", "reconstruction": "reconstruct"}
"""Metric of real images -> the pipeline's method that computes it. All other metrics compare samples."""


@dataclasses.dataclass
class EvaluateOptions(Options):
    """Evaluation"""

    COMMON = (
        *("target", "metrics", "num_samples", "num_reference", "num_likelihood", "features", "scheduler"),
        *("num_inference_steps", "guidance_scale", "seed", "batch_size", "output", "device", "dtype"),
    )

    target: str = argument("folder of a trained pipeline, or of images")
    metrics: str = option("frechet,kernel_distance,precision_recall", f"separated by commas: {', '.join(METRICS)}")
    num_samples: int = option(10000, "images to draw; from a folder of images, the most to use", range=COUNT)
    num_reference: int | None = option(
        None, "real images to compare with; default: num_samples, or all there are", range=COUNT
    )
    features: str = option(
        "auto",
        "separated by commas: digits, digits-texture, mnist, mnist-texture, cifar10, cifar10-texture, inception, a Hub "
        "id; auto: both for the images' shape; none: for metrics that compare no features",
        path=True,
    )
    scheduler: str | None = option(
        None, f"{', '.join(SAMPLERS)}; of energies {', '.join(ENERGY_SAMPLERS)}; default: the pipeline's own"
    )
    num_inference_steps: int | None = option(
        None, "steps of the scheduler; default: its own", range=COUNT, former=("steps",)
    )
    guidance_scale: float = option(1.0, "classifier-free guidance; 1: none", range=AT_LEAST_0)
    seed: int = option(0, "image i is drawn with seed + i; also the seed of subsets and bootstrap", range=SEED)
    batch_size: int = option(250, "images a batch, in each process; see also --num_processes N", range=COUNT)
    neighbours: int = option(5, "k of precision, recall, density and coverage", range=COUNT)
    kid_subset_size: int = option(1000, "images in a subset of the kernel distance", range=TWO_OR_MORE)
    bootstrap: int = option(
        50, "bootstrap samples for a 95 % interval; 0: none (slow with 2048 features)", range=REPEATS
    )
    num_likelihood: int = option(256, "real images for bits_per_dimension and reconstruction", range=COUNT)
    train_split: str | None = option(
        None, "for memorisation: the split that the model was trained on; default: what the pipeline says, else train"
    )
    held_out_split: str = option("test", "for memorisation: a split that the model was not trained on")
    target_split: str | None = option(
        None, "split of a folder of images; default: as --dataset_split if the folder has it, else train"
    )
    output: str | None = option(None, "metrics.json to add to; default: the pipeline's own, none for images", path=True)
    reference_cache: str | None = option(None, "folder for features of real images; default: ~/.cache/hfgen", path=True)
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "precision of the networks while they sample")
    lora: str | None = option(None, "adapters that the pipeline is used with", range=ADAPTERS, path=True)


@dataclasses.dataclass
class GuideOptions(Options):
    """Guides"""

    COMMON = ("classifier", "autoguidance")

    classifier: str | None = option(
        None,
        "folder of `hfgen train classifier --noise`, which guides to the classes; the model need not know them",
        path=True,
    )
    classifier_scale: float = option(
        1.0, "strength; 1 is Bayes' rule, above 1 sharpens", only_with=AnyOf(("classifier",)), range=AT_LEAST_0
    )
    classifier_interval: str = option(
        "0,0.95",
        "times that it guides at: low,high from 0, data, to 1, noise",
        only_with=AnyOf(("classifier",)),
        range=INTERVAL,
    )
    autoguidance: str | None = option(
        None, "folder of a worse model of the same data, smaller or an earlier checkpoint, to lead away from", path=True
    )
    autoguidance_scale: float = option(2.0, "strength; 1: none", only_with=AnyOf(("autoguidance",)), range=AT_LEAST_0)
    autoguidance_interval: str = option(
        "0,1", "times that it guides at", only_with=AnyOf(("autoguidance",)), range=INTERVAL
    )

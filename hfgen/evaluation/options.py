"""Options of an evaluation. No torch, so that help is instant."""

import dataclasses
from typing import Literal

from ..options import argument, option
from ..registry import SAMPLERS

METRICS = ("frechet", "kid", "is", "prdc", "diversity", "modes", "memorisation", "spectrum", "reconstruction", "bpd")
PIPELINE_METRICS = {"reconstruction": "reconstruct", "bpd": "bits_per_dim"}
"""Metrics that a method of the pipeline computes, and the method's name."""


@dataclasses.dataclass
class EvaluateOptions:
    """Evaluation"""

    target: str = argument("folder of a trained pipeline, or of images (for a data set with splits: its train split)")
    metrics: str = option("frechet,kid,prdc", f"separated by commas: {', '.join(METRICS)}")
    num_samples: int = option(10000, "images to draw; of a folder of images, to use at most")
    num_reference: int | None = option(None, "real images to compare with; default: num_samples, or all there are")
    features: str = option("auto", "digits, mnist, cifar10, inception, a Hub id; auto: what suits the images' shape")
    scheduler: str | None = option(None, f"{', '.join(SAMPLERS)}; default: the pipeline's own")
    steps: int | None = option(None, "steps of the scheduler; default: its own")
    guidance_scale: float = option(1.0, "classifier-free guidance; 1: none")
    seed: int = option(0, "image i is drawn with seed + i; also of subsets and intervals")
    batch_size: int = option(250, "images at a time and process; see also --num_processes N")
    neighbours: int = option(5, "k of precision, recall, density and coverage")
    kid_subset_size: int = option(1000, "images a subset of the kernel distance")
    bootstrap: int = option(50, "repeats behind a 95 % interval; 0: none (features of 2048 take long)")
    num_likelihood: int = option(256, "real images for bpd and reconstruction")
    train_split: str = option("train", "for memorisation: what the model was trained on")
    held_out_split: str = option("test", "for memorisation: real images the model has not seen")
    output: str | None = option(None, "metrics.json to add to; default: the pipeline's own, none for images")
    reference_cache: str | None = option(None, "folder for features of real images; default: ~/.cache/hfgen")
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "of the networks while they draw")

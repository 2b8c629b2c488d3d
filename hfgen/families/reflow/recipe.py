"""The recipe of reflow: a trained pipeline, and training on the pairs that it draws."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import Accelerator
from torch import Tensor

import hfgen

from ...console.progress import quiet
from ...data.batches import Batches
from ...data.images import ImageData
from ...data.tensors import TensorData, digest_of
from ...metrics.feature_network import FeatureNetwork
from ...options import TrainArgs
from ...paths import StraightPath, path_from_config
from ...trainer.loop import steps_in
from ..trained_pipeline import load_denoiser
from . import pairs


def load_teacher(folder: str | None, output: str) -> Any:
    """Load the pipeline that draws the pairs, with the solver that draws them.

    Args:
        folder: the pipeline's folder or name on the Hub.
        output: the folder that the run writes.

    Raises:
        ValueError: no folder is given, it is `output`, or its pipeline is no denoiser or not on the straight path.
    """
    pipeline = load_denoiser(folder, output, "to straighten")
    if not isinstance(path_from_config(pipeline.scheduler.config), StraightPath):
        raise ValueError(
            f"{folder} was trained on path={pipeline.scheduler.config.get('path')}. A rectified flow is needed "
            "here: train one with --path straight."
        )
    pipeline.use_scheduler("rectified_flow")
    return pipeline


def objective(pipeline: Any, label_dropout: float) -> hfgen.Denoising:
    """Return the objective for the pipeline's network. A network without a null label is trained without dropout."""
    return hfgen.Denoising(
        path_from_config(pipeline.scheduler.config),
        pipeline.scheduler.config.prediction_type,
        time_sampling="low_discrepancy",
        num_classes=pipeline.config.num_classes,
        label_dropout=label_dropout if pipeline.null_label is not None else 0.0,
    )


def check_data(data: ImageData, pipeline: Any, features: Sequence[FeatureNetwork], count: int) -> None:
    """Refuse data that can't be compared with samples.

    Args:
        data: the images to compare with.
        pipeline: draws the samples.
        features: the feature networks; []: no Frechet distance.
        count: number of samples.

    Raises:
        ValueError: images of another shape, or too few for a Frechet distance.
    """
    sample_shape, shape = tuple(pipeline.sample_shape), (data.channels, *data.size)
    if sample_shape != shape:
        raise ValueError(
            f"The pipeline draws images of shape {sample_shape}, and those of {data.name} have shape {shape}. Give the "
            "data that the pipeline was trained on: --dataset."
        )
    least = max((each.num_features + 1 for each in features), default=2)
    if count < least or (not data.streaming and len(data) < least):
        raise ValueError(
            f"num_samples={count} and the number of images in {data.name} must both be at least {least}. Raise "
            "--num_samples, or set --features none."
        )


def batches(pipeline: Any, pair_args: Any, args: TrainArgs, accelerator: Accelerator) -> Batches:
    """Return training batches of pairs, after drawing the pairs that the cache lacks.

    With `--dry_run`, draw a single batch, discard it, and print the time for all pairs.

    Args:
        pipeline: draws the pairs.
        pair_args, args: the options.
        accelerator: all processes call this.

    Raises:
        ValueError: numbers out of range, or a cache of another model or options.
    """
    count, rank, world = pair_args.num_pairs, accelerator.process_index, accelerator.num_processes
    per_epoch = count / (max(1, args.train_batch_size) * world)
    steps_in(args, SimpleNamespace(batches_per_epoch=per_epoch))  # refuses numbers before pairs are drawn
    source = _source(pipeline, pair_args, accelerator)
    size = source.batch_size

    def loader(data: TensorData) -> Batches:
        return Batches(data, args.train_batch_size, args.seed, rank, world, accelerator.device)

    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            pairs.draw_pairs(Path(folder), 1, source)
            rate = size / (time.perf_counter() - start)
            accelerator.print(f"{'pairs:':32} {count:,} in {count / rate / world / 60:.1f} minutes")
            few = loader(pairs.load_pairs(Path(folder), size, size))
        few.batches_per_epoch = per_epoch
        return few
    folder = Path(pair_args.pair_dir or Path(args.output_dir) / "pairs")
    pairs.draw_pairs(folder, count, source, rank, world)
    accelerator.wait_for_everyone()
    return loader(pairs.load_pairs(folder, count, size))


def _source(pipeline: Any, pair_args: Any, accelerator: Accelerator) -> pairs.Source:
    """Return the pipeline as a source of pairs."""
    steps, scale = pair_args.pair_steps, pair_args.pair_guidance_scale

    def draw(noise: Tensor, labels: list[int] | None) -> Tensor:
        options = {"guidance_scale": scale, "output_type": "latent", "latents": noise.to(accelerator.device)}
        with accelerator.autocast(), quiet(pipeline):
            return pipeline(len(noise), labels, steps, **options).images

    facts = {
        "weights": digest_of(pipeline.denoiser.state_dict()),
        "scheduler": _scheduler_facts(pipeline.scheduler.config),
        "pair_steps": steps,
        "pair_guidance_scale": scale,
        "mixed_precision": accelerator.mixed_precision,
    }
    return pairs.Source(
        draw,
        pipeline.item_shape,
        pipeline.config.num_classes,
        pair_args.pair_seed,
        pair_args.pair_batch_size,
        facts,
        stream="pairs",
    )


def _scheduler_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's configuration as hfgen 0.1 wrote it beside pairs, so that its pairs are still used."""
    facts = {key: value for key, value in config.items() if key[0] != "_" and key not in ("sigma_min", "sigma_max")}
    if "solver" in facts:
        facts["solver_type"] = facts.pop("solver")
    return facts

"""The recipe of reflow: a trained pipeline, and training on the couplings that it draws."""

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import Accelerator
from torch import Tensor

import hfgen

from ...data.batches import Batches
from ...data.images import ImageData
from ...data.tensors import TensorData, digest_of
from ...metrics.feature_network import FeatureNetwork
from ...options import TrainArgs
from ...paths import StraightPath, path_from_config
from ...trainer.loop import steps_in
from . import pairs


def load_teacher(folder: str | None, output: str) -> Any:
    """Load the pipeline that draws the couplings, with the solver that it draws them by.

    Raises:
        ValueError: none is named, it is the folder to be written, or it is not one on the straight path.
    """
    if folder is None:
        raise ValueError("Name the trained pipeline that is to be straightened: --pipeline outputs/quickstart")
    if Path(folder).resolve() == Path(output).resolve():
        raise ValueError(f"--pipeline {folder} would be overwritten. Choose another --output_dir.")
    pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
    if not isinstance(path_from_config(pipeline.scheduler.config), StraightPath):
        raise ValueError(
            f"{folder} was trained on path={pipeline.scheduler.config.get('path')}. Reflow straightens rectified "
            "flows: train one with --path straight."
        )
    pipeline.use_scheduler("rectified_flow")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def objective(pipeline: Any, label_dropout: float) -> hfgen.Denoising:
    """Return the objective of the pipeline's network. Without a null label, no label is dropped."""
    return hfgen.Denoising(
        path_from_config(pipeline.scheduler.config),
        pipeline.scheduler.config.prediction_type,
        time_sampling="low_discrepancy",
        num_classes=pipeline.config.num_classes,
        label_dropout=label_dropout if pipeline.null_label is not None else 0.0,
    )


def check_data(data: ImageData, pipeline: Any, features: FeatureNetwork | None, count: int) -> None:
    """Refuse data that can't be compared with samples.

    Raises:
        ValueError: images of another shape, or too few for a Frechet distance.
    """
    drawn, shape = tuple(pipeline.sample_shape), (data.channels, *data.size)
    if drawn != shape:
        raise ValueError(f"The pipeline draws {drawn} images, and {data.name} has {shape}: name its data by --dataset.")
    least = 2 if features is None else features.num_features + 1
    if count < least or (not data.streaming and len(data) < least):
        raise ValueError(f"eval_samples={count} and the data must both be {least} or more to be compared.")


def batches(pipeline: Any, pair_args: Any, args: TrainArgs, accelerator: Accelerator) -> Batches:
    """Return training batches of couplings, after drawing those that the cache lacks.

    With `--dry_run`, draw and discard a single batch, and print its time.

    Raises:
        ValueError: numbers out of range, or a cache of another model or options.
    """
    count, rank, world = pair_args.num_pairs, accelerator.process_index, accelerator.num_processes
    per_epoch = count / (max(1, args.train_batch_size) * world)
    steps_in(args, SimpleNamespace(batches_per_epoch=per_epoch), world)  # refused before anything is drawn
    source = _source(pipeline, pair_args, accelerator)
    size = source.batch_size

    def loader(data: TensorData) -> Batches:
        return Batches(data, args.train_batch_size, args.seed, rank, world, accelerator.device)

    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            pairs.make(Path(folder), 1, source)
            rate = size / (time.perf_counter() - start)
            accelerator.print(f"{'couplings:':32} {count:,} in {count / rate / world / 60:.1f} minutes")
            few = loader(pairs.load(Path(folder), size, size))
        few.batches_per_epoch = per_epoch
        return few
    folder = Path(pair_args.pair_dir or Path(args.output_dir) / "pairs")
    pairs.make(folder, count, source, rank, world)
    accelerator.wait_for_everyone()
    return loader(pairs.load(folder, count, size))


def _source(pipeline: Any, pair_args: Any, accelerator: Accelerator) -> pairs.Source:
    """Return the pipeline as a source of pairs."""
    steps, scale = pair_args.pair_steps, pair_args.pair_guidance_scale

    def draw(noise: Tensor, labels: list[int] | None) -> Tensor:
        options = {"guidance_scale": scale, "output_type": "latent", "latents": noise.to(accelerator.device)}
        with accelerator.autocast():
            return pipeline(len(noise), labels, steps, **options).images

    facts = {
        "weights": digest_of(pipeline.denoiser.state_dict()),
        "scheduler": {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")},
        "pair_steps": steps,
        "pair_guidance_scale": scale,
        "mixed_precision": accelerator.mixed_precision,
    }
    known = (pipeline.sample_shape, pipeline.config.num_classes, pair_args.pair_seed, pair_args.pair_batch_size)
    return pairs.Source(draw, *known, facts)

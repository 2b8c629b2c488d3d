"""Samples of a pipeline for evaluation: drawn by any number of processes, always the same images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..console.progress import ProgressBar, quiet
from ..console.text import with_article
from ..utils.seeds import check_seed, generator_of, sample_generators


def sampler_facts(pipeline: Any) -> dict[str, Any]:
    """Return facts about a pipeline's last call.

    Returns:
        `sampler`: the class of its scheduler, or of the pipeline if there is none; `evaluations`: network evaluations
        per image. Guidance, which doubles them, is not counted.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    name = type(pipeline if scheduler is None else scheduler).__name__
    return {"sampler": name, "evaluations": getattr(pipeline, "num_timesteps", 1)}


def generators(seed: int, numbers: Sequence[int], stream: str | None = None) -> list[torch.Generator]:
    """Return a generator for each of the images with these numbers: of seed + i, or of a random stream, see `draw`."""
    if stream is None:
        return sample_generators(seed, numbers)
    return [generator_of(stream, seed, i) for i in numbers]


def draw(
    pipeline: Any,
    count: int,
    seed: int = 0,
    batch_size: int = 250,
    class_labels: Sequence[int] | None = None,
    options: dict[str, Any] | Callable[[range], dict[str, Any]] | None = None,
    rank: int = 0,
    world: int = 1,
    check: Callable[[Tensor], None] | None = None,
    stream: str | None = None,
) -> Tensor:
    """Draw `count` images of a pipeline, rounded as saved images are: uint8 (N, C, H, W).

    Image i has label i, and seed `seed` + i unless a stream is named. It belongs to batch i // batch_size, which
    process (i // batch_size) % world draws. Every process returns all images, in order. The result is therefore the
    same bit for bit for any number of processes, and up to rounding for any batch size.

    Args:
        pipeline: called with batch_size, generator, output_type "pt" and the options.
        count: N.
        seed: seed of image 0, or of the stream.
        batch_size: images at a time.
        class_labels: one per image; None for a model without classes.
        options: further arguments of the call, or a function of the numbers of a batch's images that returns them.
        rank, world: number of this process, and how many there are.
        check: called with each batch as soon as it is drawn; it may raise to stop early.
        stream: a random stream of `hfgen.utils.seeds`, for images that choose a model: its noise is no other command's.

    Raises:
        ValueError: a count or batch size below 1, a seed out of range, or images that are not finite.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count={count} and batch_size={batch_size} must be at least 1.")
    if stream is None:
        check_seed(seed + count - 1)
    starts = range(rank * batch_size, count, world * batch_size)
    parts: dict[int, Tensor] = {}
    for start in ProgressBar(starts, desc="Drawing", unit="batch"):
        numbers = range(start, min(start + batch_size, count))
        labels = {} if class_labels is None else {"class_labels": [int(class_labels[i]) for i in numbers]}
        with quiet(pipeline):
            images = pipeline(
                batch_size=len(numbers),
                generator=generators(seed, numbers, stream),
                output_type="pt",
                **labels,
                **(options(numbers) if callable(options) else options or {}),
            ).images
        if not images.isfinite().all():
            raise ValueError(
                f"Images {start} to {numbers[-1]} of {with_article(type(pipeline).__name__)} have NaN or infinity."
            )
        if check is not None:
            check(images)
        parts[start] = (images * 255).round().to(torch.uint8).cpu()
    if world > 1:
        from accelerate.utils import gather_object

        parts = {start: part for process in gather_object([parts]) for start, part in process.items()}
    return torch.cat([parts[start] for start in sorted(parts)])

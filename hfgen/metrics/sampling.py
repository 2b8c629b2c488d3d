"""Images to be judged: drawn from a pipeline by any number of processes, always the same."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def sampler_of(pipeline: Any) -> dict[str, Any]:
    """What drew the last images of a pipeline: its scheduler, and evaluations of the network an image (guidance, which
    doubles them, left out)."""
    scheduler = getattr(pipeline, "scheduler", None)
    name = type(pipeline if scheduler is None else scheduler).__name__
    return {"sampler": name, "evaluations": getattr(pipeline, "num_timesteps", 1)}


def draw(
    pipeline: Any,
    count: int,
    seed: int = 0,
    batch_size: int = 250,
    class_labels: Sequence[int] | None = None,
    options: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    check: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """`count` images of a pipeline as they would be saved: uint8 (N, C, H, W).

    Image i is drawn with seed + i and label i, in batch i // batch_size, which process (i // batch_size) % world draws;
    every process returns all of them, in order. So the result is the same for any number of processes, bit for bit, and
    for any batch size but for rounding.

    Args:
        pipeline: called with batch_size, generator, output_type "pt" and the options.
        count: N.
        seed: of image 0.
        batch_size: images at a time.
        class_labels: one an image; None for a model without classes.
        options: more arguments of the call.
        rank, world: this process, and how many there are.
        check: sees each batch at once, and may refuse it before the next is drawn.

    Raises:
        ValueError: a count or batch size below 1.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count={count} and batch_size={batch_size} must be at least 1.")
    from tqdm import tqdm

    pipeline.set_progress_bar_config(disable=True)
    starts = range(rank * batch_size, count, world * batch_size)
    mine: dict[int, Tensor] = {}
    for start in tqdm(starts, desc="Drawing", unit="batch", disable=None if rank == 0 else True):
        numbers = range(start, min(start + batch_size, count))
        labels = {} if class_labels is None else {"class_labels": [int(class_labels[i]) for i in numbers]}
        images = pipeline(
            batch_size=len(numbers),
            generator=[torch.Generator().manual_seed(seed + i) for i in numbers],
            output_type="pt",
            **labels,
            **(options or {}),
        ).images
        if check is not None:
            check(images)
        mine[start] = (images * 255).round().to(torch.uint8).cpu()
    if world > 1:
        from accelerate.utils import gather_object

        mine = {start: part for process in gather_object([mine]) for start, part in process.items()}
    return torch.cat([mine[start] for start in sorted(mine)])

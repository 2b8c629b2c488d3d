"""Samples of a base, drawn once, that a training is shown beside the new items: prior preservation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ..console.progress import quiet
from ..data.batches import Batch, Batches
from ..data.tensors import TensorData, digest_of
from ..objectives.base import Objective
from ..objectives.prior_preservation import PRIOR, PriorPreservation
from ..options import TrainArgs
from ..paths import StraightPath, path_from_config
from .adaptation import Adaptation
from .adapter_options import AdapterArgs
from .reflow import pairs

FOLDER = "prior"
"""Folder of the samples in that of the run."""


AT_ONCE = 250
"""Samples that are drawn at a time."""


class PreservingBatches:
    """Batches of new items, with as many samples of the base in each.

    Args:
        batches: of the new items.
        drawn: of the samples.
    """

    def __init__(self, batches: Any, drawn: Batches):
        self.batches, self.drawn = batches, drawn

    def __getattr__(self, name: str) -> Any:
        if name in ("batches", "drawn"):
            raise AttributeError(name)
        return getattr(self.batches, name)

    def iterate(self, start: int) -> Iterator[Batch]:
        """Yield micro-batches from number `start` on, for ever."""
        for own, drawn in zip(self.batches.iterate(start), self.drawn.iterate(start), strict=True):
            yield {**own, **{f"{PRIOR}{name}": drawn[name] for name in drawn if name in own}}


def preserving(
    objective: Objective, batches: Any, adaptation: Adaptation | None, args: TrainArgs, accelerator: Accelerator
) -> tuple[Objective, Any]:
    """Return objective and batches with samples of the base, after drawing those that the folder of the run lacks.

    Without prior preservation they are what is given. With `--dry_run` few samples are drawn, and nothing is kept.

    Args:
        objective, batches: of the new items.
        adaptation: the training on a base, with its options; None: there is no base.
        args: the other options.
        accelerator: all processes call this.

    Raises:
        ValueError: the folder holds samples of another base or of other options.
    """
    if adaptation is None or not adaptation.args.prior_weight:
        return objective, batches
    options, base = adaptation.args, adaptation.base
    rank, world = accelerator.process_index, accelerator.num_processes
    source = _source(base.to(accelerator.device), options, args, accelerator)
    if args.dry_run:
        few = {name: tensor[:2] for name, tensor in source.shard(0).items()}
        data = TensorData({"x": few.pop("images"), **few}, "samples", "images", (-1.0, 1.0))
    else:
        folder = Path(args.output_dir) / FOLDER
        pairs.draw_pairs(folder, options.prior_samples, source, rank, world)
        accelerator.wait_for_everyone()
        data = pairs.load_pairs(folder, options.prior_samples, source.batch_size)
    drawn = Batches(data, args.train_batch_size, args.seed, rank, world, accelerator.device)
    return PriorPreservation(objective, options.prior_weight), PreservingBatches(batches, drawn)


def _source(base: Any, options: AdapterArgs, args: TrainArgs, accelerator: Accelerator) -> pairs.Source:
    """Return the base as a source of samples with labels."""

    straight = isinstance(path_from_config(base.scheduler.config), StraightPath)
    solver = "rectified_flow" if straight else "dpmsolver++"  # the samples follow from their noise

    def draw(noise: Tensor, labels: list[int] | None) -> Tensor:
        place = {"output_type": "latent", "latents": noise.to(accelerator.device), "scheduler": solver}
        with accelerator.autocast(), quiet(base):
            return base(len(noise), labels, options.prior_steps, **place).images

    settings = {key: value for key, value in base.scheduler.config.items() if not key.startswith("_")}
    facts = {"weights": digest_of(base.denoiser.state_dict()), "scheduler": settings}
    facts |= {"prior_steps": options.prior_steps, "mixed_precision": accelerator.mixed_precision}
    size = min(AT_ONCE, options.prior_samples)
    classes = base.config.num_classes
    place = draw, base.item_shape, classes, args.seed, size, facts
    return pairs.Source(*place, stream="prior samples", option="--output_dir")

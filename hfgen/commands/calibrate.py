"""`hfgen calibrate`: measure or learn the best variances of a denoiser's reverse steps, and save them with it."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ..console.notes import say_next, tell
from ..console.text import shell_text, with_article
from ..options import DataArgs, Options, argument, option, parse, parser
from ..utils.devices import place
from ..utils.ranges import ABOVE_0, AT_LEAST_0, COUNT, SEED

EXAMPLE = "hfgen calibrate outputs/mnist --num_images 5000"
HEAD = {"kind": ("npr", "sn", "ocm")}
MEASURED = {"kind": ("analytic", "residual")}


@dataclasses.dataclass
class CalibrateOptions(Options):
    """Calibration"""

    pipeline: str = argument("folder of a trained denoising pipeline, or its repository on the Hub")
    kind: Literal["analytic", "residual", "npr", "sn", "ocm"] = option(
        "analytic",
        "analytic (Analytic-DPM) or residual: one variance for each level of noise, measured; npr, sn, ocm: one for "
        "each pixel, by a small network that is trained beside the frozen denoiser",
    )
    num_images: int = option(5000, "images to measure on", MEASURED, range=COUNT)
    num_levels: int = option(64, "levels of noise", MEASURED, range=COUNT)
    repeats: int = option(4, "evaluations of each image, at different levels", MEASURED, range=COUNT)
    max_train_steps: int = option(1000, "steps of the small network's training", HEAD, range=COUNT)
    train_batch_size: int = option(64, "images per step", HEAD, range=COUNT)
    learning_rate: float = option(3e-3, "peak learning rate of a one-cycle LR schedule", HEAD, range=ABOVE_0)
    adam_weight_decay: float = option(0.0, "decoupled weight decay of AdamW", HEAD, range=AT_LEAST_0)
    batch_size: int = option(64, "images at a time", MEASURED, range=COUNT)
    seed: int = option(0, "seed of the noise, and of the small network", range=SEED)
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    output_dir: str | None = option(None, "folder for the calibrated pipeline; default: its own folder", path=True)


def main(argv: list[str] | None = None) -> None:
    """Calibrate, and save the pipeline.

    Raises:
        ValueError: the pipeline is no denoiser, its data are not here, or options do not fit.
    """
    description = "Measure or learn the best variances of a denoiser's reverse steps, and save them with it."
    command = parser("hfgen calibrate", description, EXAMPLE, CalibrateOptions, DataArgs, config=False)
    parsed = parse(command, argv, CalibrateOptions, DataArgs)
    options, given = parsed[0], parsed.given_of(DataArgs)
    folder = _target(options)

    import hfgen

    from ..data.images import load_images
    from ..data.training_data import choose_data
    from ..options import refuse_idle

    refuse_idle(options)
    pipeline = place(hfgen.HFGenPipeline.from_pretrained(options.pipeline), options.device)
    if not isinstance(pipeline, hfgen.DenoisingPipeline | hfgen.LatentPipeline):
        kind = with_article(type(pipeline).__name__)
        raise ValueError(f"{options.pipeline} holds {kind}; only a pipeline with a denoiser has reverse variances.")
    choice = choose_data(pipeline.training_data, options.pipeline, given)
    data = load_images(choice.args, own=choice.own)
    for note in choice.check(data):
        tell(note)
    start = time.process_time()
    if options.kind in HEAD["kind"]:
        train_head(pipeline, data, options)
    else:
        measure(pipeline, data, options)
    print(f"{options.kind}: {time.process_time() - start:.0f} s of CPU")
    pipeline.save_pretrained(folder)
    print(f"Saved to {folder}")
    say_next([shell_text(("hfgen", "sample", folder, "--scheduler", "ddpm", "--num_inference_steps", 10))])


def _target(options: CalibrateOptions) -> Path:
    """Return the folder to write. Raises ValueError for a repository without `output_dir`."""
    from ..disk.files import check_writable

    if options.output_dir is None and not Path(options.pipeline).is_dir():
        raise ValueError(f"{options.pipeline} is no folder. Give the calibrated pipeline one: --output_dir FOLDER")
    folder = Path(options.output_dir or options.pipeline)
    check_writable(folder / "model_index.json")
    return folder


def measure(pipeline: Any, data: Any, options: CalibrateOptions) -> None:
    """Measure variances on the first images of the training, and print some."""
    from ..data.summary import UNFLIPPED, sample
    from ..utils.pixels import from_levels
    from ..utils.seeds import generator_of

    images, labels = sample(data, options.num_images)
    if data.random_flip:
        tell(UNFLIPPED)
    table = pipeline.calibrate(
        from_levels(images),
        labels if pipeline.config.num_classes is not None else None,
        options.kind,
        options.num_levels,
        options.repeats,
        generator_of("calibration", options.seed),
        options.batch_size,
    )
    of_images = pipeline.item_shape == pipeline.sample_shape
    unit, scale = ("8-bit levels", 127.5) if of_images else ("deviations of the latents", 1.0)
    print(f"noise s   standard deviation of the data given x_t, in {unit}")
    for s, variance in table[:: max(1, len(table) // 8)]:
        print(f"{s:7.4f}   {scale * variance**0.5:.2f}")


def train_head(pipeline: Any, data: Any, options: CalibrateOptions) -> None:
    """Train a variance head beside the pipeline's denoiser, in place."""
    import torch

    from ..data.batches import Batches
    from ..models.variance_head import VarianceHeadModel
    from ..objectives.base import Step
    from ..objectives.reverse_variance import ReverseVariance
    from ..paths import path_from_config
    from ..schedulers.configuration import network_facts
    from ..utils.seeds import seed_initialisation
    from .feature_training import optimise

    facts = network_facts(pipeline.scheduler.config)
    if facts.get("variance_type") in ("learned", "learned_range"):
        kind = facts["variance_type"]
        raise ValueError(f"The model's own network states its variances ({kind}), so no head is needed.")
    seed_initialisation(options.seed)
    channels, *size = pipeline.item_shape
    patch = 2 if min(size) >= 16 else 1
    head = VarianceHeadModel(tuple(size), channels, patch).to(pipeline.device)
    classes = pipeline.config.num_classes
    dropout = 0.1 if pipeline.null_label is not None else 0.0
    objective = ReverseVariance(
        path_from_config(facts), facts["prediction_type"], options.kind, classes, label_dropout=dropout
    )
    denoiser = pipeline.denoiser.requires_grad_(False)
    networks = {"denoiser": denoiser, "variance_head": head}
    batches = Batches(data, min(options.train_batch_size, len(data)), options.seed, device=pipeline.device)

    def losses() -> Iterator[torch.Tensor]:
        for number, batch in zip(range(options.max_train_steps), batches.iterate(0), strict=False):
            items = {**batch, "x": pipeline.to_items(batch["x"])}
            yield objective.loss("variance_head", networks, items, Step(number, options.seed)).value

    optimise(head, losses(), options.max_train_steps, options)
    pipeline.register_modules(variance_head=head)
    pipeline._state_variance(options.kind)

"""What a run leaves for people: pictures, figures and a card. Which pictures is the family's `Preview` to say."""

import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.images import ImageData
from ..metrics import report
from ..options import SampleArgs, TrainArgs
from ..saving import hub
from ..saving.card import write_card
from ..trainer.loop import Result
from ..utils import pictures
from . import run as common
from .best_checkpoint import Evaluation
from .preview import Preview


class TrainingMonitor:
    """What the trainer calls `every` so many steps: saves a sheet where `sample_steps` says so, pushes the pipeline
    with its sheet where `push_every` more steps have gone by, measures where `eval_steps` says so, and asks `watch`
    where that is due.

    Args:
        pipeline: networks -> pipeline.
        gallery: what is shown of it.
        sample_args, args: the options.
        output: folder of the run.
        data: the training images.
        watch: called as watch(pipeline, step) `watch.every` so many steps; training stops where it returns True.

    Raises:
        ValueError: options of the evaluation that do not suit the data.
    """

    def __init__(
        self,
        pipeline: Callable[[dict], Any],
        gallery: Preview,
        sample_args: SampleArgs,
        args: TrainArgs,
        output: Path,
        data: ImageData,
        watch: Any = None,
    ):
        self.pipeline, self.gallery, self.args, self.output, self.watch = pipeline, gallery, args, output, watch
        self.eval_steps, self.watch_steps = sample_args.eval_steps, 0 if watch is None else watch.every
        self.every = math.gcd(args.sample_steps, self.eval_steps, self.watch_steps)
        self.evaluation = Evaluation(gallery, sample_args, args.seed, data, output) if self.eval_steps else None

    def __call__(self, networks: dict[str, Any], step: int) -> bool:
        """Do what is due at this step; whether training is to stop."""
        if self.args.sample_steps and step % self.args.sample_steps == 0:
            folder = self.output / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            drawn_from = self.pipeline(networks)
            sheet = self.gallery.sheet(drawn_from)
            sheet.save(folder / f"step-{step:07d}.png")
            every = self.args.push_every
            if every and step // every > (step - self.args.sample_steps) // every:
                push_now(drawn_from, {self.gallery.sheet_name: sheet}, step, self.args)
        if self.evaluation is not None and step % self.eval_steps == 0:
            self.evaluation(self.pipeline(networks), step)
        due = self.watch_steps and step % self.watch_steps == 0
        return bool(due and self.watch(self.pipeline(networks), step))

    def last(self, networks: dict[str, Any], step: int) -> None:
        """Measure what training ends with, if it is measured at all."""
        if self.evaluation is not None:
            self.evaluation(self.pipeline(networks), step)
        if self.watch_steps:
            self.watch(self.pipeline(networks), step)


def push_now(pipeline: Any, sheets: Mapping[str, Any], step: int, args: TrainArgs) -> None:
    """Push the pipeline as it is at this step, with sheets by file name. A failure is a warning: training goes on."""
    output = Path(args.output_dir)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pipeline.save_pretrained(folder)
            for name, sheet in sheets.items():
                sheet.save(Path(folder, name))
            for name in ("config.yaml", "metrics.jsonl"):
                if (output / name).is_file():
                    shutil.copy(output / name, folder)
            repo = args.hub_model_id or output.resolve().name
            hub.push(Path(folder), repo, args.hub_private_repo, args.hub_token, commit_message=f"Training, step {step}")
    except Exception as error:  # a network may fail in any way, and none is worth the run
        print(f"warning: the push at step {step} failed ({error}). Training goes on.", file=sys.stderr)


def finish(
    pipeline: Any,
    gallery: Preview,
    data: ImageData,
    result: Result,
    args: TrainArgs,
    config: Mapping[str, Any],
    measured: Mapping[str, str] | None = None,
    evaluation: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Save the finished pipeline with its pictures, figures and card; push it if asked; say what to do next.

    For the card and metrics.json there are `measured`, a text for each name, and `evaluation`, entries with their
    protocols as `hfgen evaluate` makes them."""
    output = Path(args.output_dir)
    pipeline.save_pretrained(output)
    captions = gallery.hang(pipeline, output)
    world = config["num_processes"]
    images = result.step * args.train_batch_size * args.gradient_accumulation_steps * world
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    networks = {name: part for name, part in parts.items() if common.parameters(part)}
    figures = common.write_metrics(output, result, args, networks, images, measured or {})
    if evaluation:
        report.write(output / "metrics.json", evaluation)
    losses = pictures.read_losses(output / "metrics.jsonl")
    if losses:
        pictures.curves(losses).save(output / "loss.png")
    _card(pipeline, gallery, captions, data, figures, config, output)
    common.push(args)
    print(
        f"\nDone: {result.step} steps in {result.seconds:.0f} s of training. In {output}/:\n"
        f"  {', '.join(captions)}, README.md (model card), metrics.json, the pipeline\n"
        "Next:"
    )
    for command in (*gallery.commands(pipeline, output), f"tensorboard --logdir {output}/logs"):
        print(f"  {command}")


def _card(
    pipeline: Any,
    gallery: Preview,
    captions: Mapping[str, str],
    data: ImageData,
    figures: Mapping[str, Any],
    config: Mapping[str, Any],
    output: Path,
) -> None:
    conditional = pipeline.config.get("num_classes") is not None
    height, width = data.size
    count = "streamed" if data.streaming else f"{len(data):,} images"
    family = Path(sys.argv[0]).stem.removeprefix("train_")
    article = "An" if gallery.kind[0] in "aeiou" else "A"
    chosen = (*gallery.chosen, "learning_rate", "train_batch_size", "mixed_precision", "seed")
    facts = {
        "data": f"{data.name}, {count}, {width}x{height}, {data.channels} channel(s)",
        "classes": data.num_classes if conditional else "not used",
        **{f"{name} ": f"{part:,} parameters" for name, part in figures["parameters"].items()},
        **gallery.facts(pipeline),
        "trained for": f"{figures['steps']:,} steps, {figures['images_seen']:,} images",
        "time": f"{figures['training_seconds']:.0f} s on {figures['hardware']}",
        **figures["measured"],
        "weights": "exponential moving average" if figures["ema"] else "as trained",
        **{name.replace("_", " "): config[name] for name in chosen if name in config},
        "versions": ", ".join(f"{name} {version}" for name, version in figures["versions"].items()),
    }
    write_card(
        output,
        title=f"{gallery.title} on {data.name}",
        summary=f"{article} {gallery.kind} model{' with classes' if conditional else ''}, trained with hfgen.",
        call=gallery.example(pipeline),
        facts=facts,
        command=f"hfgen train {family} --config config.yaml",
        tags=[gallery.kind.replace(" ", "-")],
        data=config["dataset"],
        licence=config["hub_license"],
        pictures=captions,
        task=gallery.task,
        outcome=gallery.outcome,
    )

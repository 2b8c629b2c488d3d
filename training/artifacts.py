"""What a run leaves for people: pictures, figures and a card."""

import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hfgen.training.best import Evaluation

from hfgen import hub, pictures
from hfgen.args import SampleArgs, TrainArgs
from hfgen.card import write_card
from hfgen.data import ImageData
from hfgen.trainer import Result
from hfgen.training import common


def draw(pipeline: Any, args: SampleArgs, seed: int, trajectory: bool = False) -> tuple[list[list[Any]], int]:
    """Samples with fixed seeds and the columns to show them in, a row a class where there are classes: the images, or
    with `trajectory` those of every step on the way."""
    classes = pipeline.config.get("num_classes")
    rows = min(classes, args.eval_batch_size) if classes else max(1, math.isqrt(args.eval_batch_size))
    columns = max(1, min(args.eval_batch_size // rows, 10))
    labels = [label for label in range(rows) for _ in range(columns)] if classes else None
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(
        batch_size=rows * columns,
        class_labels=labels,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale if classes else 1.0,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(rows * columns)],
        return_trajectory=trajectory,
    )
    stages = [out.images] if not trajectory else [pipeline.to_images(x.clamp(-1, 1)) for x in out.trajectory]
    return stages, columns


class Previewer:
    """What the trainer calls `every` so many steps: saves a grid of samples where `sample_steps` says so, always of the
    same noise, so that grids can be compared, pushes the pipeline with its grid where `push_every` more steps have gone
    by, and measures where `eval_steps` says so.

    Args:
        pipeline: networks -> pipeline.
        sample_args, args: the options.
        output: folder of the run.
        data: the training images.

    Raises:
        ValueError: options of the evaluation that do not suit the data.
    """

    def __init__(
        self, pipeline: Callable[[dict], Any], sample_args: SampleArgs, args: TrainArgs, output: Path, data: ImageData
    ):
        self.pipeline, self.sample_args, self.args, self.output = pipeline, sample_args, args, output
        self.every = math.gcd(args.sample_steps, sample_args.eval_steps)
        self.evaluation = Evaluation(sample_args, args, data, output) if sample_args.eval_steps else None

    def __call__(self, networks: dict[str, Any], step: int) -> None:
        """Do what is due at this step."""
        if self.args.sample_steps and step % self.args.sample_steps == 0:
            folder = self.output / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            drawn_from = self.pipeline(networks)
            (images,), columns = draw(drawn_from, self.sample_args, self.args.seed)
            sheet = pictures.grid(images, columns)
            sheet.save(folder / f"step-{step:07d}.png")
            every = self.args.push_every
            if every and step // every > (step - self.args.sample_steps) // every:
                push_now(drawn_from, sheet, step, self.args)
        if self.evaluation is not None and step % self.sample_args.eval_steps == 0:
            self.evaluation(self.pipeline(networks), step)

    def last(self, networks: dict[str, Any], step: int) -> None:
        """Measure what training ends with, if it is measured at all."""
        if self.evaluation is not None:
            self.evaluation(self.pipeline(networks), step)


def push_now(pipeline: Any, sheet: Any, step: int, args: TrainArgs) -> None:
    """Push the pipeline as it is at this step. A failure is a warning: training goes on."""
    output = Path(args.output_dir)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pipeline.save_pretrained(folder)
            sheet.save(Path(folder, "samples.png"))
            for name in ("config.yaml", "metrics.jsonl"):
                if (output / name).is_file():
                    shutil.copy(output / name, folder)
            repo = args.hub_model_id or output.resolve().name
            hub.push(Path(folder), repo, args.hub_private_repo, args.hub_token, commit_message=f"Training, step {step}")
    except Exception as error:  # a network may fail in any way, and none is worth the run
        print(f"warning: the push at step {step} failed ({error}). Training goes on.", file=sys.stderr)


def finish(
    pipeline: Any,
    title: str,
    tags: list[str],
    data: ImageData,
    result: Result,
    args: TrainArgs,
    sample_args: SampleArgs,
    config: Mapping[str, Any],
    measured: Mapping[str, Any] | None = None,
) -> None:
    """Save the finished pipeline with its pictures, figures and card; push it if asked; say what to do next.

    `measured` is for the card and metrics.json: a text for each name."""
    output = Path(args.output_dir)
    pipeline.save_pretrained(output)
    stages, columns = draw(pipeline, sample_args, args.seed, trajectory=True)
    pictures.grid(stages[-1], columns).save(output / "samples.png")
    pictures.animate([pictures.grid(images, columns, width=256) for images in stages], output / "denoising.gif")
    world = config["num_processes"]
    images = result.step * args.train_batch_size * args.gradient_accumulation_steps * world
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    figures = common.write_metrics(output, result, args, networks, images, measured or {})
    losses = pictures.read_losses(output / "metrics.jsonl")
    if losses:
        pictures.curves(losses).save(output / "loss.png")
    _card(pipeline, title, tags, data, figures, sample_args, config, output)
    common.push(args)
    conditional = pipeline.config.get("num_classes") is not None
    print(
        f"\nDone: {result.step} steps in {result.seconds:.0f} s of training. In {output}/:\n"
        "  samples.png, denoising.gif, README.md (model card), metrics.json, the pipeline\n"
        "Next:\n"
        f"  hfgen sample {output} --num 16{' --class_labels 3' if conditional else ''} --grid grid.png\n"
        f"  python -c \"from hfgen import HFGenPipeline as P; P.from_pretrained('{output}')().images[0].show()\"\n"
        f"  tensorboard --logdir {output}/logs"
    )


def _card(
    pipeline: Any,
    title: str,
    tags: list[str],
    data: ImageData,
    figures: Mapping[str, Any],
    sample_args: SampleArgs,
    config: Mapping[str, Any],
    output: Path,
) -> None:
    conditional = pipeline.config.get("num_classes") is not None
    height, width = data.size
    count = "streamed" if data.streaming else f"{len(data):,} images"
    family = Path(sys.argv[0]).stem.removeprefix("train_")
    scheduler = type(pipeline.scheduler).__name__
    steps = sample_args.num_inference_steps or getattr(pipeline.scheduler, "default_num_inference_steps", "default")
    chosen = ("path", "prediction_type", "learning_rate", "train_batch_size", "mixed_precision", "seed")
    facts = {
        "data": f"{data.name}, {count}, {width}x{height}, {data.channels} channel(s)",
        "classes": data.num_classes if conditional else "not used",
        **{f"{name} ": f"{part:,} parameters" for name, part in figures["parameters"].items()},
        "samples above": f"{scheduler}, {steps} steps, guidance {sample_args.guidance_scale}, fixed seeds",
        "trained for": f"{figures['steps']:,} steps, {figures['images_seen']:,} images",
        "time": f"{figures['training_seconds']:.0f} s on {figures['hardware']}",
        **figures["measured"],
        "weights": "exponential moving average" if figures["ema"] else "as trained",
        **{name.replace("_", " "): config[name] for name in chosen if name in config},
        "versions": ", ".join(f"{name} {version}" for name, version in figures["versions"].items()),
    }
    write_card(
        output,
        title=title,
        summary=f"A {tags[0]} model{' with classes' if conditional else ''}, trained with hfgen.",
        call="class_labels=[0, 1]" if conditional else "batch_size=4",
        facts=facts,
        command=f"hfgen train {family} --config config.yaml",
        tags=[tag.replace(" ", "-") for tag in tags],
        data=config["dataset"],
        licence=config["hub_license"],
    )

"""`hfgen sample`: draw images from a trained pipeline, to a grid or to files."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from ..options import argument, option, parse, parser
from ..registry import SAMPLERS
from ..utils.devices import place

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass
class SampleOptions:
    """Sampling"""

    pipeline: str = argument("folder of a trained pipeline, or its repository on the Hub")
    num: int = option(16, "number of images, over all class_labels")
    class_labels: str | None = option(None, "classes by number or name, separated by commas, or 'all'")
    scheduler: str | None = option(None, f"{', '.join(SAMPLERS)}; default: the pipeline's own")
    steps: int | None = option(None, "steps of the scheduler; default: its own")
    guidance_scale: float = option(1.0, "classifier-free guidance; 1: none")
    seed: int = option(0, "image i is drawn with seed + i, whatever the batch size")
    batch_size: int = option(64, "images at a time")
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    dtype: str = option("float32", "float32, bfloat16 or float16")
    grid: str | None = option(None, "file for one picture of all images")
    output_dir: str | None = option(None, "folder for one PNG an image")


def main(argv: list[str] | None = None) -> None:
    """Draw images, then write a grid, files, or both.

    Raises:
        ValueError: options out of range, or options that the pipeline does not take.
    """
    command = parser(
        "hfgen sample",
        "Draw images from a trained pipeline.",
        "hfgen sample outputs/quickstart --num 64 --class_labels 3 --scheduler dpmsolver++ --steps 10 --grid out.png",
        SampleOptions,
        config=False,
    )
    (options,) = parse(command, argv, SampleOptions)
    if options.num < 1 or options.batch_size < 1:
        raise ValueError(f"num={options.num} and batch_size={options.batch_size} must be at least 1.")
    if options.dtype not in DTYPES:
        raise ValueError(f"dtype={options.dtype!r} is not known. Choose float32, bfloat16 or float16.")
    pipeline = _pipeline(options)
    _write(_draw(pipeline, options), options)


def _draw(pipeline: Any, options: SampleOptions) -> list[Any]:
    """Return `options.num` PIL images; image i has its own generator, seeded with `seed + i`."""
    import torch

    labels, images = _labels(options, pipeline), []
    for start in range(0, options.num, options.batch_size):
        indices = range(start, min(start + options.batch_size, options.num))
        call = pipeline.call_with(
            batch_size=len(indices),
            class_labels=labels and [labels[i] for i in indices],
            num_inference_steps=options.steps,
            guidance_scale=None if options.guidance_scale == 1 else options.guidance_scale,
        )
        generators = [torch.Generator().manual_seed(options.seed + i) for i in indices]
        images += pipeline(generator=generators, **call).images
    return images


def _write(images: list[Any], options: SampleOptions) -> None:
    """Write the images to `output_dir`, and to `grid`; without either option to samples.png."""
    from ..utils import pictures

    if options.output_dir:
        folder = Path(options.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            image.save(folder / f"{i:06d}.png")
        print(f"{len(images)} images in {folder}")
    if options.grid or not options.output_dir:
        target = Path(options.grid or "samples.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        pictures.grid(images, max(1, round(len(images) ** 0.5))).save(target)
        print(f"{len(images)} images in {target}")


def _pipeline(options: SampleOptions) -> Any:
    """Load the pipeline, on its device, in its precision, with its scheduler."""
    import torch

    import hfgen

    pipeline = place(hfgen.HFGenPipeline.from_pretrained(options.pipeline), options.device)
    if options.dtype != "float32":
        pipeline.to(getattr(torch, options.dtype))
    if options.scheduler is not None:
        pipeline.use_scheduler(options.scheduler)
    return pipeline


def _labels(options: SampleOptions, pipeline: Any) -> list[Any] | None:
    """Return one label for each image, class after class; None without --class_labels."""
    if options.class_labels is None:
        return None
    if pipeline.config.get("num_classes") is None:
        raise ValueError("class_labels were given but this model was trained without classes. Leave them out.")
    words = [word.strip() for word in options.class_labels.split(",")]
    if words == ["all"]:
        words = [str(i) for i in range(pipeline.config.num_classes)]
    names = pipeline.config.label_names or []
    labels = [word if word in names else int(word) if re.fullmatch(r"\d+", word) else word for word in words]
    return [labels[i * len(labels) // options.num] for i in range(options.num)]

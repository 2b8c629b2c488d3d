"""`hfgen sample`: draw samples from a trained pipeline, to a picture or to files."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..options import Options, argument, option, parse, parser
from ..registry import SAMPLERS
from ..utils.devices import place
from ..utils.files import check_writable, replacing, write_picture
from ..utils.ranges import AT_LEAST_0, COUNT, SEED

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_GRID = "samples.png"


@dataclasses.dataclass
class SampleOptions(Options):
    """Sampling"""

    pipeline: str = argument("folder of a trained pipeline, or its repository on the Hub")
    num: int = option(16, "number of samples, over all class_labels", range=COUNT)
    class_labels: str | None = option(None, "classes by name or number, separated by commas, or 'all'")
    scheduler: str | None = option(None, f"{', '.join(SAMPLERS)}; default: the pipeline's own")
    steps: int | None = option(None, "steps of the scheduler; default: its own", range=COUNT)
    guidance_scale: float = option(1.0, "classifier-free guidance; 1: none", range=AT_LEAST_0)
    seed: int = option(0, "sample i is drawn with seed + i, whatever the batch size", range=SEED)
    batch_size: int = option(64, "samples at a time", range=COUNT)
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    dtype: str = option("float32", "float32, bfloat16 or float16")
    call: Mapping[str, Any] | None = option(None, "further arguments of the pipeline's call: --call.prompt 'a red cat'")
    grid: str | None = option(None, "file for one picture of all samples")
    output_dir: str | None = option(None, "folder for one PNG per image; other samples: samples.npy")


def main(argv: list[str] | None = None) -> None:
    """Draw samples, then write a picture, files, or both.

    Raises:
        ValueError: options out of range, or options that the pipeline does not take.
    """
    command = parser(
        "hfgen sample",
        "Draw samples from a trained pipeline.",
        "hfgen sample outputs/quickstart --num 64 --class_labels 3 --scheduler dpmsolver++ --steps 10 --grid out.png",
        SampleOptions,
        config=False,
    )
    (options,) = parse(command, argv, SampleOptions)
    if options.dtype not in DTYPES:
        raise ValueError(f"dtype={options.dtype!r} is not known. Choose float32, bfloat16 or float16.")
    _check(options)
    pipeline = _pipeline(options)
    _write(_draw(pipeline, options), options)


def _check(options: SampleOptions) -> None:
    """Raise ValueError, before anything is drawn, for files that can't be written and for too many samples."""
    from ..utils.pictures import check_picture_file
    from ..utils.seeds import check_seed

    check_seed(options.seed + options.num - 1)
    if options.output_dir and Path(options.output_dir).exists() and not Path(options.output_dir).is_dir():
        raise ValueError(f"--output_dir {options.output_dir} is a file. Give a folder.")
    if options.grid or not options.output_dir:
        check_picture_file("grid", options.grid or DEFAULT_GRID)
    if options.output_dir:
        check_writable(Path(options.output_dir, "samples.npy"))


def _draw(pipeline: Any, options: SampleOptions) -> list[Any]:
    """Return `options.num` samples, PIL images or tensors; sample i has its own generator, seeded with `seed + i`."""
    from ..utils.seeds import sample_generators

    labels, samples = _labels(options, pipeline), []
    for start in range(0, options.num, options.batch_size):
        indices = range(start, min(start + options.batch_size, options.num))
        arguments = {
            "batch_size": len(indices),
            "class_labels": labels and [labels[i] for i in indices],
            "num_inference_steps": options.steps,
            "guidance_scale": None if options.guidance_scale == 1 else options.guidance_scale,
            **(options.call or {}),
        }
        call = pipeline.call_with(**arguments)
        _check_complete(pipeline, call)
        generators = sample_generators(options.seed, indices)
        samples += list(pipeline(**{"generator": generators, **call})[0])
    return samples


def _check_complete(pipeline: Any, call: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that the pipeline's call needs and `call` lacks."""
    for name, parameter in inspect.signature(pipeline.__call__).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if needed and name not in call:
            raise ValueError(f"{type(pipeline).__name__} needs {name}. Add --call.{name} VALUE.")


def _write(samples: list[Any], options: SampleOptions) -> None:
    """Write the samples to `output_dir`, and a picture of them to `grid`; without either option to samples.png.

    Raises:
        ValueError: a picture is wanted of items that have none.
    """
    import numpy as np
    import torch
    from PIL.Image import Image

    from ..families.preview import picture_of

    images = isinstance(samples[0], Image)
    unit, items = ("images", samples) if images else ("samples", torch.stack([torch.as_tensor(x) for x in samples]))
    if options.output_dir:
        folder = Path(options.output_dir)
        for i, image in enumerate(samples if images else []):
            write_picture(folder / f"{i:06d}.png", image)
        if not images:
            with replacing(folder / "samples.npy") as draft:
                np.save(draft, items.float().cpu().numpy())
        print(f"{len(samples)} {unit} in {folder}")
    if options.grid or not options.output_dir:
        picture = picture_of(items, max(1, round(len(samples) ** 0.5)))
        if picture is None:
            raise ValueError(f"Samples of shape {tuple(items.shape[1:])} have no picture. Give --output_dir instead.")
        target = Path(options.grid or DEFAULT_GRID)
        write_picture(target, picture)
        print(f"{len(samples)} {unit} in {target}")


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


def _labels(options: SampleOptions, pipeline: Any) -> list[int] | None:
    """Return the number of a class for each image, class after class; None without --class_labels."""
    from ..pipelines.classes import classes_in

    if options.class_labels is None:
        return None
    if pipeline.config.get("num_classes") is None:
        raise ValueError("class_labels were given but this model was trained without classes. Leave them out.")
    classes = classes_in(options.class_labels, pipeline.config.num_classes, pipeline.config.label_names)
    if options.num < len(classes):
        raise ValueError(f"num={options.num} is too few for {len(classes)} class_labels. Give --num {len(classes)}.")
    return [classes[i * len(classes) // options.num] for i in range(options.num)]

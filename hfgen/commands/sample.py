"""`hfgen sample`: draw samples from a trained pipeline, to a picture or to files."""

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..console.notes import tell
from ..disk.files import check_writable
from ..disk.saves import replacing_files
from ..evaluation.options import GuideOptions
from ..options import Options, argument, option, parse, parser
from ..registry import ENERGY_SAMPLERS, SAMPLERS
from ..utils.adapters import ADAPTERS, adapters_text, use_adapters
from ..utils.devices import cast, place
from ..utils.drawing import check_draws
from ..utils.ranges import ABOVE_0, AT_LEAST_0, COUNT, PROBABILITY, SEED

EXAMPLE = (
    "hfgen sample outputs/quickstart --num_samples 64 --class_labels 3 --scheduler dpmsolver++ "
    "--num_inference_steps 10 --grid out.png"
)
DEFAULT_GRID = "samples.png"
CALL = ("negative_prompt", "guidance_method", "guidance_rescale", "temperature", "truncation", "num_segments")
"""Options that are arguments of the call of some families."""


class Wanted(NamedTuple):
    """What the samples are to show.

    Attributes:
        argument: of the pipeline's call.
        values: of the argument, one for each sample.
        rows: number of each sample's row in the picture.
        names: of the rows.
    """

    argument: str
    values: list[Any]
    rows: list[int]
    names: list[str]


@dataclasses.dataclass
class SampleOptions(Options):
    """Sampling"""

    COMMON = (
        *("pipeline", "lora", "num_samples", "class_labels", "prompt", "prompts", "negative_prompt", "scheduler"),
        *("num_inference_steps", "guidance_scale", "temperature", "seed", "device", "grid", "output_dir"),
    )

    pipeline: str = argument("folder of a trained pipeline, or its repository on the Hub")
    num_samples: int = option(16, "number of samples, over all class_labels or prompts", range=COUNT, former=("num",))
    class_labels: str | None = option(None, "classes by name or number, separated by commas, or 'all'")
    prompt: str | None = option(None, "text that the samples are to show")
    prompts: str | None = option(None, "file of such texts, one a line", path=True)
    negative_prompt: str | None = option(None, "text that guidance leads away from")
    scheduler: str | None = option(
        None, f"{', '.join(SAMPLERS)}; of energies {', '.join(ENERGY_SAMPLERS)}; default: the pipeline's own"
    )
    num_inference_steps: int | None = option(
        None,
        "steps of the scheduler, or iterations of a segment; default: the pipeline's own",
        range=COUNT,
        former=("steps",),
    )
    guidance_scale: float = option(1.0, "classifier-free guidance; 1: none", range=AT_LEAST_0)
    guidance_method: Literal["cfg", "apg"] | None = option(
        None, "form of the guidance; apg: without what saturates pixels; default: cfg"
    )
    guidance_rescale: float | None = option(
        None,
        "share of the guided output that is scaled to the spread of the unguided one; 0.7 is usual",
        range=PROBABILITY,
    )
    temperature: float | None = option(
        None, "spread of the latents: below 1 samples are more typical and less diverse; default: 1", range=AT_LEAST_0
    )
    truncation: float | None = option(
        None,
        "of a GAN the bound of its latents, of a StyleGAN the share of a style's distance from the mean style: the "
        "lower, the more typical; default: none",
        range=ABOVE_0,
    )
    num_segments: int | None = option(
        None,
        "parts of an image that a transformer flow computes one after the other, each by iterations; default: exactly, "
        "token by token",
        range=COUNT,
    )
    seed: int = option(0, "sample i is drawn with seed + i, whatever the batch size", range=SEED)
    batch_size: int = option(64, "samples at a time", range=COUNT)
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "precision of the networks")
    call: Mapping[str, Any] | None = option(None, "further arguments of the pipeline's call: --call.sampler hmc")
    grid: str | None = option(
        None, "file for one picture of all samples, with class_labels or prompts a row for each", path=True
    )
    output_dir: str | None = option(None, "folder for one PNG per image; other samples: samples.npy", path=True)
    lora: str | None = option(None, "adapters to use together", range=ADAPTERS, path=True)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What drew the samples of a run, for the provenance of its files.

    Attributes:
        pipeline, revision: that drew them, and the digest of what it computes with.
        options, guide_options: of the run.
        wanted: what the samples show.
    """

    pipeline: Any
    revision: str
    options: SampleOptions
    guide_options: GuideOptions
    wanted: Wanted | None

    def of(self, numbers: Sequence[int]) -> Any:
        """Return the `Provenance` of a file with the samples of these numbers."""
        from ..utils.provenance import provenance_of

        first, last = (self.options.seed + numbers[place] for place in (0, -1))
        shown = [] if self.wanted is None else [self.wanted.values[i] for i in numbers]
        call = {
            **({self.wanted.argument: shown if len(shown) > 1 else shown[0]} if self.wanted else {}),
            **{name: getattr(self.options, name) for name in ("scheduler", "num_inference_steps", *CALL)},
            "guidance_scale": None if self.options.guidance_scale == 1 else self.options.guidance_scale,
            "lora": None if self.options.lora is None else adapters_text(self.options.lora),
            **self._guides(),
            **(self.options.call or {}),
        }
        seed = first if first == last else f"{first} to {last}"
        return provenance_of(self.pipeline, self.options.pipeline, self.revision, seed, call)

    def _guides(self) -> dict[str, Any]:
        """Return the options of guides that are used, folders by their last name."""
        guides, defaults = dataclasses.asdict(self.guide_options), dataclasses.asdict(GuideOptions())
        used = {name: value for name, value in guides.items() if value != defaults[name]}
        return {name: Path(value).name if isinstance(value, str) else value for name, value in used.items()}


def main(argv: list[str] | None = None) -> None:
    """Draw samples, then write a picture, files, or both.

    Raises:
        ValueError: options out of range, or options that the pipeline does not take.
    """
    command = parser(
        "hfgen sample",
        "Draw samples from a trained pipeline.",
        EXAMPLE,
        SampleOptions,
        GuideOptions,
        config=False,
    )
    options, guide_options = parse(command, argv, SampleOptions, GuideOptions)
    _check(options)
    from ..evaluation.guides import load_guides
    from ..serving.revision import revision_of

    pipeline = _pipeline(options)
    revision = revision_of(pipeline)
    if options.scheduler is not None:
        pipeline.use_scheduler(options.scheduler)
    guides = load_guides(guide_options, pipeline, pipeline.device, options.dtype)
    wanted = _wanted(options, guides.knower)
    samples = _draw(guides, options, wanted)
    _write(samples, options, wanted, Origin(pipeline, revision, options, guide_options, wanted))


def _check(options: SampleOptions) -> None:
    """Raise ValueError, before anything is drawn, for files that can't be written and for too many samples."""
    from ..utils.pictures import check_picture_file
    from ..utils.seeds import check_seed

    check_seed(options.seed + options.num_samples - 1)
    if options.prompt is not None and options.prompts is not None:
        raise ValueError("Give --prompt or --prompts, not both.")
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    for name in options.call or {}:
        if name in fields and getattr(options, name) != fields[name]:
            raise ValueError(f"--call.{name} and --{name} are one argument of the call. Leave one out.")
    if options.output_dir and Path(options.output_dir).exists() and not Path(options.output_dir).is_dir():
        raise ValueError(f"--output_dir {options.output_dir} is a file. Give a folder.")
    if options.grid or not options.output_dir:
        check_picture_file("grid", options.grid or DEFAULT_GRID)
    if options.output_dir:
        check_writable(Path(options.output_dir, "samples.npy"))


def _draw(guides: Any, options: SampleOptions, wanted: Wanted | None) -> list[Any]:
    """Return `num_samples` samples, PIL images or tensors, of a pipeline under its guides (`Guides`). Sample i has its
    own generator, seeded with `seed + i`."""
    from ..console.progress import ProgressBar, quiet
    from ..utils.seeds import sample_generators

    pipeline = guides.pipeline
    samples, starts = [], range(0, options.num_samples, options.batch_size)
    for start in starts if len(starts) == 1 else ProgressBar(starts, desc="Drawing", unit="batch"):
        indices = range(start, min(start + options.batch_size, options.num_samples))
        shown = {} if wanted is None else {wanted.argument: [wanted.values[i] for i in indices]}
        arguments = {
            "batch_size": len(indices),
            **_told(pipeline, shown),
            "num_inference_steps": options.num_inference_steps,
            "guidance_scale": None if options.guidance_scale == 1 else options.guidance_scale,
            **{name: getattr(options, name) for name in CALL},
            **guides.arguments(shown.get("class_labels")),
            **(options.call or {}),
        }
        call = pipeline.call_with(**arguments)
        _check_complete(pipeline, call)
        generators = sample_generators(options.seed, indices)
        with contextlib.nullcontext() if len(starts) == 1 else quiet(pipeline):  # one batch has the bar of its steps
            samples += list(pipeline(**{"generator": generators, **call})[0])
    return samples


def _told(pipeline: Any, shown: dict[str, Any]) -> dict[str, Any]:
    """Return what the pipeline's call is told of what samples show: no classes that only a classifier knows."""
    knows = pipeline.config.get("num_classes") is not None
    return {name: values for name, values in shown.items() if knows or name != "class_labels"}


def _check_complete(pipeline: Any, call: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that the pipeline's call needs and `call` lacks."""
    for name, parameter in inspect.signature(pipeline.__call__).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if needed and name not in call:
            raise ValueError(f"{type(pipeline).__name__} needs {name}. Add --call.{name} VALUE.")


def _write(samples: list[Any], options: SampleOptions, wanted: Wanted | None, origin: Origin) -> None:
    """Write the samples to `output_dir`, and a picture of them to `grid`; without either option to samples.png. The
    picture has a row for each class or prompt, if there are any, beside its name.

    Raises:
        ValueError: a picture is wanted of items that have none.
    """
    import numpy as np
    import torch
    from PIL.Image import Image

    from ..families.preview import picture_of
    from ..utils.pictures import class_grid
    from ..utils.provenance import save_image

    images = isinstance(samples[0], Image)
    unit, items = ("images", samples) if images else ("samples", torch.stack([torch.as_tensor(x) for x in samples]))
    if options.output_dir:
        folder = Path(options.output_dir)
        with replacing_files(folder, "samples", sync=not images) as draft:
            for i, image in enumerate(samples if images else []):
                image.save(draft / f"{i:06d}.png", **origin.of([i]).options("PNG"))
            if not images:
                np.save(draft / "samples.npy", items.float().cpu().numpy())
        print(f"{len(samples)} {unit} in {folder}")
        _tell_of_others(folder, len(samples) if images else 0)
    if options.grid or not options.output_dir:
        columns = max(1, round(len(samples) ** 0.5))
        named = images and wanted is not None
        picture = class_grid(samples, wanted.rows, wanted.names) if named else picture_of(items, columns)
        if picture is None:
            raise ValueError(f"Samples of shape {tuple(items.shape[1:])} have no picture. Give --output_dir instead.")
        target = Path(options.grid or DEFAULT_GRID)
        save_image(target, picture, origin.of(range(len(samples))))
        print(f"{len(samples)} {unit} in {target}")


def _tell_of_others(folder: Path, count: int) -> None:
    """Say which samples in a folder are of another run: the names of all but the first `count` images."""
    found = ((re.fullmatch(r"(\d{6,9})\.png", path.name), path.name) for path in folder.iterdir())
    if others := sorted(name for match, name in found if match and int(match[1]) >= count):
        names = others[0] if len(others) == 1 else f"{others[0]} to {others[-1]}"
        tell(f"{folder} also holds images of another call, which stay: {names}.")


def _pipeline(options: SampleOptions) -> Any:
    """Load the pipeline, on its device, in its precision."""

    import hfgen

    pipeline = hfgen.HFGenPipeline.from_pretrained(options.pipeline)
    use_adapters(pipeline, options.lora)
    pipeline = place(pipeline, options.device)
    check_draws(pipeline, "Call it from Python, as its card shows.")
    if options.dtype != "float32":
        cast(pipeline, options.dtype)
    return pipeline


def _wanted(options: SampleOptions, pipeline: Any) -> Wanted | None:
    """Return the class or the prompt of each sample, one after the other; None if any are wanted.

    Raises:
        ValueError: classes that the pipeline does not know, no prompts in their file, or fewer samples than these.
    """
    from ..families.preview import class_names
    from ..families.prompts import prompts_in

    prompts = prompts_in(options.prompts) if options.prompt is None else [options.prompt]
    if options.class_labels is None and not prompts:
        return None
    if options.class_labels is None:
        rows = _rows(options, len(prompts), "prompts")
        return Wanted("prompt", [prompts[row] for row in rows], rows, prompts)
    if prompts:
        raise ValueError("Samples show a class or a prompt. Give --class_labels, --prompt or --prompts alone.")
    classes = _classes(options, pipeline)
    labels = [classes[row] for row in _rows(options, len(classes), "classes")]
    return Wanted("class_labels", labels, labels, class_names(pipeline))


def _rows(options: SampleOptions, count: int, unit: str) -> list[int]:
    """Return for each sample which of `count` classes or prompts it shows."""
    if options.num_samples < count:
        raise ValueError(f"{options.num_samples} samples are too few for {count} {unit}. Give --num_samples {count}.")
    return [i * count // options.num_samples for i in range(options.num_samples)]


def _classes(options: SampleOptions, pipeline: Any) -> list[int]:
    """Return the numbers of the classes that are wanted."""
    from ..pipelines.classes import classes_in

    if pipeline.config.get("num_classes") is None:
        raise ValueError("class_labels were given but this model was trained without classes. Leave them out.")
    return classes_in(options.class_labels, pipeline.config.num_classes, pipeline.config.label_names)

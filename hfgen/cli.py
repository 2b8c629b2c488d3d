"""The `hfgen` command. torch is imported only by what needs it, so that help is instant."""

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfgen import __version__

from .options import DataArgs, argument, option, parse, parser
from .registry import FAMILIES, SAMPLERS
from .utils.devices import placed

_HELP = """usage: hfgen <command> [options]

Train, sample and measure generative models on diffusers.

commands:
{commands}

`hfgen <command> --help` lists a command's options, with an example.

example:
  hfgen train diffusion --config training/configs/quickstart.yaml
"""


@dataclasses.dataclass
class SampleOptions:
    """Sampling"""

    pipeline: str = argument("folder of a trained pipeline, or its repository on the Hub")
    num: int = option(16, "images to draw; with class_labels, in all")
    class_labels: str | None = option(None, "classes by number or name, separated by commas, or 'all'")
    scheduler: str | None = option(None, f"{', '.join(SAMPLERS)}; default: the pipeline's own")
    steps: int | None = option(None, "steps of the scheduler; default: its own")
    guidance_scale: float = option(1.0, "classifier-free guidance; 1: none")
    seed: int = option(0, "image i is drawn with seed + i, whatever the batch size")
    batch_size: int = option(64, "images at a time")
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    dtype: str = option("float32", "float32, bfloat16 or float16")
    grid: str | None = option(None, "write one picture of all images to this file")
    output_dir: str | None = option(None, "write one PNG an image to this folder")


@dataclasses.dataclass
class PreviewOptions:
    """Preview"""

    preview: str = option("preview.png", "where to save a grid of images")
    seed: int = option(0, "which images")


def main(argv: list[str] | None = None) -> None:
    """Run one command; errors about options, data and folders are one line and exit status 2."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP.format(commands="\n".join(f"  {name:9} {what}" for name, (what, _) in COMMANDS.items())), end="")
        return
    if words[0] == "--version":
        print(f"hfgen {__version__}")
        return
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}."
        _fail(f"no command {words[0]!r}; {hint}")
    try:
        COMMANDS[words[0]][1](words[1:])
    except (ValueError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def train(argv: list[str]) -> None:
    """`hfgen train <family> ...`: the family's front door with the same options, launched by accelerate if need be."""
    example = "hfgen train diffusion --dataset digits --class_conditional --max_train_steps 500"
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: hfgen train <family> [--num_processes N] [options]\n\nfamilies: {', '.join(FAMILIES)}\n")
        print(f"`hfgen train <family> --help` lists the options.\n\nexample:\n  {example}")
        return
    family, *rest = argv
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        _fail(f"no family {family!r}; {f'did you mean {near[0]}?' if near else 'there are: ' + ', '.join(FAMILIES)}")
    module = f"hfgen.training.{FAMILIES[family]}"
    if {"-h", "--help"} & set(rest):
        import importlib

        return importlib.import_module(module).main(rest)
    _launch(module, rest)


def _launch(module: str, rest: list[str]) -> None:
    """Become `python -m module rest`, through a launcher if need be."""
    os.execv(sys.executable, [sys.executable, *_launcher(rest), "-m", module, *rest])


def evaluate(argv: list[str]) -> None:
    """`hfgen evaluate <pipeline or folder of images> ...`: measure; with `--num_processes N` by several processes."""
    if any(word.split("=")[0] == "--num_processes" for word in argv):
        return _launch("hfgen.evaluation.evaluate", list(argv))
    from .evaluation.evaluate import main

    main(argv)


def _launcher(rest: list[str]) -> list[str]:
    """The words that start a launcher: with the user's configuration of accelerate where there is one, else for one
    process a GPU. None for a single process: it gets its signals itself, and exits with its own status.

    `--num_processes N` is taken out of `rest`. An error is said by the run itself, not by the launcher once more."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    processes = _taken(rest, "--num_processes")
    launcher = ["-m", "accelerate.commands.launch", "--quiet"]
    if processes is None and Path(default_config_file).exists():
        return launcher
    processes = processes or str(max(1, torch.cuda.device_count()))
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(min(8, os.cpu_count() or 1)))
    if processes == "1":
        return []
    options = {"num_processes": processes, "num_machines": "1", "mixed_precision": "no", "dynamo_backend": "no"}
    options["num_cpu_threads_per_process"] = threads
    multi = ["--multi_gpu"] if torch.cuda.is_available() else []
    return [*launcher, *multi, *(word for name, value in options.items() for word in (f"--{name}", value))]


def _taken(words: list[str], flag: str) -> str | None:
    """The positive number that follows `flag` (or its `=`) in `words`, both taken out; None if it is not there."""
    place = next((i for i, word in enumerate(words) if word.split("=")[0] == flag), None)
    if place is None:
        return None
    _, joined, value = words[place].partition("=")
    length = 1 if joined else 2
    value = value if joined else "".join(words[place + 1 : place + 2])
    if not re.fullmatch(r"[1-9]\d*", value):
        raise ValueError(f"{flag} needs a positive number, not {value!r}.")
    del words[place : place + length]
    return value


def sample(argv: list[str]) -> None:
    """`hfgen sample <pipeline> ...`: draw images to a grid or to files."""
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
    if options.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={options.dtype!r} is not known. Choose float32, bfloat16 or float16.")

    import torch

    from .utils import pictures

    pipeline = _load(options, torch)
    labels, images = _labels(options, pipeline), []
    for start in range(0, options.num, options.batch_size):
        numbers = range(start, min(start + options.batch_size, options.num))
        call = pipeline.call_with(
            batch_size=len(numbers),
            class_labels=labels and [labels[i] for i in numbers],
            num_inference_steps=options.steps,
            guidance_scale=None if options.guidance_scale == 1 else options.guidance_scale,
        )
        generators = [torch.Generator().manual_seed(options.seed + i) for i in numbers]
        images += pipeline(generator=generators, **call).images
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


def _load(options: SampleOptions, torch: Any) -> Any:
    import hfgen

    pipeline = placed(hfgen.HFGenPipeline.from_pretrained(options.pipeline), options.device)
    if options.dtype != "float32":
        pipeline.to(getattr(torch, options.dtype))
    if options.scheduler is not None:
        pipeline.use_scheduler(options.scheduler)
    return pipeline


def _labels(options: SampleOptions, pipeline: Any) -> list[Any] | None:
    """One label an image, the given ones in turn; None without."""
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


def data(argv: list[str]) -> None:
    """`hfgen data <dataset>`: what is in a data set, and a grid of it."""
    command = parser(
        "hfgen data",
        "Print counts, sizes, channels and classes of a data set, and save a grid of its images.",
        "hfgen data digits --preview digits.png",
        DataArgs,
        PreviewOptions,
        config=False,
    )
    command.add_argument("data", nargs="?", type=str, default=None, help="the data set, as for --dataset")
    values = command.parse_args(argv)
    if values.data is not None:
        values.dataset = values.data

    from .data.batches import describe, load_images, preview
    from .options import fill

    data_args, options = fill(values, DataArgs, PreviewOptions)
    images = load_images(data_args)
    facts = dict(describe(images))
    width = max(len(name) for name in facts) + 2
    for name, value in facts.items():
        print(f"{name + ':':{width}} {value}")
    preview(images, Path(options.preview), seed=options.seed)
    print(f"{'preview:':{width}} {options.preview}")


def info(argv: list[str]) -> None:
    """`hfgen info`: versions and hardware, to paste into a bug report."""
    about = "Print versions and hardware, to paste into a bug report."
    parser("hfgen info", about, "hfgen info", config=False).parse_args(argv)
    import torch

    from .saving.hub import versions

    facts = {**versions(), "CPU cores": os.cpu_count(), "threads": torch.get_num_threads()}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts |= {"CUDA": torch.version.cuda or "not built in", "GPUs": ", ".join(gpus) or "none"}
    facts["MPS"] = torch.backends.mps.is_available()
    for name, value in facts.items():
        print(f"{name + ':':16} {value}")


def push(argv: list[str]) -> None:
    """`hfgen push <folder> <repository>`: share a trained pipeline."""
    from .commands.push import main

    main(argv)


def compare(argv: list[str]) -> None:
    """`hfgen compare ...`: families under the same budget on the same data, measured alike."""
    from .commands.compare import main

    main(argv)


def anomaly(argv: list[str]) -> None:
    """`hfgen anomaly fit|score ...`: learn what is normal, judge images."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: hfgen anomaly fit|score [options]\n\nfit: learn from normal images; score: judge images\n")
        print("`hfgen anomaly fit --help` and `hfgen anomaly score --help` list the options.\n\nexample:")
        print("  hfgen anomaly fit --dataset folder_of_normal_images --resolution 32 --output_dir outputs/anomaly")
        return
    step, *rest = argv
    if step not in ("fit", "score"):
        _fail(f"no step {step!r} of anomaly; there are: fit, score")
    if step == "fit":
        return train(["anomaly", *rest])
    from .commands.anomaly_score import main

    main(rest)


def recommend(argv: list[str]) -> None:
    """`hfgen recommend ...`: which model, from measurements."""
    from .compare.recommend import main

    main(argv)


def attention(argv: list[str]) -> None:
    """`hfgen attention <pipeline> ...`: where a network looks."""
    from .commands.attention import main

    main(argv)


def explain(argv: list[str]) -> None:
    """`hfgen explain ...`: families at work on points in the plane, as an animation."""
    from .commands.explain import main

    main(argv)


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "train": ("train a model: hfgen train <family> ...", train),
    "sample": ("draw images from a trained pipeline", sample),
    "evaluate": ("measure a trained pipeline, or a folder of images", evaluate),
    "anomaly": ("find what is not normal: hfgen anomaly fit|score ...", anomaly),
    "compare": ("train families under one budget and measure them alike", compare),
    "recommend": ("pick a model for your wishes, from measurements", recommend),
    "attention": ("draw where a transformer or U-Net looks", attention),
    "explain": ("animate how each family draws, on points in the plane", explain),
    "data": ("look at a data set", data),
    "push": ("share a trained pipeline on the Hub", push),
    "info": ("versions and hardware, for bug reports", info),
}

if __name__ == "__main__":
    main()

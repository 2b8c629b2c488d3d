"""Options: dataclasses whose fields are command-line flags, YAML keys and the saved configuration of a run at once.

A front door lists the dataclasses it takes; `parse` fills them from a YAML file (`--config`) under the command line.
An option says by itself which numbers it may be (`range`), which other options it belongs to (`only_with`) and whether
a resumed run may change it (`resumable`). Names follow diffusers' training scripts. Parsing is jsonargparse's: it reads
YAML below flags, checks types against annotations and refuses unknown keys. This file imports no torch, so that
`--help` is instant.
"""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from jsonargparse import ActionYesNo, Namespace

from .command_line.option_errors import placeholder
from .command_line.option_fields import argument, option, variant
from .command_line.option_rules import NEVER, POSITIVE, SECRETS, AnyOf, OnlyWith, ValueRule, note_of, refuse_idle, rules
from .command_line.parser import CommandParser, ConfigFile, HelpFormatter, ShowAll, brief_sections, program
from .console.endings import REFUSED, catch_signals
from .console.notes import say_error
from .disk.files import write_text
from .disk.yaml_files import yaml_text
from .registry import SAMPLERS
from .utils.ranges import (
    ABOVE_0,
    AT_LEAST_0,
    BATCH_SIZES,
    BELOW_1,
    COUNT,
    COUNT_OR_0,
    SEED,
    SPAN,
    TWO_OR_MORE,
    WORKERS,
    Options,
    Range,
    check_ranges,
    range_of,
)

# fmt: off
__all__ = [
    "NEVER", "POSITIVE", "SECRETS", "AnyOf", "OnlyWith", "Options", "Parsed", "ValueRule", "check_ranges", "range_of",
    "refuse_idle", "rules", "DataArgs", "EFFECTIVE_BATCH", "SampleArgs", "SolverArgs", "TrainArgs", "argument",
    "as_dict", "fill", "option", "parse", "parse_or_exit", "parse_words", "parser", "program", "resumable",
    "save_config", "variant",
]
# fmt: on

ADAMW, MUON = {"optimizer": ("adamw", "muon")}, {"optimizer": ("muon",)}
RMSPROP, AVERAGE = {"optimizer": ("rmsprop",)}, {"use_ema": (True,)}
"""`only_with` of the options of these optimisers, and of moving averages."""

BASICS = (
    *("output_dir", "dataset", "dataset_split", "label_column", "caption_column", "resolution", "max_train_samples"),
    *("max_train_steps", "train_batch_size", "learning_rate", "mixed_precision", "seed"),
    *("resume_from_checkpoint", "dry_run"),
)
"""Options of data and training that everybody sets: the short help begins with them, in this order."""


@dataclasses.dataclass
class DataArgs(Options):
    """Data"""

    COMMON = BASICS

    dataset: str = option(
        "digits", "Hub id, folder of images or parquet files, parquet file, 'digits', 'mnist5k'", None, True, path=True
    )
    dataset_config_name: str | None = option(None, "configuration of a Hub data set")
    dataset_split: str = option("train", "split to use")
    image_column: str | None = option(None, "column with the images; guessed when not given")
    label_column: str | None = option(None, "column with class labels, 'none' to ignore them; guessed when not given")
    resolution: int | None = option(
        None,
        "side in pixels that images are resized and cropped to; default: as they are",
        range=Range(1, 16384, whole=True),
    )
    center_crop: bool = option(True, "crop to a square at the centre; else squeeze")
    channels: Literal[1, 3, 4] | None = option(None, "1 grey, 3 RGB, 4 RGBA; default: as the data, without alpha")
    background: str = option("white", "colour that transparent pixels are flattened on: a name or #rrggbb")
    levels: int | None = option(
        None,
        "value of 16-bit grey images that becomes white, 4095 for 12 bits; default: 65535",
        range=Range(1, 65535, whole=True),
    )
    random_flip: bool = option(False, "mirror images left-right at random")
    max_train_samples: int | None = option(None, "use only the first so many images", range=COUNT)
    cache_dir: str | None = option(None, "folder where the datasets library keeps its files", None, True, path=True)
    cache_budget: float = option(
        4.0,
        "GiB of memory for decoded images; beyond it workers decode",
        {"streaming": (False,)},
        resumable=True,
        range=AT_LEAST_0,
    )
    streaming: bool = option(False, "read a Hub data set without downloading it first")
    dataloader_num_workers: int = option(
        2, "worker processes when images are not cached in memory", resumable=True, range=WORKERS
    )
    skip_corrupt: bool = option(False, "leave out images that can't be decoded, and count them")


@dataclasses.dataclass
class CaptionDataArgs(DataArgs):
    """Data"""

    caption_column: str | None = option(
        None, "column of captions, or key in lines of JSON beside images; guessed when not given"
    )


@dataclasses.dataclass
class TrainArgs(Options):
    """Training"""

    COMMON = BASICS
    learning_rates = MappingProxyType({})  # of the players, by name, whose peak is another than `learning_rate`
    output_dir: str = option(
        "outputs/run", "folder for the pipeline, samples, logs and checkpoints", resumable=True, path=True
    )
    seed: int = option(0, "seed of everything random: initialisation, data order, noise, samples", range=SEED)
    train_batch_size: int = option(128, "items per process and micro-step", range=BATCH_SIZES)
    max_train_steps: int | None = option(None, "optimiser steps; overrides num_epochs", resumable=True, range=COUNT)
    max_train_seconds: float | None = option(
        None, "seconds; steps are a first guess, planned on the way", resumable=True, range=SPAN
    )
    num_epochs: float = option(100.0, "passes over the data", resumable=True, range=SPAN)
    gradient_accumulation_steps: int = option(1, "micro-steps per optimiser step", range=COUNT)
    learning_rate: float = option(1e-3, "peak learning rate of every player", resumable=True, range=ABOVE_0)
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = option(
        "cosine", "learning-rate schedule over max_train_steps", resumable=True
    )
    lr_warmup_steps: int = option(
        100,
        "optimiser steps of linear warm-up",
        only_with={"lr_scheduler": ("constant_with_warmup", "linear", "cosine", "polynomial")},
        resumable=True,
        off=0,
        range=COUNT_OR_0,
    )
    optimizer: Literal["adamw", "muon", "rmsprop"] = option("adamw", "optimiser of every player")
    adam_beta1: float = option(0.9, "AdamW beta1", ADAMW, resumable=True, range=BELOW_1)
    adam_beta2: float = option(0.99, "AdamW beta2", ADAMW, resumable=True, range=BELOW_1)
    adam_weight_decay: float = option(0.0, "AdamW decoupled weight decay", ADAMW, resumable=True, range=AT_LEAST_0)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", ADAMW, resumable=True, range=ABOVE_0)
    muon_ratio: float = option(5.0, "Muon's learning rate / learning_rate", MUON, resumable=True, range=ABOVE_0)
    muon_momentum: float = option(0.95, "Muon's momentum", MUON, resumable=True, range=BELOW_1)
    muon_weight_decay: float = option(0.01, "Muon's weight decay", MUON, resumable=True, range=AT_LEAST_0)
    rmsprop_alpha: float = option(
        0.99, "RMSProp's decay of its average of squares", RMSPROP, resumable=True, range=BELOW_1
    )
    max_grad_norm: float | None = option(
        1.0, "largest gradient norm of a player; null: no clipping", resumable=True, range=ABOVE_0
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = option(None, "autocast; default: accelerate's", None, True)
    use_ema: bool = option(True, "keep an exponential moving average of parameters and buffers, and sample from it")
    ema_max_decay: float = option(0.999, "largest decay of the moving average", AVERAGE, resumable=True, range=BELOW_1)
    ema_inv_gamma: float = option(
        1.0, "decay after n steps is 1 - (1 + n/inv_gamma)^-power", AVERAGE, resumable=True, range=ABOVE_0
    )
    ema_power: float = option(
        0.75, "see ema_inv_gamma; 2/3 for long runs, 3/4 for short ones", AVERAGE, resumable=True, range=ABOVE_0
    )
    gradient_checkpointing: bool = option(False, "recompute activations: slower, less memory", resumable=True)
    channels_last: bool = option(
        False, "channels-last memory layout (helps convolutions on GPUs)", {"sharding": ("none",)}, resumable=True
    )
    torch_compile: bool = option(
        False, "compile the networks; a minute or more before the first step", {"sharding": ("none",)}, resumable=True
    )
    sharding: Literal["none", "fsdp2"] = option(
        "none", "split networks, optimisers and averages over the processes: fsdp2", resumable=True
    )
    allow_tf32: bool = option(True, "TF32 matrix products on NVIDIA GPUs", resumable=True)
    init_from: str | None = option(None, "pipeline whose weights the training begins with: fine-tuning", path=True)
    checkpointing_steps: int = option(
        500, "save a checkpoint every so many steps; 0: only at the end", resumable=True, range=COUNT_OR_0
    )
    checkpoints_total_limit: int | None = option(
        2, "keep only the newest so many checkpoints", resumable=True, range=COUNT
    )
    resume_from_checkpoint: str = option(
        "latest", "'latest', a checkpoint folder, or 'none'", resumable=True, path=True
    )
    sample_steps: int = option(
        500, "save a grid of samples every so many steps; 0: only at the end", resumable=True, range=COUNT_OR_0
    )
    timelapse: bool = option(True, "make timelapse.gif of these grids at the end", resumable=True)
    logging_steps: int = option(10, "write metrics every so many steps", resumable=True, range=COUNT)
    report_to: str = option("tensorboard", "tracker of accelerate (tensorboard, wandb, ...), or 'none'", resumable=True)
    overfit_batch: bool = option(False, "train on the first batch only, as a check: its loss must fall")
    dry_run: bool = option(False, "print parameters, memory and time, train nothing", resumable=True)
    push_to_hub: bool = option(False, "push the finished pipeline to the Hub", resumable=True)
    hub_model_id: str | None = option(
        None, "repository to push to; default: the name of output_dir", {"push_to_hub": (True,)}, resumable=True
    )
    hub_private_repo: bool = option(
        False, "make the repository private", only_with={"push_to_hub": (True,)}, resumable=True
    )
    hub_license: str = option("unknown", "licence of the weights, as the Hub names it: cc-by-4.0, ...", resumable=True)
    push_every: int = option(
        0,
        "also push every so many steps, with the next grid of samples; 0: only at the end",
        only_with={"push_to_hub": (True,), "sample_steps": POSITIVE},
        resumable=True,
        range=COUNT_OR_0,
    )
    hub_token: str | None = option(
        None,
        "token; better: `hf auth login`, or HF_TOKEN in the environment. Never written to disk",
        {"push_to_hub": (True,)},
    )

    def slower(self, factor: float) -> "TrainArgs":
        """Return the options with the learning rate divided by `factor`."""
        return dataclasses.replace(self, learning_rate=self.learning_rate / factor)


@dataclasses.dataclass
class SampleArgs(Options):
    """Samples"""

    COMMON = ("eval_steps",)

    eval_batch_size: int = option(
        80, "images in a grid of samples, at most; with classes, a row each", resumable=True, range=COUNT
    )
    eval_steps: int = option(
        0, "measure every so many steps, keep the best pipeline in best/; 0: no", resumable=True, range=COUNT_OR_0
    )
    eval_metric: Literal["frechet", "kernel_distance", "kid"] = option(
        "frechet",
        "measured then, against training images; kid: kernel_distance",
        {"eval_steps": POSITIVE},
        resumable=True,
    )
    eval_num_samples: int = option(
        1000,
        "images drawn for it, and training images they are compared with",
        only_with={"eval_steps": POSITIVE},
        resumable=True,
        range=TWO_OR_MORE,
    )
    eval_features: str = option(
        "auto",
        "feature networks of the metric, separated by commas: digits, digits-texture, mnist, mnist-texture, cifar10, "
        "cifar10-texture, inception, a Hub id; auto: both for the images' shape",
        path=True,
        only_with={"eval_steps": POSITIVE},
        resumable=True,
    )


@dataclasses.dataclass
class SolverArgs(Options):
    """Sampling by steps"""

    scheduler: str | None = option(None, f"{', '.join(SAMPLERS)}; default: by the path", resumable=True)
    num_inference_steps: int | None = option(
        None, "steps of the scheduler; default: its own", resumable=True, range=COUNT
    )
    guidance_scale: float = option(
        1.0, "classifier-free guidance of samples by class; 1: none", resumable=True, range=AT_LEAST_0
    )


EFFECTIVE_BATCH = ("train_batch_size", "gradient_accumulation_steps", "num_processes")
"""A resumed run may change these as long as their product, the items of an optimiser step, stays the same."""


def parser(prog: str, description: str, example: str, *groups: type, config: bool = True) -> CommandParser:
    """Return a parser whose options are the fields of the dataclasses `groups`; `example` ends its help."""
    fields = {field.name: field for group in groups for field in dataclasses.fields(group)}
    positional = [name for name, field in fields.items() if field.metadata.get("positional")]
    result = CommandParser(
        prog=prog,
        usage=" ".join([prog, *positional, "[options]"]),
        description=description,
        epilog=f"example:\n  {example}\n",
        formatter_class=HelpFormatter,
        default_env=False,
        allow_abbrev=False,
    )
    result.add_argument("--help_all", action=ShowAll, help="show all options and exit")
    if config:
        about = "YAML file of options, or the name of a recipe (hfgen recipes); flags override it"
        result.add_argument("--config", action=ConfigFile, help=about)
    for group in groups:
        note, free = note_of(getattr(group, "ONLY_WITH", {}), fields), getattr(group, "ALWAYS", ())
        note += f"; except --{', --'.join(free)}" if free else ""
        section = result.add_argument_group(f"{group.__doc__} ({note})" if note else group.__doc__)
        for field in dataclasses.fields(group):
            _add(section, field, fields)
    result.fields = fields
    result.brief = brief_sections(result, groups, BASICS)
    return result


def _add(section: Any, field: dataclasses.Field, fields: Mapping[str, dataclasses.Field]) -> None:
    """Add the option of a field to a section of a parser."""
    note = note_of(field.metadata.get("only_with", {}), fields)
    help = f"{field.metadata['help']} ({note})" if note else field.metadata["help"]
    flag, shared = f"--{field.name}", {"default": getattr(field, "default", None), "help": help}
    if field.metadata.get("positional"):
        several = {"type": str, "nargs": "+"} if field.type == list[str] else {"type": field.type}
        section.add_argument(field.name, help=field.metadata["help"], **several)
    elif field.type is bool:
        action = section.add_argument(flag, action=ActionYesNo(no_prefix="no_"), nargs="?", **shared)
        action.metavar = "BOOL"
    else:
        action = section.add_argument(flag, type=field.type, **shared)
        action.range, action.metavar = range_of(field), placeholder(field)


class Parsed(list):
    """Instances of dataclasses of options.

    Args:
        groups: the instances.
        given: names of the options that the command line or its configuration files gave; the others have defaults.
    """

    def __init__(self, groups: Iterable[Any], given: Iterable[str] = ()):
        super().__init__(groups)
        self.given = frozenset(given)

    def given_of(self, group: type) -> dict[str, Any]:
        """Return those options of a dataclass, by name, that were given; the instances may be of its subclasses."""
        values = {field.name: getattr(options, field.name) for options in self for field in dataclasses.fields(options)}
        names = [field.name for field in dataclasses.fields(group) if field.name in self.given]
        return {name: values[name] for name in names}


def parse(command: CommandParser, argv: Sequence[str] | None, *groups: type) -> Parsed:
    """Return an instance of each dataclass in `groups`, filled from `argv` (default: the process's).

    Raises:
        ValueError: as `check_ranges`.
        SystemExit: a value of another type or an unknown option, after a message.
    """
    values, given = parse_words(command, argv), parse_words(command, argv, defaults=False)
    with command.naming_files():
        return Parsed(fill(values, *groups), given.keys())


def parse_words(command: CommandParser, argv: Sequence[str] | None, defaults: bool = True) -> Namespace:
    """Return the values that `argv` (default: the process's) gives the options of a command, and their defaults.

    A token among the arguments of the process ends it: see `CommandParser.refuse_tokens`.
    """
    if argv is None:
        argv = sys.argv[1:]
        command.refuse_tokens(argv)
    return command.parse_args(command.words(argv), defaults=defaults)


def parse_or_exit(command: CommandParser, argv: Sequence[str] | None, *groups: type) -> Parsed:
    """Return what `parse` does; a number out of its range, too, ends the process with a line and status 2. Front doors
    call this: no other command catches their errors yet."""
    try:
        values = parse(command, argv, *groups)
    except ValueError as error:
        say_error(error)
        sys.exit(REFUSED)
    catch_signals()  # until the run ends; torch is imported meanwhile
    return values


def fill(values: Namespace, *groups: type) -> list[Any]:
    """Return an instance of each dataclass in `groups`, filled from parsed values.

    Raises:
        ValueError: as `check_ranges`.
    """
    filled = [group(**{f.name: values[f.name] for f in dataclasses.fields(group)}) for group in groups]
    check_ranges(*filled)  # for groups that do not inherit from Options
    return filled


def as_dict(*groups: Any) -> dict[str, Any]:
    """Return the options of these dataclasses as one flat dictionary, without secrets."""
    merged = {key: value for group in groups for key, value in dataclasses.asdict(group).items()}
    return {key: value for key, value in merged.items() if key not in SECRETS}


def save_config(path: Path, options: Mapping[str, Any]) -> None:
    """Write options as YAML; the same front door with `--config` and this file repeats the run."""
    write_text(path, yaml_text(dict(options)))


def resumable(*groups: Any) -> frozenset[str]:
    """Return the names of the options of these dataclasses (or instances of them) that a resumed run may change."""
    fields = [field for group in groups for field in dataclasses.fields(group)]
    return frozenset(field.name for field in fields if field.metadata.get("resumable"))

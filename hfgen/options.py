"""Options: dataclasses whose fields are command-line flags, YAML keys and the saved configuration of a run at once.

A front door lists the dataclasses it takes; `parse` fills them from a YAML file (`--config`) under the command line.
An option says by itself which other options it belongs to (`only_with`) and whether a resumed run may change it
(`resumable`). Names follow diffusers' training scripts. Parsing is jsonargparse's: it reads YAML below flags, checks
types against annotations and refuses unknown keys. This file imports no torch, so that `--help` is instant.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

from .registry import SAMPLERS


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition on the value of an option, with its text for help and messages ("a number above 0")."""

    text: str
    holds: Callable[[Any], bool]


POSITIVE = Condition("a number above 0", lambda value: value is not None and value > 0)


@dataclasses.dataclass(frozen=True)
class AnyOf:
    """The condition that at least one of the options `names` is in use.

    `holds` decides from a namespace with the values of all options; by default it asks for a value that is true.
    Without names the condition never holds: the option has no effect in its family.
    """

    names: tuple[str, ...]
    holds: Callable[[Any], bool] | None = None

    def met(self, options: Any) -> bool:
        """Return whether the condition holds for these values."""
        return any(getattr(options, name) for name in self.names) if self.holds is None else self.holds(options)


NEVER = AnyOf(())
"""`only_with` of a shared option that a family makes no use of: any value but the default is refused."""

OnlyWith = Mapping[str, tuple | Condition] | AnyOf


def option(default: Any, help: str, only_with: OnlyWith | None = None, resumable: bool = False) -> Any:
    """Return a dataclass field that is a command-line option.

    Args:
        default: its default value.
        help: its line in `--help`.
        only_with: the options that it belongs to. A mapping {other option: values, or a `Condition`, that the other one
            must have} holds if all entries hold; `AnyOf` holds if one of several options is in use. Where it does not
            hold, `refuse_idle` refuses any value but the default.
        resumable: whether a resumed run may have another value; a difference is reported then, else refused.
    """
    metadata = {"help": help, "only_with": {} if only_with is None else only_with, "resumable": resumable}
    return dataclasses.field(default=default, metadata=metadata)


def variant(group: type, name: str, default: Any, help: str | None = None, **metadata: Any) -> Any:
    """Return the option `name` of the dataclass `group` for a subclass, with another default, and help if given.

    `only_with` and `resumable` stay what they are unless `metadata` replaces them.
    """
    base = group.__dataclass_fields__[name].metadata
    return option(default, **{**base, **({} if help is None else {"help": help}), **metadata})


def argument(help: str) -> Any:
    """Return a dataclass field that is a positional argument of a command."""
    return dataclasses.field(metadata={"help": help, "positional": True})


@dataclasses.dataclass
class DataArgs:
    """Data"""

    dataset: str = option(
        "digits", "Hub id, folder of images or parquet files, parquet file, or 'digits' (built in)", resumable=True
    )
    dataset_config_name: str | None = option(None, "configuration of a Hub data set")
    dataset_split: str = option("train", "split to use")
    image_column: str | None = option(None, "column with the images; guessed when not given")
    label_column: str | None = option(None, "column with class labels, 'none' to ignore them; guessed when not given")
    resolution: int | None = option(None, "side in pixels that images are resized and cropped to; default: as they are")
    center_crop: bool = option(True, "crop to a square at the centre; else squeeze")
    channels: Literal[1, 3, 4] | None = option(
        None, "1 grey, 3 RGB, 4 RGBA; default: what the data hold, alpha flattened"
    )
    background: str = option("white", "colour that transparent pixels are flattened on: a name or #rrggbb")
    random_flip: bool = option(False, "mirror images left-right at random")
    max_train_samples: int | None = option(None, "use only the first so many images")
    cache_dir: str | None = option(None, "where datasets keeps its files", resumable=True)
    cache_budget: float = option(
        4.0, "GiB of memory for decoded images; larger data sets are decoded by workers", resumable=True
    )
    streaming: bool = option(False, "read a Hub data set without downloading it first")
    dataloader_num_workers: int = option(2, "worker processes when images are not cached in memory", resumable=True)
    skip_corrupt: bool = option(False, "leave out images that can't be decoded, and count them")


@dataclasses.dataclass
class TrainArgs:
    """Training"""

    output_dir: str = option("outputs/run", "folder for the pipeline, samples, logs and checkpoints", resumable=True)
    seed: int = option(0, "seed of everything random: initialisation, data order, noise, samples")
    train_batch_size: int = option(128, "images a process and micro-step")
    max_train_steps: int | None = option(None, "optimiser steps; overrides num_epochs", resumable=True)
    num_epochs: float = option(100.0, "passes over the data", resumable=True)
    gradient_accumulation_steps: int = option(1, "micro-steps an optimiser step")
    learning_rate: float = option(1e-3, "peak learning rate of every player", resumable=True)
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = option(
        "cosine", "learning-rate schedule over max_train_steps", resumable=True
    )
    lr_warmup_steps: int = option(100, "optimiser steps of linear warm-up", resumable=True)
    adam_beta1: float = option(0.9, "AdamW beta1", resumable=True)
    adam_beta2: float = option(0.99, "AdamW beta2", resumable=True)
    adam_weight_decay: float = option(0.0, "AdamW decoupled weight decay", resumable=True)
    adam_epsilon: float = option(1e-8, "AdamW epsilon", resumable=True)
    max_grad_norm: float | None = option(
        1.0, "gradients of each player are clipped to this norm; null: not clipped", resumable=True
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "autocast dtype of the networks", resumable=True)
    use_ema: bool = option(True, "keep an exponential moving average of parameters and buffers, and sample from it")
    ema_max_decay: float = option(0.999, "largest decay of the moving average", resumable=True)
    ema_inv_gamma: float = option(1.0, "decay after n steps is 1 - (1 + n/inv_gamma)^-power", resumable=True)
    ema_power: float = option(0.75, "see ema_inv_gamma; 2/3 for long runs, 3/4 for short ones", resumable=True)
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass to save memory", resumable=True
    )
    channels_last: bool = option(False, "channels-last memory layout (helps convolutions on GPUs)", resumable=True)
    torch_compile: bool = option(False, "compile the networks; a minute or more before the first step", resumable=True)
    allow_tf32: bool = option(True, "TF32 matrix products on NVIDIA GPUs", resumable=True)
    checkpointing_steps: int = option(500, "save a checkpoint every so many steps; 0: only at the end", resumable=True)
    checkpoints_total_limit: int | None = option(2, "keep only the newest so many checkpoints", resumable=True)
    resume_from_checkpoint: str = option(
        "latest", "'latest', a checkpoint folder, or 'none' (refuses a used output_dir)", resumable=True
    )
    sample_steps: int = option(500, "save a grid of samples every so many steps; 0: only at the end", resumable=True)
    logging_steps: int = option(10, "write metrics every so many steps", resumable=True)
    report_to: str = option("tensorboard", "tracker of accelerate (tensorboard, wandb, ...), or 'none'", resumable=True)
    overfit_batch: bool = option(
        False, "train on the first batch only, over and over: its loss must fall, or something is wrong"
    )
    dry_run: bool = option(False, "print parameters, memory and time, train nothing", resumable=True)
    push_to_hub: bool = option(False, "push the finished pipeline to the Hub", resumable=True)
    hub_model_id: str | None = option(None, "repository to push to; default: the name of output_dir", resumable=True)
    hub_private_repo: bool = option(False, "make the repository private", resumable=True)
    hub_license: str = option(
        "unknown", "licence of the weights, for the card: as the Hub names it, e.g. cc-by-4.0", resumable=True
    )
    push_every: int = option(
        0, "also push every so many steps, with the next grid of samples; 0: only at the end", resumable=True
    )
    hub_token: str | None = option(None, "token; default: the one hf auth login saved. Never written to disk")


@dataclasses.dataclass
class SampleArgs:
    """Samples"""

    eval_batch_size: int = option(
        80, "images in a grid of samples, at most; a row a class where there are classes", resumable=True
    )
    eval_steps: int = option(
        0, "measure every so many steps, and keep the best pipeline in output_dir/best; 0: never", resumable=True
    )
    eval_metric: Literal["frechet", "kid"] = option(
        "frechet", "what is measured then, against training images", resumable=True
    )
    eval_num_samples: int = option(
        1000, "images drawn then, and training images they are compared with", resumable=True
    )
    eval_features: str = option("auto", "feature network: digits, mnist, cifar10, inception, a Hub id", resumable=True)


@dataclasses.dataclass
class SolverArgs:
    """Sampling by steps"""

    scheduler: str | None = option(
        None, f"what draws samples: {', '.join(SAMPLERS)}; default: what suits the path", resumable=True
    )
    num_inference_steps: int | None = option(None, "steps of the scheduler; default: its own", resumable=True)
    guidance_scale: float = option(
        1.0, "classifier-free guidance of class-conditional samples; 1: none", resumable=True
    )


SECRETS = ("hub_token",)
"""Options that are never saved."""

EFFECTIVE_BATCH = ("train_batch_size", "gradient_accumulation_steps", "num_processes")
"""Their product is the images of an optimiser step: how it is split is free."""


class _Help(DefaultHelpFormatter):
    """Keeps the example's lines as they are, to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


class _Parser(ArgumentParser):
    """jsonargparse's parser, with the nearest known name in the message about an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Print the message with its hint and exit with status 2."""
        known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        unknown = re.search(r"unrecognized arguments: (?:.* )?(--[^\s=]+)|Option '([^']+)' is not accepted", message)
        if unknown:
            name = unknown[1] or f"--{unknown[2]}"
            near = difflib.get_close_matches(name, known, n=1)
            message += f"\n  did you mean {near[0] if unknown[1] else near[0][2:]}?" if near else ""
        sys.stderr.write(f"error: {message}\nAll options: {self.prog} --help\n")
        sys.exit(2)


def parser(prog: str, description: str, example: str, *groups: type, config: bool = True) -> ArgumentParser:
    """A parser whose options are the fields of the dataclasses `groups`; `example` ends its help."""
    result = _Parser(
        prog=prog,
        description=description,
        epilog=f"example:\n  {example}\n",
        formatter_class=_Help,
        default_env=False,
        allow_abbrev=False,
    )
    if config:
        result.add_argument("--config", action="config", help="YAML file with any of these options; flags override it")
    for group in groups:
        section = result.add_argument_group(group.__doc__)
        for field in dataclasses.fields(group):
            flag, shared = f"--{field.name}", {"default": field.default, "help": field.metadata["help"]}
            if field.metadata.get("positional"):
                section.add_argument(field.name, type=field.type, help=field.metadata["help"])
            elif field.type is bool:
                action = section.add_argument(flag, action=ActionYesNo(no_prefix="no_"), nargs="?", **shared)
                action.metavar = "BOOL"
            else:
                section.add_argument(flag, type=field.type, **shared)
    return result


def parse(command: ArgumentParser, argv: Sequence[str] | None, *groups: type) -> list[Any]:
    """The dataclasses `groups`, filled from `argv` (default: the process's)."""
    return fill(command.parse_args(_files_first(sys.argv[1:] if argv is None else argv)), *groups)


def _files_first(words: Sequence[str]) -> list[str]:
    """The words with each `--config FILE` before all flags, which override it wherever they stand."""
    after = [i > 0 and words[i - 1] == "--config" for i in range(len(words))]
    early = [word == "--config" or word.startswith("--config=") or after[i] for i, word in enumerate(words)]
    return [word for asked in (True, False) for word, is_early in zip(words, early, strict=True) if is_early is asked]


def fill(values: Namespace, *groups: type) -> list[Any]:
    """One instance of each dataclass from parsed values."""
    return [group(**{f.name: values[f.name] for f in dataclasses.fields(group)}) for group in groups]


def as_dict(*args: Any) -> dict[str, Any]:
    """All options of these dataclasses in one flat dictionary, secrets left out."""
    merged = {key: value for group in args for key, value in dataclasses.asdict(group).items()}
    return {key: value for key, value in merged.items() if key not in SECRETS}


def save_config(path: Path, options: Mapping[str, Any]) -> None:
    """Write resolved options as YAML; the same front door with `--config` on this file repeats the run."""
    import yaml

    path.write_text(yaml.safe_dump(dict(options), sort_keys=False))


def refuse_idle(*groups: Any) -> None:
    """Refuse options that have another value than their default and no effect.

    Args:
        groups: instances of all dataclasses of options of a run.

    Raises:
        ValueError: names the option, the other option that leaves it without effect, and the fix.
    """
    fields = {field.name: field for group in groups for field in dataclasses.fields(group)}
    values = SimpleNamespace(**{name: getattr(g, name) for g in groups for name in g.__dataclass_fields__})
    for name, field in fields.items():
        value = getattr(values, name)
        if value != field.default and (reason := _idle(field, values, fields)):
            raise ValueError(f"--{name} {value} does nothing {reason}")


def _idle(field: dataclasses.Field, values: Any, fields: Mapping[str, dataclasses.Field]) -> str | None:
    """Return why an option has no effect among these values, and the fix; None if it has one."""
    rule = field.metadata.get("only_with", {})
    if isinstance(rule, AnyOf):
        if rule.met(values):
            return None
        if not rule.names:
            return "here. Leave it out."
        return f"without {_flags(rule.names)}. Leave it out, or give one of them."
    for other, wanted in rule.items():
        present = getattr(values, other)
        if not (wanted.holds(present) if isinstance(wanted, Condition) else present in wanted):
            return f"with --{other} {present}, only {_words(wanted, fields[other])}. Leave it out, or change the other."
    return None


def _words(wanted: tuple | Condition, other: dataclasses.Field) -> str:
    """Return the values that another option must have, of those that it can have: "with elbo or iwae"."""
    if isinstance(wanted, Condition):
        return f"with {wanted.text}"
    possible = get_args(other.type) if get_origin(other.type) is Literal else wanted
    return "without it" if wanted == (None,) else f"with {' or '.join(str(v) for v in wanted if v in possible)}"


def _flags(names: Sequence[str]) -> str:
    """Return "--a, --b or --c"."""
    *first, last = [f"--{name}" for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def resumable(*groups: Any) -> frozenset[str]:
    """Return the names of the options of these dataclasses (or instances of them) that a resumed run may change."""
    fields = [field for group in groups for field in dataclasses.fields(group)]
    return frozenset(field.name for field in fields if field.metadata.get("resumable"))

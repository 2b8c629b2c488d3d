"""Options: dataclasses whose fields are command-line flags, YAML keys and the saved configuration of a run at once.

A front door lists the dataclasses it takes; `parse` fills them from a YAML file (`--config`) under the command line.
Names follow diffusers' training scripts. Parsing is jsonargparse's: it reads YAML below flags, checks types against
annotations and refuses unknown keys. This file imports no torch, so that `--help` is instant.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

from .registry import SAMPLERS


def option(default: Any, help: str) -> Any:
    """A dataclass field that is a command-line option with this default and help."""
    return dataclasses.field(default=default, metadata={"help": help})


def argument(help: str) -> Any:
    """A dataclass field that is a positional argument of a command."""
    return dataclasses.field(metadata={"help": help, "positional": True})


@dataclasses.dataclass
class DataArgs:
    """Data"""

    dataset: str = option("digits", "Hub id, folder of images or parquet files, parquet file, or 'digits' (built in)")
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
    cache_dir: str | None = option(None, "where datasets keeps its files")
    cache_budget: float = option(4.0, "GiB of memory for decoded images; larger data sets are decoded by workers")
    streaming: bool = option(False, "read a Hub data set without downloading it first")
    dataloader_num_workers: int = option(2, "worker processes when images are not cached in memory")
    skip_corrupt: bool = option(False, "leave out images that can't be decoded, and count them")


@dataclasses.dataclass
class TrainArgs:
    """Training"""

    output_dir: str = option("outputs/run", "folder for the pipeline, samples, logs and checkpoints")
    seed: int = option(0, "seed of everything random: initialisation, data order, noise, samples")
    train_batch_size: int = option(128, "images a process and micro-step")
    max_train_steps: int | None = option(None, "optimiser steps; overrides num_epochs")
    num_epochs: float = option(100.0, "passes over the data")
    gradient_accumulation_steps: int = option(1, "micro-steps an optimiser step")
    learning_rate: float = option(1e-3, "peak learning rate of every player")
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = option(
        "cosine", "learning-rate schedule over max_train_steps"
    )
    lr_warmup_steps: int = option(100, "optimiser steps of linear warm-up")
    adam_beta1: float = option(0.9, "AdamW beta1")
    adam_beta2: float = option(0.99, "AdamW beta2")
    adam_weight_decay: float = option(0.0, "AdamW decoupled weight decay")
    adam_epsilon: float = option(1e-8, "AdamW epsilon")
    max_grad_norm: float | None = option(1.0, "gradients of each player are clipped to this norm; null: not clipped")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "autocast dtype of the networks")
    use_ema: bool = option(True, "keep an exponential moving average of parameters and buffers, and sample from it")
    ema_max_decay: float = option(0.999, "largest decay of the moving average")
    ema_inv_gamma: float = option(1.0, "decay after n steps is 1 - (1 + n/inv_gamma)^-power")
    ema_power: float = option(0.75, "see ema_inv_gamma; 2/3 for long runs, 3/4 for short ones")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass to save memory")
    channels_last: bool = option(False, "channels-last memory layout (helps convolutions on GPUs)")
    torch_compile: bool = option(False, "compile the networks; a minute or more before the first step")
    allow_tf32: bool = option(True, "TF32 matrix products on NVIDIA GPUs")
    checkpointing_steps: int = option(500, "save a checkpoint every so many steps; 0: only at the end")
    checkpoints_total_limit: int | None = option(2, "keep only the newest so many checkpoints")
    resume_from_checkpoint: str = option(
        "latest", "'latest', a checkpoint folder, or 'none' (refuses a used output_dir)"
    )
    sample_steps: int = option(500, "save a grid of samples every so many steps; 0: only at the end")
    logging_steps: int = option(10, "write metrics every so many steps")
    report_to: str = option("tensorboard", "tracker of accelerate (tensorboard, wandb, ...), or 'none'")
    overfit_batch: bool = option(
        False, "train on the first batch only, over and over: its loss must fall, or something is wrong"
    )
    dry_run: bool = option(False, "print parameters, memory and time, train nothing")
    push_to_hub: bool = option(False, "push the finished pipeline to the Hub")
    hub_model_id: str | None = option(None, "repository to push to; default: the name of output_dir")
    hub_private_repo: bool = option(False, "make the repository private")
    hub_license: str = option("unknown", "licence of the weights, for the card: as the Hub names it, e.g. cc-by-4.0")
    push_every: int = option(0, "also push every so many steps, with the next grid of samples; 0: only at the end")
    hub_token: str | None = option(None, "token; default: the one hf auth login saved. Never written to disk")


@dataclasses.dataclass
class SampleArgs:
    """Samples"""

    eval_batch_size: int = option(80, "images in a grid of samples, at most; a row a class where there are classes")
    eval_steps: int = option(0, "measure every so many steps, and keep the best pipeline in output_dir/best; 0: never")
    eval_metric: Literal["frechet", "kid"] = option("frechet", "what is measured then, against training images")
    eval_num_samples: int = option(1000, "images drawn then, and training images they are compared with")
    eval_features: str = option("auto", "feature network: digits, mnist, cifar10, inception, a Hub id")


@dataclasses.dataclass
class SolverArgs:
    """Sampling by steps"""

    scheduler: str | None = option(None, f"what draws samples: {', '.join(SAMPLERS)}; default: what suits the path")
    num_inference_steps: int | None = option(None, "steps of the scheduler; default: its own")
    guidance_scale: float = option(1.0, "classifier-free guidance of class-conditional samples; 1: none")


SECRETS = ("hub_token",)
"""Options that are never saved."""

EFFECTIVE_BATCH = ("train_batch_size", "gradient_accumulation_steps", "num_processes")
"""Their product is the images of an optimiser step: how it is split is free."""

MAY_CHANGE = (
    # what the data's fingerprint says better, and how they are read
    *("dataset", "cache_dir", "cache_budget", "dataloader_num_workers", "pipeline", "pair_dir"),
    # how long, and how the optimiser moves from here on
    *("max_train_steps", "num_epochs", "learning_rate", "lr_scheduler", "lr_warmup_steps"),
    *("adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm"),
    *("ema_max_decay", "ema_inv_gamma", "ema_power"),
    # the same numbers but for rounding
    *("mixed_precision", "gradient_checkpointing", "channels_last", "torch_compile", "allow_tf32", "versions"),
    # what is saved, shown and pushed
    *("output_dir", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint"),
    *("sample_steps", "logging_steps", "report_to", "dry_run"),
    *("scheduler", "num_inference_steps", "guidance_scale", "eval_batch_size", "features", "eval_samples"),
    *("eval_steps", "eval_metric", "eval_num_samples", "eval_features"),
    *("eval_split", "eval_images", "likelihood_samples", "mixture_components"),
    *("health_steps", "health_samples", "on_collapse"),
    *("score", "false_alarm_rate", "density_components", "score_samples"),
    *("push_to_hub", "push_every", "hub_model_id", "hub_private_repo", "hub_license"),
)
"""Options that a resumed run may have others of, and says so; a difference in any other would make it another run."""


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


def refuse_idle(belongs: Mapping[str, tuple[str, tuple]], *groups: Any) -> None:
    """Refuse options that would change nothing.

    Args:
        belongs: option -> another one and the values of it with which the first means something.
        groups: dataclasses of options, which have all of these.

    Raises:
        ValueError: an option that was given, and the one it would belong to.
    """
    values = {
        field.name: (getattr(group, field.name), field) for group in groups for field in dataclasses.fields(group)
    }
    for name, (other, known) in belongs.items():
        (value, field), present = values[name], values[other][0]
        if value != field.default and present not in known:
            raise ValueError(
                f"--{name} {value} does nothing with --{other} {present}, only with {' or '.join(map(str, known))}. "
                "Leave it out, or change the other."
            )

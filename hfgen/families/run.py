"""What every front door does before and after training."""

import atexit
import contextlib
import dataclasses
import itertools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

import hfgen

from ..data.batches import Batches
from ..data.images import ImageData, load_images
from ..options import DataArgs, TrainArgs, as_dict, save_config
from ..saving import hub
from ..trainer import checkpoint
from ..trainer.ema import EMA
from ..trainer.log import DivergenceError
from ..trainer.loop import Result, steps_in, train


def start(args: TrainArgs) -> Accelerator:
    """The accelerator for these options, and the state of the process that they ask for."""
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    trackers = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    if args.report_to not in ("none", *trackers):
        raise ValueError(f"report_to={args.report_to!r} is not installed. There are: none, {', '.join(trackers)}.")
    if args.push_every < 0 or (args.push_every and not (args.push_to_hub and args.sample_steps)):
        raise ValueError(f"push_every={args.push_every} needs --push_to_hub, and --sample_steps to push with.")
    if args.push_to_hub and not args.dry_run:
        _check_login(args)
    if args.use_ema:
        EMA(nn.Identity(), args.ema_max_decay, args.ema_inv_gamma, args.ema_power)  # refuses impossible options
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" or args.dry_run else args.report_to,
        project_dir=os.path.join(args.output_dir, "logs"),
        dynamo_backend="inductor" if args.torch_compile else "no",
        # Buffers are each process's own: BatchNorm's must not be changed between two passes of one turn.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if args.use_ema and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"use_ema keeps whole copies of the networks, which {accelerator.distributed_type.value} shards. Add "
            "--no_use_ema, or launch without sharding."
        )
    torch.manual_seed(args.seed)  # networks start the same in every process
    atexit.register(_leave)
    return accelerator


def _leave() -> None:
    """End the group of processes before the interpreter ends, whose threads may abort this process otherwise."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turns an error about options, data or a folder that can't be had into one line and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(_message(error))


def _message(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def load(args: DataArgs, accelerator: Accelerator) -> ImageData:
    """The images, read by the main process first so that the others find its cache."""
    with accelerator.main_process_first():
        return load_images(args)


@dataclasses.dataclass
class Repeated:
    """The first `count` micro-batches of `batches` over and over, in a run of the same length."""

    batches: Batches
    count: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "batches_per_epoch", "fingerprint"):
            setattr(self, name, getattr(self.batches, name))

    def iterate(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Micro-batches from index `start` on, for ever."""
        first = list(itertools.islice(self.batches.iterate(0), self.count))
        return (first[number % self.count] for number in itertools.count(start))


def batches(data: ImageData, data_args: DataArgs, args: TrainArgs, accelerator: Accelerator) -> Batches | Repeated:
    """The training batches of this process; with `--overfit_batch` those of the first optimiser step for ever."""
    all_of_them = Batches(
        data,
        args.train_batch_size,
        args.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
        num_workers=data_args.dataloader_num_workers,
    )
    return Repeated(all_of_them, args.gradient_accumulation_steps) if args.overfit_batch else all_of_them


def classes_of(data: ImageData, wanted: bool) -> int | None:
    """How many classes the network is told of; None without. Raises ValueError where there are none to tell of."""
    if wanted and data.num_classes is None:
        raise ValueError(f"{data.name} has no labels for --class_conditional; name them: --label_column.")
    return data.num_classes if wanted else None


def fit(
    networks: Mapping[str, nn.Module],
    objective: Any,
    loader: Any,
    args: TrainArgs,
    accelerator: Accelerator,
    preview: Any,
    config: Mapping[str, Any],
    resumable: Collection[str] = (),
) -> Result | None:
    """Train with a monitor (`TrainingMonitor`), or estimate with `--dry_run`. Returns None if the run was interrupted
    or only estimated: then there is nothing to finish."""
    if args.dry_run:
        estimate(networks, objective, loader, args, accelerator)
        return None
    about = {"data_fingerprint": loader.fingerprint, "versions": {**hub.versions(), **revision()}}
    args = dataclasses.replace(args, sample_steps=preview.every)
    try:
        result = train(
            *(networks, objective, loader, args, accelerator, preview),
            config={**config, **about},
            begin=lambda: save_options(Path(args.output_dir), config),
            resumable=resumable,
        )
    except (checkpoint.CheckpointError, DivergenceError) as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(
            f"error: out of memory ({error}).\nLower --train_batch_size {args.train_batch_size} to "
            f"{max(1, args.train_batch_size // 2)} with --gradient_accumulation_steps "
            f"{2 * args.gradient_accumulation_steps} (the same result), or add --gradient_checkpointing or "
            "--mixed_precision bf16."
        )
    if result.finished and accelerator.is_main_process:
        preview.last(result.networks, result.step)
    return result if result.finished else None


def estimate(
    networks: Mapping[str, nn.Module],
    objective: Any,
    loader: Any,
    args: TrainArgs,
    accelerator: Accelerator,
) -> None:
    """Print parameters, memory and time of the run that the options describe, from a few real steps thrown away."""
    total = steps_in(args, loader, accelerator.num_processes)
    with tempfile.TemporaryDirectory() as folder:
        few = dataclasses.replace(args, max_train_steps=4, output_dir=folder, logging_steps=2, sample_steps=0)
        result = train(networks, objective, loader, few, accelerator)
    images = total * args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    weights = sum(
        p.numel() * p.element_size() for n in dict.fromkeys(objective.players) for p in networks[n].parameters()
    )
    copies = 4 + args.use_ema  # weights, gradients, two moments, average
    lines = {
        **{f"{name} parameters": f"{parameters(network):,}" for name, network in networks.items()},
        "optimiser steps": f"{total:,} ({images:,} images)",
        "speed": f"{result.items_per_second:.0f} images/s (after warm-up, {hardware()})",
        "time": f"{images / result.items_per_second / 60:.1f} minutes, samples and checkpoints not counted",
        "memory, weights and optimiser": f"{copies * weights / 2**20:.0f} MiB",
        "memory, peak of the process": f"{peak_memory() / 2**20:.0f} MiB",
    }
    for name, value in lines.items():
        accelerator.print(f"{name + ':':32} {value}")


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def peak_memory() -> int:
    """Bytes: the most this process has held on the GPU, or in memory where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def hardware() -> str:
    """The device, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def write_metrics(
    output: Path,
    result: Result,
    args: TrainArgs,
    networks: Mapping[str, nn.Module],
    images: int,
    measured: Mapping[str, Any],
) -> dict:
    """Write metrics.json: what the run cost, where its losses ended and what was measured; returns it."""
    figures = {
        "steps": result.step,
        "images_seen": images,
        "training_seconds": round(result.seconds, 1),
        "images_per_second": round(images / max(result.seconds, 1e-9), 1),
        **{f"final_{name}": value for name, value in result.logs.items() if "loss" in name},
        "measured": dict(measured),
        "parameters": {name: parameters(network) for name, network in networks.items()},
        "peak_memory_mib": round(peak_memory() / 2**20),
        "hardware": hardware(),
        "mixed_precision": args.mixed_precision,
        "ema": args.use_ema,
        "versions": hub.versions(),
    }
    hub.write_json(output / "metrics.json", figures)
    return figures


def push(args: TrainArgs) -> None:
    """Push the finished folder if the options ask for it. A failure leaves the folder, and says how to try again."""
    if not args.push_to_hub:
        return
    try:
        print("Pushed to", hub.push(Path(args.output_dir), args.hub_model_id, args.hub_private_repo, args.hub_token))
    except Exception as error:  # whatever the network did, the model is saved
        print(f"warning: the push failed ({error}). The pipeline is in {args.output_dir}.", file=sys.stderr)


def _check_login(args: TrainArgs) -> None:
    from huggingface_hub import get_token

    if not (args.hub_token or get_token()):
        sys.exit("error: --push_to_hub needs a token. Log in with `hf auth login`, or give --hub_token.")


def keep_config(output: Path, args: TrainArgs, accelerator: Accelerator, *groups: Any) -> dict[str, Any]:
    """The resolved options with what the launcher decided, for `fit` to keep once the run is sure to begin.

    A folder that can't take the run is refused here, before the network is compiled or moved.
    """
    if not args.dry_run:
        try:
            checkpoint.find(output, args.resume_from_checkpoint)
        except checkpoint.CheckpointError as error:
            sys.exit(f"error: {error}")
    return {**as_dict(*groups), "num_processes": accelerator.num_processes}


def save_options(output: Path, config: Mapping[str, Any]) -> None:
    """Write config.yaml, with which the same front door repeats the run: all options, not what the launcher decided."""
    output.mkdir(parents=True, exist_ok=True)
    save_config(output / "config.yaml", {name: value for name, value in config.items() if name != "num_processes"})


def revision() -> dict[str, str]:
    """{"revision": the git commit of hfgen's checkout, "+" for changes since}; {} where it was installed otherwise."""
    root = Path(hfgen.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return {}
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return {"revision": subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}
    except (OSError, subprocess.CalledProcessError):  # no git here, or none that may read it
        return {}

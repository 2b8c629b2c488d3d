"""The accelerator of a run, made from its options; what stops it from starting is said in a line."""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs

from ..command_line.launch_errors import in_a_line
from ..console.notes import tell
from ..options import TrainArgs
from ..trainer.loop import ENGINES
from ..utils.processes import leave_group_at_exit
from ..utils.seeds import seed_initialisation

PRECISIONS = ("no", "bf16", "fp16")


class RunError(RuntimeError):
    """A training ended without a result; the message says why, and what to do."""


def precision_of(args: TrainArgs) -> str:
    """Return the precision of a run: the option's, else that of accelerate's launcher or configuration, else "no"."""
    return args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"


def start(args: TrainArgs) -> Accelerator:
    """Return the accelerator for these options, and set the state of the process that they describe.

    Raises:
        ValueError: a tracker that is not installed, or options that do not go together.
    """
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    trackers = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    if args.report_to not in ("none", *trackers):
        raise ValueError(f"report_to={args.report_to!r} is not installed. There are: none, {', '.join(trackers)}.")
    if args.push_to_hub and not args.dry_run:
        _check_login(args)
    accelerator = _accelerator(args)
    ENGINES[args.sharding](accelerator)  # refuses processes that it can't train on
    seed_initialisation(args.seed)  # networks start the same in every process
    leave_group_at_exit()
    return accelerator


def _accelerator(args: TrainArgs) -> Accelerator:
    """Return the accelerator; an error of accelerate or torch becomes a ValueError of one line."""
    if args.mixed_precision not in PRECISIONS:
        raise ValueError(
            f"mixed_precision={args.mixed_precision!r} of accelerate's launcher or configuration is none of "
            f"{', '.join(PRECISIONS)}. Correct it there, or give --mixed_precision."
        )
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
        tell("accelerate launch starts one process on CPUs, however many are asked for. Use torchrun instead.")
    try:
        return Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=None if args.report_to == "none" or args.dry_run else args.report_to,
            project_dir=os.path.join(args.output_dir, "logs"),
            dynamo_backend="inductor" if args.torch_compile else "no",
            # Buffers are each process's own: BatchNorm's must not be changed between two passes of one turn.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except (RuntimeError, ImportError, AssertionError, ValueError) as error:
        raise ValueError(f"accelerate can't start here: {in_a_line(error)}") from error


def _check_login(args: TrainArgs) -> None:
    from huggingface_hub import get_token

    if not (args.hub_token or get_token()):
        raise RunError("--push_to_hub needs a token. Log in with `hf auth login`, or set HF_TOKEN.")


def prepare_data(data: Any, accelerator: Accelerator) -> None:
    """Let data that are computed, such as latents, be computed: nothing refuses the run any more."""
    if hasattr(data, "prepare"):
        data.prepare(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)

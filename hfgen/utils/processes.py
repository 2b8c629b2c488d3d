"""The group of processes of a training, and how a process leaves it."""

import atexit
import time

import torch

RELEASE_SECONDS = 0.3
"""How long a process waits at its end for the threads of its group, which release the last tensors."""


def leave_group_at_exit() -> None:
    """End the group of processes before the interpreter ends, whose threads may abort this process otherwise.

    The threads live on while a wrapped network holds the group. One that still releases the tensors of the last
    collective when the interpreter ends is stopped in the middle ("terminate called without an active exception"), so
    it gets the time to finish. A second call changes nothing.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(RELEASE_SECONDS)

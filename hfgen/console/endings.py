"""How a command ends: in one line, and with a status that scripts can trust."""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

from .notes import own_console, say_error
from .watching import in_main_process

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, `kill` and schedulers of clusters, and a terminal that closes (not on Windows)."""

FAILED, REFUSED = 1, 2
"""Statuses of a command that failed at work, and of one that refused its options, data or files."""

_handlers: dict[int, Any] = {}
"""The handlers before `catch_signals`, by number."""


def status_of(number: int) -> int:
    """Return the exit status of a command that a signal ended, as shells count: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def is_ignored(number: int) -> bool:
    """Return whether a signal stays ignored, as SIGHUP under `nohup`. SIGINT never does: shells let each command in the
    background ignore it."""
    return number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN


def handle_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Let a function handle all NUMBERS that are not ignored; return the handlers before, by number.

    Outside of the main thread nothing changes, and none is returned.
    """
    former: dict[int, Any] = {}
    for number in (number for number in NUMBERS if not is_ignored(number)):
        with contextlib.suppress(ValueError):  # handlers can be set in the main thread only
            former[number] = signal.signal(number, handler)
    return former


def catch_signals() -> None:
    """From now on, the first signal of `NUMBERS` ends the process in one line, and a second one at once.

    Nothing happens outside of the main thread, or if they are caught already.
    """
    if _handlers:
        return
    owner = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() != owner:  # a worker that was forked: its parent speaks
            os._exit(status_of(number))
        for other in _handlers:
            signal.signal(other, _end_at_once)
        if in_main_process():
            name = signal.Signals(number).name
            text = f"interrupted by {name}: run the same command again to go on from what is saved.\n"
            with contextlib.suppress(OSError):  # not `print`, which a handler may find in the middle of its work
                os.write(2, f"{chr(10) * os.isatty(2)}{text}".encode())
        raise SystemExit(status_of(number))

    _handlers.update(handle_signals(end))


def _end_at_once(number: int, _: object) -> None:
    os._exit(status_of(number))


def release_signals() -> None:
    """Give the signals back as they were before `catch_signals`, except after one came: another then ends at once."""
    for number, handler in _handlers.items():
        if signal.getsignal(number) is not _end_at_once:
            signal.signal(number, handler)
    _handlers.clear()


CPU_ALLOCATOR = "DefaultCPUAllocator: "
"""What begins the reason where torch has no memory on the CPU: a plain RuntimeError."""


SHARED = re.compile(r"</?torch_[^>]*>.*: (?P<reason>[^:]+) \(\d+\)$", re.MULTILINE)
"""What torch says of memory that processes share, such as "unable to resize file </torch_1_2_0> to the right size: No
space left on device (28)": a plain RuntimeError, with the system's reason at its end."""


def _lack_of_shared_memory(error: BaseException | None) -> str | None:
    """Return the system's reason why torch got no memory to share between processes; None for any other error."""
    found = SHARED.search(str(error)) if isinstance(error, RuntimeError) else None
    return None if found is None else found["reason"]


def is_lack_of_memory(error: BaseException | None) -> bool:
    """Return whether an error of Python or torch says that memory is missing. torch may not be imported."""
    on_cpu = isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or on_cpu


def lack_of_memory(error: BaseException | None) -> str | None:
    """Return the line about an error that says that memory is missing; None for any other error."""
    if (shared := _lack_of_shared_memory(error)) is not None:
        return f"out of shared memory: {shared}. Enlarge /dev/shm (of a container: --shm-size 1g), or raise ulimit -n."
    if not is_lack_of_memory(error):
        return None
    reason = (str(error).rpartition(CPU_ALLOCATOR)[2].splitlines() or [""])[0].rstrip(".")
    return f"out of memory{f': {reason}' if reason else ''}. Choose smaller sizes, or a machine with more of it."


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Inside the block of a command, a ValueError (options, data) or an OSError (files) is one line and status 2, a
    lack of memory one line and status 1, a signal one line and its status."""
    own_console()
    catch_signals()
    try:
        yield
    except (ValueError, OSError) as error:
        if in_main_process():
            say_error(error)
        raise SystemExit(REFUSED) from None
    except (MemoryError, RuntimeError) as error:
        if (line := lack_of_memory(error)) is None:
            raise
        if in_main_process():
            say_error(line)
        raise SystemExit(FAILED) from None
    finally:
        release_signals()

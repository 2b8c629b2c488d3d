"""The launchers of accelerate and torch in this process, whose errors end in a line.

`python -m hfgen.commands.launcher accelerate|torchrun ARGUMENTS` does what `accelerate launch ARGUMENTS` or `torchrun
ARGUMENTS` does. The processes that it starts print their own errors, so it adds none to them.
"""

import logging
import signal
import sys
from collections.abc import Callable, Sequence

from ..command_line.launch_errors import in_a_line
from ..console.endings import REFUSED, status_of
from ..console.notes import say_error


def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes and wait for them; exit with the status of the first one that failed."""
    kind, *words = sys.argv[1:] if argv is None else argv
    logging.disable(logging.ERROR)  # torch reports at length that a process failed, which has said so itself
    guarded({"accelerate": accelerate, "torchrun": torchrun}[kind], words)


def accelerate(words: Sequence[str]) -> None:
    """Do what `accelerate launch` does."""
    from accelerate.commands import launch

    launch.launch_command(launch.launch_command_parser().parse_args(list(words)))


def torchrun(words: Sequence[str]) -> None:
    """Do what `torchrun` does."""
    from torch.distributed import run

    run.main(list(words))


def guarded(start: Callable[[Sequence[str]], None], words: Sequence[str]) -> None:
    """Call a launcher; its errors end the process with a line and a status.

    Raises:
        SystemExit: the status of the process that failed first, 128 + its number after a signal, and 2 where none could
            be started.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        start(words)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        raise SystemExit(status if status > 0 else status_of(-status)) from None
    except (SignalException, KeyboardInterrupt) as error:
        raise SystemExit(status_of(getattr(error, "sigval", signal.SIGINT))) from None
    except Exception as error:  # of many kinds, and none of hfgen
        say_error(f"the processes can't be started: {in_a_line(error)}")
        raise SystemExit(REFUSED) from None


if __name__ == "__main__":
    main()

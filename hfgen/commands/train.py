"""`hfgen train`: run the front door of a family, with as many processes as there are GPUs."""

import importlib
import sys

from ..command_line.parser import called_by
from ..registry import FAMILIES
from .launch import has_option, launch
from .suggestions import unknown

_HELP = """usage: hfgen train <family> [--num_processes N] [options]

families: {families}

`hfgen train <family> --help` lists the options.

`hfgen recipes` lists complete configurations: hfgen train diffusion --config mnist

example:
  hfgen train diffusion --dataset digits --class_conditional --max_train_steps 500
"""


def main(argv: list[str] | None = None) -> None:
    """Replace this process by a training of `argv[0]`, a name of `registry.FAMILIES`; the rest are its options.

    Raises:
        ValueError: an unknown family.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP.format(families=", ".join(FAMILIES)), end="")
        return
    family, *options = argv
    if family not in FAMILIES:
        raise ValueError(unknown("family", family, FAMILIES))
    start(family, options, f"hfgen train {family}")


def start(family: str, options: list[str], called: str) -> None:
    """Replace this process by a training, or print the help of its options.

    Args:
        family: a name of `registry.FAMILIES`.
        options: its arguments.
        called: what its help and errors call the command.
    """
    module = FAMILIES[family].door
    if not any(has_option(options, flag) for flag in ("-h", "--help", "--help_all")):
        launch(module, options, called)
    with called_by(called):
        importlib.import_module(module).main(options)

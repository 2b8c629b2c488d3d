"""`hfgen train`: run the front door of a family, with as many processes as there are GPUs."""

import importlib
import sys

from ..registry import FAMILIES
from .launch import has_option, launch
from .suggestions import unknown

_HELP = """usage: hfgen train <family> [--num_processes N] [options]

families: {families}

`hfgen train <family> --help` lists the options.

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
    module = FAMILIES[family].door
    if has_option(options, "-h") or has_option(options, "--help"):
        importlib.import_module(module).main(options)
        return
    launch(module, options)

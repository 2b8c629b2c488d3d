"""The `hfgen` command: finds the command's module and runs its `main`.

Modules are imported when their command runs, and help is printed before torch is imported: `hfgen --help` is instant.
"""

import importlib
import sys

from hfgen import __version__

from .commands.launch import hide_token
from .commands.suggestions import unknown
from .console.endings import one_line
from .console.notes import own_console

COMMANDS = {
    "train": ("train a model: hfgen train <family> ...", "hfgen.commands.train"),
    "recipes": ("list the recipes that come with hfgen, with what was measured", "hfgen.commands.recipes"),
    "sample": ("draw samples from a trained pipeline", "hfgen.commands.sample"),
    "serve": ("serve trained pipelines over HTTP", "hfgen.commands.serve"),
    "demo": ("draw with a trained pipeline in the browser", "hfgen.commands.demo"),
    "provenance": ("read what image files say about what drew them", "hfgen.commands.provenance"),
    "evaluate": ("measure a trained pipeline, or a folder of images", "hfgen.commands.evaluate"),
    "calibrate": ("find the best variances of a denoiser's reverse steps", "hfgen.commands.calibrate"),
    "anomaly": ("detect anomalous images: hfgen anomaly fit|score ...", "hfgen.commands.anomaly"),
    "compare": ("train families under one budget and measure them alike", "hfgen.commands.compare"),
    "recommend": ("choose a model for your requirements, from measurements", "hfgen.commands.recommend"),
    "attention": ("draw the attention maps of a transformer or U-Net", "hfgen.commands.attention"),
    "explain": ("animate how each family draws, on points in the plane", "hfgen.commands.explain"),
    "data": ("look at a data set", "hfgen.commands.data"),
    "push": ("share a trained pipeline on the Hub", "hfgen.commands.push"),
    "info": ("print versions and hardware, for bug reports", "hfgen.commands.info"),
}
"""Name -> (description, module). The module's `main(argv)` runs the command; `None` means the process's arguments."""

_HELP = """usage: hfgen <command> [options]

Train, sample and measure generative models on diffusers.

commands:
{commands}

`hfgen <command> --help` lists a command's options, with an example.

example:
  hfgen train diffusion --config quickstart
"""


def main(argv: list[str] | None = None) -> None:
    """Run one command.

    A ValueError (options, data) or OSError (files) is printed as one line, and the exit status is 2. A lack of memory
    is one line and status 1. A signal is one line, and the exit status is 128 plus its number: 130 for Ctrl-C.
    """
    own_console()
    words = sys.argv[1:] if argv is None else argv
    if argv is None:
        hide_token(words)
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {description}" for name, (description, _) in COMMANDS.items()]
        print(_HELP.format(commands="\n".join(lines)), end="")
        return
    if words[0] == "--version":
        print(f"hfgen {__version__}")
        return
    with one_line():
        if words[0] not in COMMANDS:
            raise ValueError(unknown("command", words[0], COMMANDS))
        _, module = COMMANDS[words[0]]
        importlib.import_module(module).main(words[1:])


if __name__ == "__main__":
    main()

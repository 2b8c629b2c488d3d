"""Command lines of help and documents: each is parsed by the parser of the program that it names, and not run."""

import contextlib
import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from jsonargparse import ArgumentParser

from hfgen import cli, options
from hfgen.command_line.parser import CommandParser
from hfgen.registry import FAMILIES
from tests.helpers.toys import ROOT

DOORS = {family.door.rpartition(".")[2]: importlib.import_module(family.door) for family in FAMILIES.values()}
"""Front doors by the names of their files."""


class Parsed(Exception):
    """The end of a program that has parsed its words: (parser, values)."""


def parse_only(program, words: Sequence[str]) -> options.Namespace:
    """Call `program(words)` up to the end of its parsing, and return the values; none for `--help`.

    Raises:
        AssertionError: the program refuses the words; with its message.
    """
    parse_args = ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        raise Parsed(parse_args(self, *args, **kwargs))

    message = io.StringIO()
    with (
        mock.patch.object(CommandParser, "parse_args", parse_and_stop),
        contextlib.redirect_stderr(message),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            program(list(words))
        except Parsed as stop:
            assert " is now " not in message.getvalue(), message.getvalue()
            return stop.args[0]
        except SystemExit as stop:
            if stop.code in (0, None) and "--help" in words:
                return options.Namespace()
            raise AssertionError(f"{' '.join(words)}: {message.getvalue()}") from None
    raise AssertionError(f"{' '.join(words)}: parsed nothing")


def assert_parses(words: Sequence[str]) -> None:
    """A command is one that its own parser accepts, the configurations that it names exist, and each option of a
    training has an effect.

    Args:
        words: `hfgen ...`, `accelerate launch [...] training/<door>.py ...`, `torchrun [...] training/<door>.py ...` or
            `python -m hfgen.<module> ...`.
    """
    scripts = [index for index, word in enumerate(words) if word.startswith("training/")]
    if words[0] in ("accelerate", "torchrun"):
        assert scripts and (ROOT / words[scripts[0]]).is_file(), words
        _assert_trains(DOORS[Path(words[scripts[0]]).stem], words[scripts[0] + 1 :])
    elif words[0] == "python":
        parse_only(importlib.import_module(words[2]).main, words[3:])
    elif words[:2] == ["hfgen", "train"] or words[:3] == ["hfgen", "anomaly", "fit"]:
        family, rest = (words[2], words[3:]) if words[1] == "train" else ("anomaly", words[3:])
        _assert_trains(DOORS[FAMILIES[family].door.rpartition(".")[2]], without_launch(rest))
    else:
        assert words[0] == "hfgen" and words[1] in cli.COMMANDS, words
        parse_only(cli.main, without_launch(words[1:]))


def _assert_trains(door, words: Sequence[str]) -> None:
    values = parse_only(door.main, words)
    if "--help" not in words:
        options.refuse_idle(*options.fill(values, *door.GROUPS))


def without_launch(words: Sequence[str]) -> list[str]:
    """Return the words without `--num_processes N`, which accelerate's launcher gets."""
    words = list(words)
    if "--num_processes" in words:
        place = words.index("--num_processes")
        assert int(words[place + 1]) > 0
        del words[place : place + 2]
    return words

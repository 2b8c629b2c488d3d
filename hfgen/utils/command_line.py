"""The parser of a command: jsonargparse's, with hints for mistyped options and ranges in help. No torch here."""

import difflib
import re
import sys
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

from .console import say_error
from .files import read_yaml
from .option_rules import SECRETS


class HelpFormatter(DefaultHelpFormatter):
    """Formatter that keeps the lines of the example as they are, and prints the choices of an option once.

    An action's `range` stands after its type.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def _get_help_string(self, action: Any) -> str:
        text = super()._get_help_string(action)
        if (allowed := getattr(action, "range", None)) is not None:
            text = text.replace("type: %(type)s", f"type: %(type)s, {allowed}")
        return text.replace("type: %(type)s, ", "") if str(action.metavar).startswith("{") else text


class ConfigFile(ActionConfigFile):
    """The action of `--config FILE`: the file is read within bounds before jsonargparse reads it.

    jsonargparse would take a text for the file, wait for a pipe, and copy what aliases stand for.
    """

    def __call__(self, parser: Any, cfg: Namespace, values: Any, option_string: str | None = None) -> None:
        """Add the options of the file to `cfg`. What is wrong ends the process with a line that names the file."""
        try:
            options = read_yaml(values)
        except FileNotFoundError:
            parser.error(f"--{self.dest}: there is no file {values}.")
        except (ValueError, OSError) as error:
            parser.error(f"--{self.dest}: {error}")
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            parser.error(f"--{self.dest}: {values} holds no options by name, such as 'seed: 1'.")
        parser.reading = values
        super().__call__(parser, cfg, values, option_string)
        parser.reading = None
        parser.files |= dict.fromkeys(options, values)


class CommandParser(ArgumentParser):
    """jsonargparse's parser, whose messages name the range of a wrong value, and of an unknown option the nearest.

    Attributes:
        reading: the configuration file that is read, for messages; None outside of one.
        files: option -> the configuration file that gave it.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.reading: str | None = None
        self.files: dict[str, str] = {}

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """Return values as YAML, as `--print_config` does, without secrets."""
        shown = Namespace({name: value for name, value in cfg.items() if name not in SECRETS})
        return super().dump(shown, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Print the message with its hint and exit with status 2."""
        wrong = re.search(r'^Parser key "([^"]+)"', message)
        for action in self._actions if wrong else ():
            if action.dest == wrong[1] and getattr(action, "range", None) is not None:
                message += f"\n  --{action.dest} must be {action.range}."
        known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        unknown = re.search(r"unrecognized arguments: (?:.* )?(--[^\s=]+)|Option '([^']+)' is not accepted", message)
        if unknown:
            name = unknown[1] or f"--{unknown[2]}"
            near = difflib.get_close_matches(name, known, n=1)
            message += f"\n  did you mean {near[0] if unknown[1] else near[0][2:]}?" if near else ""
        named = (wrong and wrong[1]) or (unknown and unknown[2]) or None
        file = self.reading or self.files.get(named or "")
        place = "" if file is None else f"{file}: "
        say_error(f"{place}{message}\nAll options: {self.prog} --help")
        sys.exit(2)

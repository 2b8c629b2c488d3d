"""The parser of a command: jsonargparse's, with former names, help in two lengths, and errors in plain words.

No torch here: `--help` reads this file.
"""

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace, set_dumper

from ..console.notes import say_error, tell
from ..disk.yaml_files import read_yaml, yaml_text
from ..utils.ranges import former_names, range_of
from .option_errors import is_number, key_and_value, quoted, takes_none, unknown_option, wanted, wrong_value
from .option_rules import SECRETS, split_tokens
from .recipes import configuration_file

PRINTED = "hfgen"
"""What jsonargparse calls the way in which `--print_config` prints values: as in configuration files."""
set_dumper(PRINTED, yaml_text)

SIXTIES = re.compile(r"[-+]?[0-9_]+(?::[0-9_]+)+(?:\.[0-9_]*)?")
"""A time of day, which jsonargparse, as YAML 1.1, takes for a number to the base 60: 1:30 is 90."""

COMMAND = "HFGEN_COMMAND"
"""Environment variable with the words that `hfgen train` was called by, for the process that it becomes."""

WIDEST = 120
PIPED = 120
"""Columns of help on wide terminals, and where there is none."""


class HelpFormatter(DefaultHelpFormatter):
    """Formatter that keeps the lines of the example as they are, and prints the choices of an option once.

    An action's `range` stands after its type. `brief` leaves out types and ranges.
    """

    brief = False

    def __init__(self, prog: str, **settings: Any):
        width = min(WIDEST, shutil.get_terminal_size((PIPED, 24)).columns) - 2
        super().__init__(prog, **{"width": width, "max_help_position": 36, **settings})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def _format_action_invocation(self, action: Any) -> str:
        if len(action.option_strings) == 2 and action.metavar == "BOOL":
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: Any) -> str:
        if self.brief:
            return self._brief_text(action)
        text = super()._get_help_string(action)
        if (allowed := getattr(action, "range", None)) is not None:
            text = text.replace("type: %(type)s", f"type: %(type)s, {allowed}")
        return text.replace("type: %(type)s, ", "") if str(action.metavar).startswith("{") else text

    def _brief_text(self, action: Any) -> str:
        default = "on" if action.default is True else action.default
        said = default is None or default is False or default == argparse.SUPPRESS or "default:" in action.help
        return action.help if said else f"{action.help} (default: {str(default).replace('%', '%%')})"


class BriefFormatter(HelpFormatter):
    """Formatter of the short help."""

    brief = True


class ShowAll(argparse._HelpAction):
    """`--help_all`: print all options and exit."""

    def __call__(self, command: Any, *_: Any) -> NoReturn:
        """Print the long help."""
        print(command.format_help_all(), end="")
        sys.exit(0)


class ConfigFile(ActionConfigFile):
    """`--config`: a YAML file, or the name of a recipe. Its errors name the file and the key."""

    def __call__(self, command: Any, values: Namespace, name: str, option_string: str | None = None) -> None:
        """Read the file into `values`."""
        command.source = str(name)
        try:
            path = configuration_file(name)
        except ValueError as error:
            command.exit_with(str(error))
        except OSError as error:
            command.exit_with(f"--config {name} can't be read: {error.strerror}.")
        command.source = str(path)
        given = command.renamed(self.read(command, path))
        command.files |= dict.fromkeys(given, str(path))
        values.update(command.parse_object(given, defaults=False, _skip_validation=True))
        command.source = None

    @staticmethod
    def read(command: Any, path: Path) -> dict[str, Any]:
        """Return the values of a YAML file by name. Ends the process if it can't be read or holds anything else."""
        try:
            given = read_yaml(path)
        except ValueError as error:
            command.exit_with(str(error))
        except OSError as error:
            command.exit_with(f"{path} can't be read: {error.strerror}.")
        if isinstance(given, dict) and all(isinstance(key, str) for key in given):
            return given
        command.exit_with(f"{path}: a configuration has lines 'name: value', such as 'seed: 1'.")


class CommandParser(ArgumentParser):
    """jsonargparse's parser with messages of one line, names of former releases, and help in two lengths.

    Attributes:
        fields: the dataclass fields of the options, by name.
        brief: titles and actions of the short help; empty if there is only one length.
        source: the configuration file that is being read, if any.
        files: option -> the configuration file that gave it.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.fields: dict[str, Any] = {}
        self.brief: list[tuple[str | None, list[Any]]] = []
        self.source: str | None = None
        self.files: dict[str, str] = {}
        self._told: set[str] = set()

    @property
    def former(self) -> dict[str, str]:
        """Return the former names of options, and the present ones."""
        return former_names(self.fields.values())

    def range_of(self, name: str) -> Any:
        """Return what numbers an option may be; None where it has no range, or is none of this command."""
        return range_of(self.fields[name]) if name in self.fields else None

    def format_help(self, *args: Any) -> str:
        """Return what `--help` prints: what everybody sets, or all options of a command with few."""
        if not self.brief:
            return self.format_help_all()
        sections, self._action_groups, self.formatter_class = self._action_groups, [], BriefFormatter
        try:
            for title, actions in self.brief:
                section = argparse._ArgumentGroup(self, title)
                section._group_actions.extend(actions)
                self._action_groups.append(section)
            text = super().format_help(*args)
        finally:
            self._action_groups, self.formatter_class = sections, HelpFormatter
        before, title, example = text.rpartition("example:\n")
        return f"{before}all {len(self.fields)} options: {self.prog} --help_all\n\n{title}{example}"

    def format_help_all(self) -> str:
        """Return the help of all options."""
        return super().format_help()

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """Return values as YAML, as `--print_config` does, without secrets."""
        shown = Namespace({name: value for name, value in cfg.items() if name not in SECRETS})
        return super().dump(shown, *args, **{"format": PRINTED, **kwargs})

    def words(self, words: Sequence[str]) -> list[str]:
        """Return arguments with present names of options, and each `--config FILE` before all other words.

        Flags then override a file wherever they stand.
        """
        words, before = [self._present(word) for word in words], ["", *words]
        for last, word in zip(before, words, strict=False):
            flag, value = word.split("=", 1) if word.startswith("--") and "=" in word else (last, word)
            self._refuse_sixties(flag.removeprefix("--"), value, flag)
        files = [
            word.split("=")[0] == "--config" or last == "--config" for last, word in zip(before, words, strict=False)
        ]
        return [word for first in (True, False) for word, file in zip(words, files, strict=True) if file is first]

    def refuse_tokens(self, words: Sequence[str]) -> None:
        """End the process if its arguments hold a token: everybody on the machine can list them, and those of the
        launcher that started it, which this process can't change."""
        if split_tokens(words)[1]:
            self.exit_with(
                "a token among the arguments is in the list of processes, also of a launcher's. Take it out, and log "
                "in with `hf auth login`, or set HF_TOKEN"
            )

    def _present(self, word: str) -> str:
        match = re.match(r"--(no_)?(\w+)", word)
        if match is None or match[2] not in self.former:
            return word
        name = self.former[match[2]]
        self._tell(f"--{match[2]} is now --{name}")
        return f"--{match[1] or ''}{name}{word[match.end() :]}"

    def renamed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a configuration file by present names. Ends the process if a name stands there twice, or
        is no option."""
        values: dict[str, Any] = {}
        for key, value in given.items():
            name = self.former.get(key, key)
            if name != key:
                self._tell(f"{self.source}: {key} is now {name}")
            if name in values or (name != key and name in given):
                self.exit_with(f"{self.source}: {key} and {name} are one option. Leave one out.")
            if name not in self.fields:
                self.exit_with(unknown_option(key, self.fields, f"{self.source}: {key} is no option of {self.prog}"))
            if self.fields[name].type is bool and str(value).lower() not in ("true", "false", "yes", "no"):
                self.exit_with(wrong_value(f"{self.source}: {key}", value, bool))
            if value is None and not takes_none(self.fields[name].type):
                self.exit_with(f"{self.source}: {key} has no value; leave the line out for the default")
            self._refuse_sixties(name, value, f"{self.source}: {key}")
            values[name] = value
        return values

    def _refuse_sixties(self, name: str, value: Any, where: str) -> None:
        """End the process if an option that is a number is given as a time of day."""
        field = self.fields.get(name)
        if field is not None and isinstance(value, str) and is_number(field.type) and SIXTIES.fullmatch(value):
            self.exit_with(wrong_value(where, value, field.type, self.range_of(name)))

    @contextlib.contextmanager
    def naming_files(self) -> Iterator[None]:
        """Inside the block, a ValueError about an option gets the configuration file that gave it as its `file`, which
        `say_error` shows."""
        try:
            yield
        except ValueError as error:
            name = re.match(r"--(\w+) ", str(error))
            error.file = self.files.get(name[1]) if name else None
            raise

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            tell(f"{text}; the old name will go.")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the process with this message of jsonargparse or argparse in plain words."""
        self.exit_with(self._plain(message))

    def exit_with(self, message: str) -> NoReturn:
        """Print the message in one line and exit with status 2."""
        line, self.source = " ".join(message.split()), None
        say_error(line if line.endswith((".", "?")) else f"{line}.")
        sys.exit(2)

    def _plain(self, message: str) -> str:
        """Return a message of jsonargparse or argparse in words of this command."""
        if (found := key_and_value(message)) and found[0].split(".")[0] in self.fields:
            key, value = found
            return wrong_value(self._name(key), value, self.fields[key.split(".")[0]].type, self.range_of(key))
        if match := re.match(r"argument --(\w+)\S*: (?:invalid \w+ value: (.*)|(expected .*))", message, re.DOTALL):
            name, value = match[1], match[2]
            kind, allowed = self._kind(name), self.range_of(name)
            if value is None:
                return f"--{name} needs a value: {wanted(kind, allowed)}"
            return wrong_value(f"--{name}", value.strip("'\""), kind, allowed)
        if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
            return self._unknown_word(match[1])
        if match := re.search(r'"(\w+)" is required|arguments are required: (\w+)', message):
            name = match[1] or match[2]
            return f"{name} is missing: {self.fields[name].metadata['help']}. See {self.prog} --help"
        return f"{f'{self.source}: ' if self.source else ''}{message}"

    def _kind(self, name: str) -> Any:
        return self.fields[name].type if name in self.fields else str

    def _name(self, key: str) -> str:
        """Return how a message calls an option: with its file, or as a flag."""
        if self.source is not None:
            return f"{self.source}: {key}"
        return key if self.fields[key.split(".")[0]].metadata.get("positional") else f"--{key}"

    def _unknown_word(self, words: str) -> str:
        flag = re.search(r"(?:^|\s)(--[^\s=]+)", words)
        known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        if flag is not None:
            return unknown_option(flag[1], known, f"{flag[1]} is no option of {self.prog}")
        return f"{self.prog} takes no {quoted(words)}: values follow their option, as in --option value"


def brief_sections(
    command: CommandParser, groups: Sequence[type], basics: Sequence[str]
) -> list[tuple[str | None, list[Any]]]:
    """Return titles and actions of the short help: basics, if there are any, then what the other groups name as COMMON.

    Nothing is returned for a command whose groups name nothing, whose help has one length.
    """
    actions = {action.dest: action for action in command._actions}
    shared = [group for group in groups if getattr(group, "COMMON", None) == basics]
    names = {field.name for group in shared for field in dataclasses.fields(group)}
    if not any(hasattr(group, "COMMON") for group in groups):
        return []
    general = [actions[name] for name in ("help", "help_all", "config") if name in actions]
    sections: list[Any] = [(None, general)]
    sections += [("Basics", [actions[name] for name in basics if name in names])] if names else []
    for group, title in zip(groups, (section.title for section in command._action_groups[-len(groups) :]), strict=True):
        fields = [field.name for field in dataclasses.fields(group)]
        listed = [actions[name] for name in getattr(group, "COMMON", fields) if name in fields]
        if group not in shared and listed:
            sections.append((title, listed))
    return sections


@contextlib.contextmanager
def called_by(words: str) -> Iterator[None]:
    """Inside the block, front doors call themselves by these words."""
    os.environ[COMMAND] = words
    try:
        yield
    finally:
        del os.environ[COMMAND]


def program(family: str) -> str:
    """Return how the front door of a family was called, for its help and its errors.

    Args:
        family: a name in `hfgen.registry.FAMILIES`, or of a family outside hfgen.
    """
    if COMMAND in os.environ:
        return os.environ[COMMAND]
    spec, script = getattr(sys.modules["__main__"], "__spec__", None), sys.argv[0]
    if Path(script).stem != f"train_{family}":
        return f"hfgen train {family}"
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    launcher = "accelerate launch" if launched else "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "python"
    return f"{launcher} {script}" if spec is None else f"{launcher} -m {spec.name}"

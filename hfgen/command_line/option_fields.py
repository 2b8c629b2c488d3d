"""Dataclass fields that are options of a command: what an option says of itself."""

import dataclasses
from typing import Any

from .option_rules import OnlyWith


def option(
    default: Any,
    help: str,
    only_with: OnlyWith | None = None,
    resumable: bool = False,
    off: Any = dataclasses.MISSING,
    range: Any = None,
    path: bool = False,
    former: tuple[str, ...] = (),
    former_default: Any = dataclasses.MISSING,
) -> Any:
    """Return a dataclass field that is a command-line option.

    A class of options may have a class attribute ONLY_WITH, a mapping as `only_with` that all its options need besides
    their own, but those named in its class attribute ALWAYS. A class attribute COMMON names those of its options that
    the short help shows; without it, all are shown.

    Args:
        default: its default value.
        help: its text in `--help`.
        only_with: the options that it belongs to. A mapping {name of another option: values, or a `ValueRule`, that it
            must have} holds if all entries hold; `AnyOf` holds if one of several options is in use. Where it does not
            hold, `refuse_idle` refuses all values but the default and `off`.
        resumable: whether a resumed run may have another value; a difference is reported then, and else refused.
        off: the value that asks for nothing, such as 0 for a number of steps.
        range: the numbers that it may be, from `hfgen.utils.ranges`: `check_ranges` refuses others. Without a range a
            number must be finite.
        path: whether it may be a file or folder: `~` at its beginning is the home folder.
        former: its names in former releases, which are accepted with a hint.
        former_default: its default in former releases, with which runs that began with it go on.
    """
    metadata = {"help": help, "only_with": {} if only_with is None else only_with, "resumable": resumable, "off": off}
    metadata |= {"range": range, "path": path, "former": former, "former_default": former_default}
    return dataclasses.field(default=default, metadata=metadata)


def variant(group: type, name: str, default: Any, help: str | None = None, **metadata: Any) -> Any:
    """Return the option `name` of the dataclass `group` for a subclass, with another default, and help if given.

    What else it says of itself stays, unless `metadata` replaces it.
    """
    base = group.__dataclass_fields__[name].metadata
    return option(default, **{**base, **({} if help is None else {"help": help}), **metadata})


def argument(help: str, path: bool = True) -> Any:
    """Return a dataclass field that is a positional argument of a command."""
    return dataclasses.field(metadata={"help": help, "positional": True, "path": path})

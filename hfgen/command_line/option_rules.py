"""Which options belong together: the conditions that an option declares, and the refusal of one without effect.

No torch here: `--help` reads this file.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

SECRETS = ("hub_token",)
"""Options that are neither saved nor printed."""

TOKENS = ("--hub_token", "--token")
"""Flags whose values are tokens."""


def changed_options(options: Any) -> dict[str, Any]:
    """Return the options of a dataclass, by name, that differ from their defaults; those without one are left out."""
    fields = [field for field in dataclasses.fields(options) if field.default is not dataclasses.MISSING]
    values = {field.name: (getattr(options, field.name), field.default) for field in fields}
    return {name: value for name, (value, default) in values.items() if value != default}


def split_tokens(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without tokens and their flags, and the tokens."""
    rest, tokens = [], []
    for before, word in zip(["", *argv], argv, strict=False):
        name, equals, value = word.partition("=")
        if before in TOKENS:
            tokens.append(word)
        elif name in TOKENS and equals:
            tokens.append(value)
        elif name not in TOKENS:
            rest.append(word)
    return rest, tokens


@dataclasses.dataclass(frozen=True)
class ValueRule:
    """ValueRule on the value of an option, with its text in messages ("a number above 0") and in help ("above 0")."""

    text: str
    short: str
    holds: Callable[[Any], bool]


POSITIVE = ValueRule("a number above 0", "above 0", lambda value: value is not None and value > 0)


@dataclasses.dataclass(frozen=True)
class AnyOf:
    """ValueRule that at least one of the options `names` is in use.

    `holds` decides from a namespace with the values of all options; by default one of the values must be true. Without
    names the condition never holds.
    """

    names: tuple[str, ...]
    holds: Callable[[Any], bool] | None = None

    def met(self, options: Any) -> bool:
        """Return whether the condition holds for these values."""
        return any(getattr(options, name) for name in self.names) if self.holds is None else self.holds(options)

    def __str__(self) -> str:
        return _or([f"--{name}" for name in self.names])


NEVER = AnyOf(())
"""`only_with` of a shared option that a family makes no use of: any value but the default is refused."""

OnlyWith = Mapping[str, tuple | ValueRule] | AnyOf


def refuse_idle(*groups: Any) -> None:
    """Refuse options that have no effect and another value than their default.

    Args:
        groups: instances of all dataclasses of options of a run.

    Raises:
        ValueError: names the option, the other option that leaves it without effect, and the fix.
    """
    fields = {field.name: field for group in groups for field in dataclasses.fields(group)}
    values = SimpleNamespace(**{field.name: getattr(g, field.name) for g in groups for field in dataclasses.fields(g)})
    for name, field in fields.items():
        value = getattr(values, name)
        if value in (field.default, field.metadata.get("off", field.default)):
            continue
        (group,) = (group for group in groups if name in group.__dataclass_fields__)
        for reason in filter(None, (_idle(rule, values, fields) for rule in rules(group, name))):
            raise ValueError(f"--{name}{'' if name in SECRETS else f' {value}'} does nothing {reason}")


def rules(group: Any, name: str) -> list[OnlyWith]:
    """Return the conditions of an option of a dataclass or an instance of it: its own, and its class's."""
    own = group.__dataclass_fields__[name].metadata.get("only_with", {})
    return [own] if name in getattr(group, "ALWAYS", ()) else [own, getattr(group, "ONLY_WITH", {})]


def _idle(rule: OnlyWith, values: Any, fields: Mapping[str, dataclasses.Field]) -> str | None:
    """Return which option of these `values` does not meet the condition, and the fix; None if all do."""
    if isinstance(rule, AnyOf):
        reason = f"without {rule}. Leave it out, or give one of them." if rule.names else "here. Leave it out."
        return None if rule.met(values) else reason
    for other, needed in rule.items():
        value = getattr(values, other)
        if isinstance(needed, ValueRule):
            holds, words = needed.holds(value), needed.text
        else:
            holds, words = value in needed, _or(_possible(needed, fields[other]))
        if not holds:
            only = "without it" if needed == (None,) == (fields[other].default,) else f"with {words}"
            given = f"without --{other}" if value is None else f"with --{other} {value}"
            return f"{given}, only {only}. Leave it out, or change the other."
    return None


def note_of(rule: OnlyWith, fields: Mapping[str, dataclasses.Field]) -> str:
    """Return the condition for `--help`, such as "only with --objective elbo or iwae"; "" if there is none."""
    if isinstance(rule, AnyOf):
        return f"only with {rule}" if rule.names else "not used here"
    present, absent = [], []
    for name, needed in rule.items():
        if isinstance(needed, ValueRule):
            present.append(f"--{name} {needed.short}")
        elif needed == (False,) or (needed == (None,) and (name not in fields or fields[name].default is None)):
            absent.append(f"--{name}")
        else:
            words = _or(_possible(needed, fields.get(name)))
            present.append(f"--{name}" if needed == (True,) else f"--{name} {words}")
    notes = [f"with {' and '.join(present)}"] * bool(present) + [f"without {' and '.join(absent)}"] * bool(absent)
    return f"only {' and '.join(notes)}" if notes else ""


def _possible(values: Sequence[Any], field: dataclasses.Field | None) -> list[str]:
    """Return those of the values that this family's option can have, as texts."""
    choices = get_args(field.type) if field is not None and get_origin(field.type) is Literal else values
    return ["null" if value is None else str(value) for value in values if value in choices]


def _or(words: Sequence[str]) -> str:
    """Return "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))

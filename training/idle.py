"""Which options mean something together. No torch here."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def refuse(belongs: Mapping[str, tuple[str, tuple]], *groups: Any) -> None:
    """Refuse options that would change nothing.

    Args:
        belongs: option -> another one and the values of it with which the first means something.
        groups: dataclasses of options, which have all of these.

    Raises:
        ValueError: an option that was given, and the one it would belong to.
    """
    values = {
        field.name: (getattr(group, field.name), field) for group in groups for field in dataclasses.fields(group)
    }
    for name, (other, known) in belongs.items():
        (value, field), present = values[name], values[other][0]
        if value != field.default and present not in known:
            raise ValueError(
                f"--{name} {value} does nothing with --{other} {present}, only with {' or '.join(map(str, known))}. "
                "Leave it out, or change the other."
            )

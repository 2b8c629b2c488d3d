"""Runs that began when options had other defaults."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from ..trainer import checkpoint


def keep_former_defaults(groups: Sequence[Any], output: Path, resume: str, given: Collection[str] = ()) -> str | None:
    """Set options back to a former default with which the run that goes on began; return a note of it.

    That is an option that nobody gave, while the newest checkpoint was trained with its `former_default`, see
    `hfgen.options.option`. All other differences are left to the comparison with the checkpoint, which names them.

    Args:
        groups: dataclasses of options, changed in place.
        output: folder of the run.
        resume: its `resume_from_checkpoint`.
        given: names of options that the user gave, at whatever value.
    """
    options = [(group, field) for group in groups for field in dataclasses.fields(group)]
    changed = [(group, field) for group, field in options if _former(field) is not MISSING and field.name not in given]
    saved = checkpoint.saved_config(output, resume) if changed else None
    said = set()
    for group, field in changed if saved is not None else ():
        before = _former(field)
        if getattr(group, field.name) == field.default and saved.get(field.name, before) == before != field.default:
            setattr(group, field.name, before)
            said.add(f"{field.name}={before}")
    names = ", ".join(sorted(said))
    return f"the run in {output} began with {names}, defaults of its time, and goes on so." if said else None


def _former(field: dataclasses.Field) -> Any:
    return field.metadata.get("former_default", MISSING)

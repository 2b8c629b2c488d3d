"""Measurements with their protocol: entries of metrics.json, and a table."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console.text import escaped
from ..disk.files import write_json
from ..disk.lock import exclusive
from ..disk.reading import TEXT_BYTES, read_object
from .measures import Measurement


def entries(measurements: Sequence[Measurement], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of metrics.json: metric, value, error if it was estimated, protocol."""
    rows = []
    for measurement in measurements:
        row = {key: value for key, value in dataclasses.asdict(measurement).items() if value is not None}
        rows.append({**row, "protocol": dict(protocol)})
    return rows


def table(measurements: Sequence[Measurement]) -> str:
    """Format measurements as text, one per line."""
    rows = [("metric", "value", "95 % interval", "better")]  # metrics name their features, which may be a folder
    for measurement in measurements:
        error = "" if measurement.interval is None else "{:.4g} to {:.4g}".format(*measurement.interval)
        if measurement.deviation is not None:
            error = f"deviation {measurement.deviation:.2g}"
        rows.append((escaped(measurement.metric), f"{measurement.value:.4g}", error, measurement.better))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def write(path: Path, new_entries: Sequence[Mapping[str, Any]]) -> None:
    """Add entries to the list `evaluation` of a metrics.json, which is made if there is none.

    A new entry replaces the entries of the same measurement: those with an equal metric and equal values of everything
    that both protocols state. (Another version of hfgen may state more or less.)

    Raises:
        ValueError: the file holds something else than a JSON object.
    """
    with exclusive(path):  # another measurement of the same pipeline may end at this moment
        content = read(path)
        others = [row for row in content.get("evaluation", []) if not any(_same(row, new) for new in new_entries)]
        write_json(path, {**content, "evaluation": [*others, *new_entries]})


def read(path: Path) -> dict[str, Any]:
    """Return the content of a metrics.json; an empty one if there is no file.

    Raises:
        ValueError: the path is a folder, or the file holds something else than a JSON object.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and results are added to a file. Give another --output.")
    if not path.exists():
        return {}
    fix = "Move it away, or give another --output."
    try:
        content = read_object(path, TEXT_BYTES)
    except ValueError as error:
        raise ValueError(f"{path} holds no JSON object to add results to ({error}). {fix}") from error
    rows = content.get("evaluation", [])
    whole = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not whole or not all(isinstance(row.get("protocol") or {}, dict) for row in rows):
        raise ValueError(f"{path} holds something else than a list of measurements as its evaluation. {fix}")
    return content


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether an entry of the file and a new one are of the same measurement."""
    first, second = old.get("protocol") or {}, new.get("protocol") or {}
    shared = first.keys() & second.keys()
    if ("generated images" in first) != ("generated images" in second):
        shared.discard("real images")  # older entries of bits per dimension name the samples' reference images
    return old.get("metric") == new.get("metric") and all(
        json.dumps(first[name], sort_keys=True) == json.dumps(second[name], sort_keys=True) for name in shared
    )

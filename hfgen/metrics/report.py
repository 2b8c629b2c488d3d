"""Figures with their protocol: metrics.json and a table."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .measures import Figure


def entries(figures: Sequence[Figure], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What metrics.json keeps of figures: metric, value, error where it was estimated, protocol."""
    kept = []
    for figure in figures:
        entry = {key: value for key, value in dataclasses.asdict(figure).items() if value is not None}
        kept.append({**entry, "protocol": dict(protocol)})
    return kept


def table(figures: Sequence[Figure]) -> str:
    """The figures as text, a line each."""
    rows = [("metric", "value", "95 % interval", "better")]
    for figure in figures:
        error = "" if figure.interval is None else "{:.4g} to {:.4g}".format(*figure.interval)
        if figure.deviation is not None:
            error = f"deviation {figure.deviation:.2g}"
        rows.append((figure.metric, f"{figure.value:.4g}", error, figure.better))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def write(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Add entries to the list `evaluation` of a metrics.json; those of the same metric and protocol are replaced.

    Raises:
        ValueError: the file holds something else than a JSON object.
    """
    figures = {}
    if path.is_file():
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            figures = None
        if not isinstance(figures, dict):
            raise ValueError(f"{path} holds no JSON object to add results to. Move it away, or give another --output.")
    new = {_key(entry) for entry in found}
    kept = [entry for entry in figures.get("evaluation", []) if _key(entry) not in new]
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps({**figures, "evaluation": [*kept, *found]}, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _key(entry: Mapping[str, Any]) -> str:
    return json.dumps([entry.get("metric"), entry.get("protocol")], sort_keys=True)

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
    """Add entries to the list `evaluation` of a metrics.json, in place of those that measure the same: whose metric and
    whatever both protocols state are equal, for another version may state more or less.

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
    kept = [entry for entry in figures.get("evaluation", []) if not any(_same(entry, new) for new in found)]
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps({**figures, "evaluation": [*kept, *found]}, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _same(kept: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether an entry of the file measures what a new one does."""
    first, second = kept.get("protocol") or {}, new.get("protocol") or {}
    shared = first.keys() & second.keys()
    if ("generated images" in first) != ("generated images" in second):
        shared.discard("real images")  # bits per dimension were once stated to be of the images that samples meet
    return kept.get("metric") == new.get("metric") and all(
        json.dumps(first[name], sort_keys=True) == json.dumps(second[name], sort_keys=True) for name in shared
    )

"""A row of report.json (its keys: `compare.report`), and its metrics by the beginnings of their names."""

from collections.abc import Mapping
from typing import Any

from .formats import plural

Row = Mapping[str, Any]

FRECHET = ("Frechet distance", "FID")
"""Beginnings of the name of a Frechet distance: FID is its name with the standard Inception network."""


def metric(row: Row, beginning: str | tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return {"value", "interval", "better", ...} of the row's first metric whose name begins so; None without one."""
    return next((entry for name, entry in row["figures"].items() if name.startswith(beginning)), None)


def frechet(row: Row) -> float | None:
    """Return the row's Frechet distance; None if it was not measured."""
    entry = metric(row, FRECHET)
    return entry and entry["value"]


def frechet_interval(row: Row) -> tuple[float, float]:
    """Return both ends of the interval of the row's Frechet distance; twice the distance if there is no interval."""
    entry = metric(row, FRECHET)
    return tuple(entry["interval"] or (entry["value"], entry["value"]))


def setting_text(entry: Mapping[str, Any]) -> str:
    """Return steps, precision and batch size of an entry of `speed` as text."""
    steps = "one pass" if entry["scheduler"] is None else plural(entry["steps"], "step")
    return f"{steps}, {entry['dtype']}, batch {entry['batch']}"

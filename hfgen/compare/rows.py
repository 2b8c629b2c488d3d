"""A row of report.json (its keys: `compare.report`), and its metrics by the beginnings of their names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.names import JOINT
from .formats import plural

Row = Mapping[str, Any]

FRECHET = ("Frechet distance", "FID")
"""Beginnings of the name of a Frechet distance: FID is its name with the standard Inception network."""


def metric(row: Row, beginning: str | tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return {"value", "interval", "better", ...} of the row's first metric whose name begins so; None without one."""
    return next((entry for name, entry in row["figures"].items() if name.startswith(beginning)), None)


def metrics_by_network(row: Row, beginning: str | tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """Return the network's label -> entry, for all metrics of the row whose names begin so and end with "(label)"."""
    names = {name: re.search(r" \((.*)\)$", name) for name in row["figures"] if name.startswith(beginning)}
    return {label[1] if label else name: row["figures"][name] for name, label in names.items()}


def feature_networks(rows: Sequence[Row]) -> list[str]:
    """Return the labels of the networks by which Frechet distances of these rows were measured: usually two, one in
    reports of earlier versions."""
    return list(dict.fromkeys(label for row in rows for label in metrics_by_network(row, FRECHET)))


def ranking_entry(row: Row) -> Mapping[str, Any] | None:
    """Return the entry that rows are ranked by: the geometric mean of the Frechet distances by all networks.

    With one network, this is its distance. None if no distance was measured.
    """
    return metric(row, JOINT) or metric(row, FRECHET)


def frechet(row: Row) -> float | None:
    """Return the value of the row's `ranking_entry`; None if it was not measured."""
    entry = ranking_entry(row)
    return entry and entry["value"]


def frechet_interval(row: Row) -> tuple[float, float]:
    """Return both ends of the interval of the row's `ranking_entry`; twice the value if there is no interval."""
    entry = ranking_entry(row)
    return tuple(entry["interval"] or (entry["value"], entry["value"]))


def ranking_text(networks: Sequence[str]) -> str:
    """Return the name of the number that rows are ranked by, for a title or the axis of a chart."""
    return "Frechet distance" if len(networks) < 2 else f"Frechet distance, geometric mean of {len(networks)} networks"


def setting_text(entry: Mapping[str, Any]) -> str:
    """Return steps, precision and batch size of an entry of `speed` as text."""
    steps = "one pass" if entry["scheduler"] is None else plural(entry["steps"], "step")
    return f"{steps}, {entry['dtype']}, batch {entry['batch']}"

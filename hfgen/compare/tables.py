"""Tables of a report, with text in their cells: the same for HTML and for Markdown."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..metrics.names import JOINT
from . import formats
from .rows import FRECHET, Row, feature_networks, metric, metrics_by_network, ranking_text, setting_text

NONE = "none"
"""Text of a cell whose value was not measured."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell: its text, its error in smaller letters, and whether it is the best of its column."""

    text: str
    error: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: names of columns, a description of each, and for each row of the report its cells."""

    columns: Sequence[str]
    descriptions: Sequence[str]
    rows: Sequence[tuple[Row, Sequence[Cell]]]


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of numbers.

    Attributes:
        name, description: texts.
        better: "lower", "higher" or None, if no value is better than another.
        value: row -> number, None if it was not measured.
        text: number -> text.
    """

    name: str
    description: str
    better: str | None
    value: Callable[[Row], float | None]
    text: Callable[[float], str]

    def cells(self, rows: Sequence[Row]) -> list[Cell]:
        """Return a cell for each row."""
        values = [self.value(row) for row in rows]
        best = _best([value for value in values if value is not None], self.better)
        return [Cell(NONE) if value is None else Cell(self.text(value), best=value == best) for value in values]


METRICS = (
    ("Kernel", "kernel distance", "lower", "squared maximum mean discrepancy of features"),
    ("Score", "classifier score", "higher", "how certain and how varied the classes of samples are"),
    ("Precision", "precision", "higher", "share of samples that look real"),
    ("Recall", "recall", "higher", "share of real images that the model could draw"),
    ("Density", "density", "higher", "density of real images around samples"),
    ("Coverage", "coverage", "higher", "share of real images with a sample nearby"),
    ("Bits/dim", "bits per dimension", "lower", "of held-out 8-bit images; an upper bound for autoencoders"),
    ("Rec. error", "reconstruction error", "lower", "mean squared error of reconstructions of held-out images"),
)
"""Columns of quality after the Frechet distances: name, beginning of the metric's name, which values are better,
description. Those of features are of the first network."""


def quality(rows: Sequence[Row]) -> Table:
    """Return the metrics of samples and held-out images, without columns that no row has a value for."""
    columns = _distance_columns(rows)
    for name, beginning, better, description in METRICS:
        columns.append((name, description, better, [metric(row, beginning) for row in rows]))
    columns = [column for column in columns if any(column[3])]
    cells = [_metric_cells(entries, better) for _, _, better, entries in columns]
    return _table([column[0] for column in columns], [column[1] for column in columns], rows, cells)


def _distance_columns(rows: Sequence[Row]) -> list[tuple[str, str, str, list[Mapping[str, Any] | None]]]:
    """Return name, description, better value and entries of the Frechet distance by each network, and of their mean."""
    networks = feature_networks(rows)
    meaning = "distance of the means and covariances of features"
    by_network = [metrics_by_network(row, FRECHET) for row in rows]
    columns = []
    for label in networks:
        name = "Frechet" if len(networks) == 1 else f"Frechet, {label.split(',')[0]}"
        columns.append((name, f"{meaning} of {label}", "lower", [each.get(label) for each in by_network]))
    if len(networks) > 1:
        text = f"{JOINT} of all networks: rows are ranked by it"
        columns.insert(0, ("Rank by", text, "lower", [metric(row, JOINT) for row in rows]))
    return columns


def _metric_cells(entries: Sequence[Mapping[str, Any] | None], better: str) -> list[Cell]:
    """Return a cell for each row's entry of one metric.

    The error is half the interval, or the deviation if there are several trainings or no interval.
    """
    best = _best([entry["value"] for entry in entries if entry], better)
    cells = []
    for entry in entries:
        if entry is None:
            cells.append(Cell(NONE))
            continue
        low, high = entry["interval"] or (0, 0)
        one_training = "trainings" not in entry
        error = (high - low) / 2 if one_training and entry["interval"] else entry["deviation"]
        text = f"± {formats.number(float(f'{error:.2g}'))}" if error else ""
        cells.append(Cell(formats.number(entry["value"]), text, entry["value"] == best))
    return cells


def _best(values: Sequence[float], better: str | None) -> float | None:
    """Return the best value; None if no value is better or all are equal."""
    if better is None or len(set(values)) < 2:
        return None
    return min(values) if better == "lower" else max(values)


def cost(rows: Sequence[Row]) -> Table:
    """Return the cost of training and the speed of sampling with each row's own setting in float32."""
    columns = [
        _Column("Parameters", "of the pipeline's networks", "lower", lambda row: row["parameters"], formats.count),
        _Column("Training", "seconds in training steps", None, lambda row: row["training_seconds"], formats.duration),
        _Column("Steps", "optimiser steps", None, lambda row: row["training_steps"], formats.count),
        _Column("Images seen", "in training", None, lambda row: row["images_seen"], formats.count),
        _Column("Memory", "peak of training", "lower", lambda row: row["peak_memory_mib"], lambda v: f"{v:,.0f} MiB"),
    ]
    batches = sorted({entry["batch"] for row in rows for entry in row["speed"]})
    for batch in batches:
        rate = _default_speed(batch, "images_per_second")
        columns.append(_Column(f"Images/s, {batch}", f"drawn in batches of {batch}", "higher", rate, formats.number))
    for batch in batches:
        for name, share in (("p50", "half of the calls"), ("p95", "19 of 20 calls")):
            description = f"{share} for {formats.plural(batch, 'image')} are faster"
            latency = _default_speed(batch, f"latency_{name}_ms")
            columns.append(_Column(f"{name.upper()}, {batch}", description, "lower", latency, formats.milliseconds))
    return _table(
        [column.name for column in columns],
        [column.description for column in columns],
        rows,
        [column.cells(rows) for column in columns],
    )


def _default_speed(batch: int, name: str) -> Callable[[Row], float | None]:
    """Return a function: row -> value `name` of its own setting at this batch size."""
    return lambda row: next((e[name] for e in row["speed"] if e["default"] and e["batch"] == batch), None)


def pareto(rows: Sequence[Row]) -> Table:
    """Return the settings on the Pareto front of Frechet distance, latency and time an image, best distance first."""
    points = [(row, entry) for row in rows for entry in row["speed"] if entry["front"]]
    points.sort(key=lambda point: point[1]["frechet"])
    networks = list(dict.fromkeys(label for _, entry in points for label in entry.get("distances") or ()))
    columns = {
        "Setting": (setting_text, "of sampling"),
        "Frechet": (lambda entry: formats.number(entry["frechet"]), ranking_text(networks)),
        **{
            f"by {label.split(',')[0]}": (lambda entry, label=label: _distance(entry, label), f"by {label}")
            for label in (networks if len(networks) > 1 else ())
        },
        "Latency": (lambda entry: formats.milliseconds(entry["latency_p50_ms"]), "median of a call"),
        "Images/s": (lambda entry: formats.number(entry["images_per_second"]), "drawn"),
    }
    cells = [(row, [Cell(text(entry)) for text, _ in columns.values()]) for row, entry in points]
    return Table(list(columns), [description for _, description in columns.values()], cells)


def _distance(entry: Mapping[str, Any], label: str) -> str:
    """Return the Frechet distance of a setting by one network as text."""
    value = (entry.get("distances") or {}).get(label)
    return NONE if value is None else formats.number(value)


def _table(
    names: Sequence[str], descriptions: Sequence[str], rows: Sequence[Row], columns: Sequence[Sequence[Cell]]
) -> Table:
    """Return a table from its columns of cells."""
    return Table(names, descriptions, [(row, [column[i] for column in columns]) for i, row in enumerate(rows)])

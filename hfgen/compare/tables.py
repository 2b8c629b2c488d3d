"""Tables of a report, as text in cells: the same for its page and for its Markdown."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .charts import found, setting

Row = Mapping[str, Any]
NONE = "none"
"""In cells whose figure a row does not have."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell: its text, a smaller one behind it, and whether it is the best of its column."""

    text: str
    error: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns, each with what it means, and the rows' names and cells."""

    columns: Sequence[str]
    meaning: Sequence[str]
    rows: Sequence[tuple[Row, Sequence[Cell]]]


FIGURES = (
    ("Frechet", "Frechet distance", "lower", "distance of the features' means and covariances"),
    ("Kernel", "kernel distance", "lower", "squared maximum mean discrepancy of the features"),
    ("Score", "classifier score", "higher", "how clear and how varied the classes of samples are"),
    ("Precision", "precision", "higher", "share of samples that look real"),
    ("Recall", "recall", "higher", "share of real images that could have been drawn"),
    ("Density", "density", "higher", "how crowded with real images the samples' places are"),
    ("Coverage", "coverage", "higher", "share of real images with a sample nearby"),
    ("Bits/dim", "bits per dimension", "lower", "of held-out 8-bit images; of autoencoders an upper bound"),
    ("Rec. error", "reconstruction error", "lower", "mean squared error of held-out images there and back"),
)
"""Columns of quality: name, how the metric begins, which is better, what it means."""


def number(value: float) -> str:
    """Three digits, as people write them."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def quality(rows: Sequence[Row]) -> Table:
    """What samples and held-out images are worth. A column that no row has a figure for is left out."""
    shown = [each for each in FIGURES if any(found(row, each[1]) for row in rows)]
    columns = [_column([found(row, begins) for row in rows], better) for _, begins, better, _ in shown]
    return _table([each[0] for each in shown], [each[3] for each in shown], rows, columns)


def _column(figures: Sequence[Mapping[str, Any] | None], better: str) -> list[Cell]:
    """Cells of one metric."""
    values = [figure["value"] for figure in figures if figure]
    best = _best(values, better)
    cells = []
    for figure in figures:
        if figure is None:
            cells.append(Cell(NONE))
            continue
        low, high = figure["interval"] or (0, 0)
        one = "trainings" not in figure
        error = (high - low) / 2 if one and figure["interval"] else figure["deviation"]
        shown = f"± {number(float(f'{error:.2g}'))}" if error else ""
        cells.append(Cell(number(figure["value"]), shown, figure["value"] == best))
    return cells


def _best(values: Sequence[float], better: str | None) -> float | None:
    """The best of them; None where nothing is better, or all are the same."""
    if better is None or len(set(values)) < 2:
        return None
    return min(values) if better == "lower" else max(values)


def cost(rows: Sequence[Row]) -> Table:
    """What training and drawing take, drawing with each row's own settings in float32."""
    batches = sorted({entry["batch"] for row in rows for entry in row["speed"]})
    columns: list[tuple[str, str, str | None, Callable[[Row], float | None], Callable[[float], str]]] = [
        ("Parameters", "of the networks that draw", "lower", lambda row: row["parameters"], count),
        ("Training", "seconds in training steps", None, lambda row: row["training_seconds"], duration),
        ("Steps", "optimiser steps", None, lambda row: row["training_steps"], count),
        ("Images seen", "in training", None, lambda row: row["images_seen"], count),
        ("Memory", "peak of training", "lower", lambda row: row["peak_memory_mib"], lambda v: f"{v:,.0f} MiB"),
    ]
    for batch in batches:
        columns.append(
            (f"Images/s, {batch}", f"drawn in batches of {batch}", "higher", _of(batch, "images_per_second"), number)
        )
    for batch in batches:
        for name in ("p50", "p95"):
            what = "half of the calls" if name == "p50" else "19 of 20 calls"
            meaning = f"{what} for {batch} image{'s' * (batch > 1)} are faster"
            columns.append(
                (f"{name.upper()}, {batch}", meaning, "lower", _of(batch, f"latency_{name}_ms"), milliseconds)
            )
    cells = []
    for _, _, better, value, form in columns:
        values = [value(row) for row in rows]
        there = [v for v in values if v is not None]
        best = _best(there, better)
        cells.append([Cell(NONE) if v is None else Cell(form(v), best=v == best) for v in values])
    return _table([c[0] for c in columns], [c[1] for c in columns], rows, cells)


def _of(batch: int, name: str) -> Callable[[Row], float | None]:
    """Row -> what was timed at this batch size with the row's own settings."""
    return lambda row: next((e[name] for e in row["speed"] if e["default"] and e["batch"] == batch), None)


def pareto(rows: Sequence[Row]) -> Table:
    """The settings that nothing beats in Frechet distance, latency and time an image at once, best distance first."""
    points = [(row, entry) for row in rows for entry in row["speed"] if entry["front"]]
    points.sort(key=lambda point: point[1]["frechet"])
    columns = {
        "Setting": setting,
        "Frechet": lambda entry: number(entry["frechet"]),
        "Latency": lambda entry: milliseconds(entry["latency_p50_ms"]),
        "Images/s": lambda entry: number(entry["images_per_second"]),
    }
    meaning = ("of drawing", "distance", "median of a call", "drawn")
    return Table(list(columns), meaning, [(row, [Cell(form(e)) for form in columns.values()]) for row, e in points])


def _table(
    names: Sequence[str], meaning: Sequence[str], rows: Sequence[Row], columns: Sequence[Sequence[Cell]]
) -> Table:
    return Table(names, meaning, [(row, [column[i] for column in columns]) for i, row in enumerate(rows)])


def count(value: float) -> str:
    """1.07 M, 42.1 k, 512."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """90 s, 12.5 min, 2.1 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def milliseconds(value: float) -> str:
    """0.52 ms, 120 ms, 2.1 s."""
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"

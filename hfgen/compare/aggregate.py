"""Several trainings of one configuration as one row: means, and how far trainings lie apart."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

COUNTED = ("training_seconds", "images_seen", "peak_memory_mib")
"""Of a training, averaged; parameters and steps are the same in all."""
SETTING = ("batch", "dtype", "steps", "scheduler", "default")
"""What an entry of `speed` was measured with; the rest is averaged."""


def pooled(rows: Mapping[int, Row]) -> dict[str, Any]:
    """One row of report.json for the rows of trainings that differ in their seed alone, by seed.

    Numbers are means over the trainings that have them all; a figure's interval reaches from the lowest training to the
    highest, and its deviation is the sample standard deviation among them. Trainings that failed, or that draw nothing
    while others do, are told in the notes and not counted. A single row comes back as it is, with its seed.
    """
    best = next((s for s in ("measured", "no samples") if any(row["status"] == s for row in rows.values())), "failed")
    counted = {seed: row for seed, row in rows.items() if row["status"] == best}
    first, *others = counted.values()
    whole = {**first, "seeds": list(counted), "notes": _notes(rows)}
    if not others or best == "failed":
        return whole
    every = [first, *others]
    return {
        **whole,
        **{name: statistics.fmean(row[name] for row in every) for name in COUNTED},
        "figures": _figures([row["figures"] for row in every]),
        "speed": _speed([row["speed"] for row in every]),
        "abilities": [name for name in first["abilities"] if all(name in row["abilities"] for row in others)],
    }


def _notes(rows: Mapping[int, Row]) -> list[str]:
    """What is said of the trainings, with the seeds it is said of where there are several."""
    said: dict[str, list[int]] = {}
    for seed, row in rows.items():
        for note in row["notes"]:
            said.setdefault(note, []).append(seed)
    return [
        note if len(seeds) == len(rows) else f"{note} (seed {', '.join(map(str, seeds))})"
        for note, seeds in said.items()
    ]


def _figures(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that all trainings have."""
    found = {}
    for metric, figure in each[0].items():
        if all(metric in figures for figures in each):
            values = [figures[metric]["value"] for figures in each]
            about = {"value": statistics.fmean(values), "interval": [min(values), max(values)]}
            found[metric] = {**figure, **about, "deviation": statistics.stdev(values), "trainings": values}
    return found


def _speed(each: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The settings that were timed for all trainings."""
    keyed = [{tuple(entry[name] for name in SETTING): entry for entry in entries} for entries in each]
    found = []
    for key, entry in keyed[0].items():
        if not all(key in entries for entries in keyed):
            continue
        same = [entries[key] for entries in keyed]
        measured = [name for name in entry if name not in SETTING]
        values = {name: [e[name] for e in same] for name in measured}
        means = {name: None if None in v else statistics.fmean(v) for name, v in values.items()}
        found.append({**dict(zip(SETTING, key, strict=True)), **means})
    return found

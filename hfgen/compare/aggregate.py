"""Aggregate several trainings of one configuration, which differ in their seed, into one row of a report."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .rows import Row

TRAINING_MEANS = ("training_seconds", "images_seen", "peak_memory_mib")
"""Keys of a training whose mean is taken, besides its steps. Parameters are the same in all trainings."""
SETTING = ("batch", "dtype", "steps", "scheduler", "default")
"""Keys of an entry of `speed` that state the setting; the mean of the other keys is taken."""


def aggregate(rows: Mapping[int, Row]) -> dict[str, Any]:
    """Return one row of report.json for several trainings of a configuration.

    A metric's value is its mean over the trainings. Its interval reaches from the lowest training to the highest, and
    its deviation is the sample standard deviation. Metrics and settings that a training lacks are left out. Trainings
    that failed, or that draw no samples while others do, are not averaged; the notes name their seeds. `trainings` of
    a metric and of the row hold the values of each training: verdicts are based on them.

    Args:
        rows: seed -> row. A single row is returned as it is, with its seed.
    """
    statuses = {row["status"] for row in rows.values()}
    best = next((status for status in ("measured", "no samples") if status in statuses), "failed")
    complete = {seed: row for seed, row in rows.items() if row["status"] == best}
    first, *others = complete.values()
    result = {**first, "seeds": list(complete), "notes": _notes(rows)}
    if not others or best == "failed":
        return result
    trainings = [first, *others]
    return {
        **result,
        **{name: statistics.fmean(row[name] for row in trainings) for name in TRAINING_MEANS},
        "trainings": {name: [row[name] for row in trainings] for name in TRAINING_MEANS},
        "training_steps": round(statistics.fmean(row["training_steps"] for row in trainings)),
        "figures": _metrics([row["figures"] for row in trainings]),
        "speed": _speed([row["speed"] for row in trainings]),
        "abilities": [name for name in first["abilities"] if all(name in row["abilities"] for row in others)],
    }


def _notes(rows: Mapping[int, Row]) -> list[str]:
    """Return the notes of all rows, each once; a note that not all rows have names its seeds."""
    seeds_of: dict[str, list[int]] = {}
    for seed, row in rows.items():
        for note in row["notes"]:
            seeds_of.setdefault(note, []).append(seed)
    return [
        note if len(seeds) == len(rows) else f"{note} (seed {', '.join(map(str, seeds))})"
        for note, seeds in seeds_of.items()
    ]


def _metrics(trainings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics that all trainings have."""
    result = {}
    for name, entry in trainings[0].items():
        if all(name in metrics for metrics in trainings):
            values = [metrics[name]["value"] for metrics in trainings]
            summary = {"value": statistics.fmean(values), "interval": [min(values), max(values)]}
            result[name] = {**entry, **summary, "deviation": statistics.stdev(values), "trainings": values}
    return result


def _speed(trainings: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the entries of the settings that were timed for all trainings."""
    by_setting = [{tuple(entry[name] for name in SETTING): entry for entry in entries} for entries in trainings]
    result = []
    for setting, entry in by_setting[0].items():
        if not all(setting in entries for entries in by_setting):
            continue
        repeats = [entries[setting] for entries in by_setting]
        values = {name: [repeat[name] for repeat in repeats] for name in entry if name not in SETTING}
        means = {name: _mean(each) for name, each in values.items()}
        result.append({**dict(zip(SETTING, setting, strict=True)), **means})
    return result


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of mappings key by key; None if one is missing."""
    if None in values:
        return None
    if isinstance(values[0], Mapping):
        return {key: statistics.fmean(value[key] for value in values) for key in values[0]}
    return statistics.fmean(values)

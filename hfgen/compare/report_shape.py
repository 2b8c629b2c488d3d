"""The shape of report.json: which values a report must hold so that it can be read by rules and recommendations.

The keys are those that `hfgen.compare.report` writes; a report may come from anybody.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..disk.kinds import Holds, by_name, entry, listed, number, optional, pair, positive, text, truth

FIGURE = entry(
    {
        "value": number,
        "interval": optional(pair),
        "deviation": optional(number),
        "trainings": optional(listed(number)),
    },
    frozenset({"value"}),
)
SPEED = entry(
    {
        "batch": positive,
        "dtype": text,
        "steps": optional(positive),
        "scheduler": optional(text),
        "default": truth,
        "images_per_second": positive,
        "latency_p50_ms": positive,
        "latency_p95_ms": positive,
        "frechet": optional(number),
        "distances": optional(by_name(number)),
    },
    frozenset({"batch", "dtype", "latency_p95_ms"}),
)
ROW: Mapping[str, Holds] = {
    **dict.fromkeys(("family", "name", "command"), text),
    **dict.fromkeys(("study", "status", "folder"), optional(text)),
    **dict.fromkeys(("parameters", "training_seconds"), positive),
    **dict.fromkeys(("images_seen", "peak_memory_mib"), optional(positive)),
    "abilities": listed(text),
    "figures": by_name(FIGURE),
    "speed": listed(SPEED),
    "trainings": optional(by_name(listed(positive))),
}
"""Keys of a row whose model was measured, and whether a value of each can be right."""

SAVED_ROW: Mapping[str, Holds] = {
    "key": entry({}),
    "row": entry(
        {**ROW, "training_seconds": number, "notes": listed(text)},  # a short training rounds to 0 seconds
        frozenset({*ROW, "notes", "status"} - {"trainings"}),
    ),
}
"""What a file of `rows/` holds: a row, and what it belongs to."""


def check_report(report: Any, file: Path) -> None:
    """Refuse a report whose values no rule can be computed from. Keys that a row lacks are not looked at.

    Raises:
        ValueError: names the file, the row, the key and the value.
    """
    rows = report.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} is no report of hfgen compare: give its report.json.")
    for place, row in enumerate(rows, 1):
        for key, holds in ROW.items() if row.get("status", "measured") == "measured" else ():
            if key in row and not holds(row[key]):
                raise ValueError(f"{file} is damaged: row {place} has {key}={str(row[key])[:60]!r}. Make it again.")
        lengths = {len(values) for values in (row.get("trainings") or {}).values()}
        if len(lengths) > 1:
            raise ValueError(f"{file} is damaged: row {place} has trainings of different numbers. Make it again.")
    if not isinstance(report.get("protocol", {}), dict) or not isinstance(report.get("hardware", ""), str):
        raise ValueError(f"{file} is damaged: its protocol or its hardware is no text. Make it again.")

"""The shape of report.json: which values a report must hold so that it can be read by rules and recommendations.

The keys are those that `hfgen.compare.report` writes; a report may come from anybody.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Holds = Callable[[Any], bool]
"""Whether a value is of a kind."""


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _optional(holds: Holds) -> Holds:
    return lambda value: value is None or holds(value)


def _listed(holds: Holds) -> Holds:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _entry(fields: Mapping[str, Holds], needed: frozenset[str] = frozenset()) -> Holds:
    def holds(value: Any) -> bool:
        if not isinstance(value, dict) or needed - value.keys():
            return False
        return all(known(value[name]) for name, known in fields.items() if name in value)

    return holds


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _by_name(holds: Holds) -> Holds:
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


FIGURE = _entry(
    {
        "value": _number,
        "interval": _optional(_pair),
        "deviation": _optional(_number),
        "trainings": _optional(_listed(_number)),
    },
    frozenset({"value"}),
)
SPEED = _entry(
    {
        "batch": _positive,
        "dtype": _text,
        "steps": _optional(_positive),
        "scheduler": _optional(_text),
        "default": lambda value: isinstance(value, bool),
        "images_per_second": _positive,
        "latency_p50_ms": _positive,
        "latency_p95_ms": _positive,
        "frechet": _optional(_number),
        "distances": _optional(_by_name(_number)),
    },
    frozenset({"batch", "dtype", "latency_p95_ms"}),
)
ROW: Mapping[str, Holds] = {
    **dict.fromkeys(("family", "name", "command"), _text),
    **dict.fromkeys(("study", "status", "folder"), _optional(_text)),
    **dict.fromkeys(("parameters", "training_seconds"), _positive),
    **dict.fromkeys(("images_seen", "peak_memory_mib"), _optional(_positive)),
    "abilities": _listed(_text),
    "figures": _by_name(FIGURE),
    "speed": _listed(SPEED),
    "trainings": _optional(_by_name(_listed(_positive))),
}
"""Keys of a row whose model was measured, and whether a value of each can be right."""


def check_report(report: Any, file: Path) -> None:
    """Refuse a report whose values no rule can be computed from. Keys that a row lacks are not looked at.

    Raises:
        ValueError: names the file, the row, the key and the value.
    """
    rows = report.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} is no report of hfgen compare: give its report.json.")
    for number, row in enumerate(rows, 1):
        for key, holds in ROW.items() if row.get("status", "measured") == "measured" else ():
            if key in row and not holds(row[key]):
                raise ValueError(f"{file} is damaged: row {number} has {key}={str(row[key])[:60]!r}. Make it again.")
        lengths = {len(values) for values in (row.get("trainings") or {}).values()}
        if len(lengths) > 1:
            raise ValueError(f"{file} is damaged: row {number} has trainings of different numbers. Make it again.")
    if not isinstance(report.get("protocol", {}), dict) or not isinstance(report.get("hardware", ""), str):
        raise ValueError(f"{file} is damaged: its protocol or its hardware is no text. Make it again.")

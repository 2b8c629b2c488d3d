"""Which model, when? Answered from the measurements of an `hfgen compare` report."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .rules import CLOSE, figure

SHIPPED = Path(__file__).with_name("mnist.json")
"""The report that is used where none is given."""

ABILITIES = ("sampling", "likelihood", "reconstruction", "latent-edit", "class-conditional")
"""What `--needs` may name, and reports say of each model."""

MILLISECONDS = {"ms": 1.0, "s": 1e3}
SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
MEBIBYTES = {"MB": 1e6 / 2**20, "MiB": 1.0, "GB": 1e9 / 2**20, "GiB": 1024.0}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A trained model of a report and one way to draw from it; `frechet` is the distance of images drawn so."""

    row: Mapping[str, Any]
    speed: Mapping[str, Any]
    frechet: float | None

    @property
    def model(self) -> str:
        """Family, name and size."""
        count = self.row["parameters"]
        size = "size unknown" if count is None else f"{count / 1e6:.2g} M parameters"
        family = "" if self.row["name"] == self.row["family"] else f"{self.row['family']}, "
        return f"{self.row['name']} ({family}{size})"

    @property
    def drawn(self) -> str:
        """Scheduler, steps and precision."""
        steps, scheduler = self.speed.get("steps") or 1, self.speed.get("scheduler")
        count = f"{steps} step{'s' * (steps > 1)}"
        way = "one pass" if steps == 1 and not scheduler else f"{scheduler or 'its scheduler'} at {count}"
        return f"{way} in {self.speed['dtype']}"


@dataclasses.dataclass(frozen=True)
class Wish:
    """One thing asked for: how much a setting has of it, and how much it may have; or an ability."""

    text: str
    of: Callable[[Setting], float | None] | None = None
    limit: float = 0.0
    ability: str | None = None
    shown: Callable[[float], str] = str

    def excess(self, setting: Setting) -> float:
        """0 where it is met, else the log of the factor by which it is missed; 1 for an ability, 5 if not measured."""
        if self.ability is not None:
            return 0.0 if self.ability in setting.row["abilities"] else 1.0
        value = self.of(setting)
        return 5.0 if value is None else max(0.0, math.log(max(value, 1e-9) / self.limit))

    def found(self, setting: Setting) -> str:
        """What the setting has."""
        if self.ability is not None:
            return "offered" if not self.excess(setting) else f"offers {', '.join(setting.row['abilities']) or 'none'}"
        value = self.of(setting)
        return "not measured" if value is None else self.shown(value)


def read(path: str | None) -> dict[str, Any]:
    """A report of `hfgen compare`, of the rows that were measured; None: the shipped one. Folders of pipelines are made
    relative to where it is read from.

    Raises:
        ValueError: there is no such file, or it is no report.
    """
    file = SHIPPED if path is None else Path(path)
    if not file.is_file():
        make = "hfgen compare makes one: hfgen compare --help"
        if path is None:
            raise ValueError(f"This installation comes without measurements. Give --report report.json; {make}.")
        raise ValueError(f"There is no report {path}; {make}.")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        rows = report["rows"]
        needed = {"family", "name", "command", "parameters", "training_seconds", "figures", "speed", "abilities"}
        lacking = {key for row in rows for key in needed - row.keys()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is no report of hfgen compare: give its report.json.") from None
    if not rows or lacking:
        what = f"its rows lack {', '.join(sorted(lacking))}" if lacking else "it has no rows"
        raise ValueError(f"{file} is no complete report of hfgen compare: {what}. Make it again.")
    measured = [row for row in rows if row.get("status", "measured") == "measured"]
    for row in measured:  # the shipped report came without its folders
        row["folder"] = str(file.parent / row["folder"]) if path is not None and row.get("folder") else None
    return {**report, "rows": measured}


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms"


def _duration(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def _memory(value: float) -> str:
    return f"{value:.0f} MiB" if value < 1024 else f"{value / 1024:.3g} GiB"


NUMBERS: dict[str, tuple[Mapping[str, float], Callable[[Setting], float | None], Callable[[float], str]]] = {
    "latency": (MILLISECONDS, lambda setting: setting.speed["latency_p95_ms"], _milliseconds),
    "train_budget": (SECONDS, lambda setting: setting.row["training_seconds"], _duration),
    "memory": (MEBIBYTES, lambda setting: setting.row.get("peak_memory_mib"), _memory),
}
"""Wishes that are numbers: units, what a setting has of it, and how that is written."""


# --- choosing ---------------------------------------------------------------------------------------------------------


def settings(report: Mapping[str, Any]) -> list[Setting]:
    """Every model of the report in every way that single images were drawn from it.

    The distance of a speed measured without one is that of the same scheduler, steps and precision at another batch
    size, or the row's own figure if it was measured so.
    """
    found = []
    for row in report["rows"]:
        known = {_way(speed): speed["frechet"] for speed in row["speed"] if speed.get("frechet") is not None}
        for speed in row["speed"]:
            if speed["batch"] == 1:
                own = (figure(row, "frechet") or {}).get("value") if speed.get("default") else None
                found.append(Setting(row, speed, known.get(_way(speed), own)))
    return found


def _way(speed: Mapping[str, Any]) -> tuple:
    return speed.get("scheduler"), speed.get("steps"), speed["dtype"]


def recommend(report: Mapping[str, Any], asked: Sequence[Wish]) -> tuple[str, bool]:
    """What to take and why, and whether it meets every wish.

    Of the settings that meet every wish that with the smallest Frechet distance is taken. Where there is none, the
    nearest is told: fewest wishes missed, then the smallest factor by which, then distance.

    Raises:
        ValueError: no setting with a known distance.
    """
    ranked = [setting for setting in settings(report) if setting.frechet is not None]
    if not ranked:
        raise ValueError("This report has no Frechet distance of images drawn one by one, so nothing can be ranked.")
    ranked.sort(key=lambda setting: (setting.frechet, setting.speed["latency_p95_ms"]))
    fitting = [setting for setting in ranked if not any(wish.excess(setting) for wish in asked)]
    where = f"Measured on {report.get('hardware', 'unknown hardware')}; other hardware, other figures."
    if not fitting:
        return f"{_nothing(ranked, asked)}\n{where}", False
    best = fitting[0]
    rest = next((setting for setting in fitting if setting.row is not best.row), None)
    reasons = [
        ("quality", f"Frechet distance {best.frechet:.4g}, the best of {_counted(fitting)} that meet every wish")
    ]
    reasons += [(wish.text, wish.found(best)) for wish in asked]
    reasons += [("train it", best.row["command"]), ("draw", _sample_command(best))]
    lines = [f"Take {best.model}, {best.drawn}.", *_indented(reasons), "", *_runner_up(best, rest)]
    out = _ruled_out(report, ranked, fitting, asked)
    return "\n".join([*lines, *out, "", where]), True


def _counted(found: Sequence[Setting]) -> str:
    models = len({id(setting.row) for setting in found})
    return f"{len(found)} setting{'s' * (len(found) > 1)} of {models} model{'s' * (models > 1)}"


def _indented(pairs: Sequence[tuple[str, str]]) -> list[str]:
    wide = max(len(name) for name, _ in pairs)
    return [f"  {name:{wide}}  {text}" for name, text in pairs]


def _sample_command(setting: Setting) -> str:
    speed, words = setting.speed, ["hfgen sample", setting.row.get("folder") or "FOLDER_OF_THE_TRAINING"]
    if speed.get("scheduler"):
        words.append(f"--scheduler {speed['scheduler']}")
    if speed.get("steps") and (speed.get("scheduler") or speed["steps"] > 1):
        words.append(f"--steps {speed['steps']}")
    return " ".join([*words, f"--dtype {speed['dtype']}"])


def _runner_up(best: Setting, other: Setting | None) -> list[str]:
    """What is lost and won by taking the other."""
    if other is None:
        return ["No other model meets every wish."]
    interval = (figure(best.row, "frechet") or {}).get("interval")
    close = " (within the error of the first)" if interval and other.frechet <= interval[1] else ""
    lost, won = [f"Frechet distance {other.frechet:.4g} against {best.frechet:.4g}{close}"], []
    for name, (_, of, shown) in NUMBERS.items():
        mine, its = of(best), of(other)
        if mine and its and abs(its / mine - 1) > CLOSE:
            side = lost if its > mine else won
            side.append(f"{name.replace('train_budget', 'training')} {shown(its)} against {shown(mine)}")
    mine, its = set(best.row["abilities"]), set(other.row["abilities"])
    lost += sorted(mine - its)
    won += sorted(its - mine)
    told = [("loses", ", ".join(lost)), *([("wins", ", ".join(won))] if won else [])]
    return [f"Runner-up: {other.model}, {other.drawn}.", *_indented(told)]


def _ruled_out(
    report: Mapping[str, Any], ranked: Sequence[Setting], fitting: Sequence[Setting], asked: Sequence[Wish]
) -> list[str]:
    """A line for each model of which no setting fits, by its nearest one."""
    lines = []
    for row in report["rows"]:
        mine = [setting for setting in ranked if setting.row is row]
        if mine and not any(setting.row is row for setting in fitting):
            nearest = min(mine, key=lambda setting: _distance(setting, asked))
            lines.append(f"Ruled out: {nearest.model}, {nearest.drawn}: {_missed(nearest, asked)}.")
    return lines


def _distance(setting: Setting, asked: Sequence[Wish]) -> tuple[int, float, float]:
    excess = [wish.excess(setting) for wish in asked]
    return sum(value > 0 for value in excess), sum(excess), setting.frechet


def _missed(setting: Setting, asked: Sequence[Wish]) -> str:
    return "; ".join(f"{wish.text} ({wish.found(setting)})" for wish in asked if wish.excess(setting))


def _nothing(ranked: Sequence[Setting], asked: Sequence[Wish]) -> str:
    """The nearest setting, and the wishes that rule it out."""
    nearest = min(ranked, key=lambda setting: _distance(setting, asked))
    missed = [wish for wish in asked if wish.excess(nearest)]
    lines = [
        f"Nothing fits. Nearest is {nearest.model}, {nearest.drawn}, Frechet distance {nearest.frechet:.4g};",
        f"what rules it out: {_missed(nearest, asked)}.",
    ]
    alone = [wish.text for wish in missed if all(wish.excess(setting) for setting in ranked)]
    if alone:
        lines.append(f"No model of the report meets {' or '.join(alone)}, whatever else is given up.")
    return "\n".join([*lines, f"Without {' and '.join(wish.text for wish in missed)} it is the one to take.", ""])

"""Which model, when? The recommendation from the measurements of an `hfgen compare` report."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console.text import escaped_texts, shell_text
from ..disk.reading import TEXT_BYTES, read_object
from ..utils.ranges import Amount
from . import formats
from .chance import differ
from .formats import plural
from .report_shape import check_report
from .rows import Row, feature_networks, frechet, ranking_entry
from .rules import TOLERANCE

SHIPPED = Path(__file__).with_name("mnist.json")
"""The report that is used without --report."""

ABILITIES = ("sampling", "likelihood", "reconstruction", "latent-edit", "class-conditional")
"""Names that `--needs` takes and that `abilities` of a report's rows hold."""

MORE_TRAINING = 1.25
"""A budget of so many times the longest training within it is an extrapolation, which is said."""

REQUIRED_KEYS = {"family", "name", "command", "parameters", "training_seconds", "figures", "speed", "abilities"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A trained model of a report with one way to sample from it: scheduler, steps, precision.

    Attributes:
        row: the model.
        speed: the entry of the row's `speed`, for single images.
        frechet: Frechet distance of these samples, by several networks its geometric mean; None if it was not measured.
    """

    row: Row
    speed: Mapping[str, Any]
    frechet: float | None

    @property
    def model(self) -> str:
        """Name, family and size."""
        count = self.row["parameters"]
        size = "size unknown" if count is None else f"{count / 1e6:.2g} M parameters"
        family = "" if self.row["name"] == self.row["family"] else f"{self.row['family']}, "
        return f"{self.row['name']} ({family}{size})"

    @property
    def sampler(self) -> str:
        """Scheduler, steps and precision."""
        steps, scheduler = self.speed.get("steps") or 1, self.speed.get("scheduler")
        one_pass = steps == 1 and not scheduler
        method = "one pass" if one_pass else f"{scheduler or 'its scheduler'} at {plural(steps, 'step')}"
        return f"{method} in {self.speed['dtype']}"

    @property
    def distance_text(self) -> str:
        """The distance, with that by each network in brackets if there are several."""
        by_network = self.speed.get("distances") or {}
        each = ", ".join(f"{value:.4g} by {label.split(',')[0]}" for label, value in by_network.items())
        return f"{self.frechet:.4g} ({each})" if len(by_network) > 1 else f"{self.frechet:.4g}"

    @property
    def command(self) -> str:
        """The `hfgen sample` command."""
        words = ["hfgen sample", shell_text([self.row.get("folder") or "FOLDER_OF_THE_TRAINING"])]
        if self.speed.get("scheduler"):
            words.append(f"--scheduler {self.speed['scheduler']}")
        if self.speed.get("steps") and (self.speed.get("scheduler") or self.speed["steps"] > 1):
            words.append(f"--num_inference_steps {self.speed['steps']}")
        return " ".join([*words, f"--dtype {self.speed['dtype']}"])


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number that requirements may limit.

    Attributes:
        name: its name in the text.
        amounts: texts of it, such as "20ms", as numbers in the report's unit.
        value: setting -> number in the report's unit; None if it was not measured.
        text: number in the report's unit -> text.
    """

    name: str
    amounts: Amount
    value: Callable[[Setting], float | None]
    text: Callable[[float], str]


QUANTITIES = {
    "latency": Quantity(
        "latency", Amount({"ms": 1.0, "s": 1e3}), lambda setting: setting.speed["latency_p95_ms"], formats.milliseconds
    ),
    "train_budget": Quantity(
        "training",
        Amount({"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}),
        lambda setting: setting.row["training_seconds"],
        formats.duration,
    ),
    "memory": Quantity(
        "memory",
        Amount({"MB": 1e6 / 2**20, "MiB": 1.0, "GB": 1e9 / 2**20, "GiB": 1024.0}),
        lambda setting: setting.row.get("peak_memory_mib"),
        formats.mebibytes,
    ),
}
"""Option of `hfgen recommend` -> the quantity that it limits."""


@dataclasses.dataclass(frozen=True)
class Requirement:
    """An upper limit of a quantity, or an ability.

    Attributes:
        text: the option as it was written.
        quantity, limit: the quantity, and its largest value in the report's unit.
        ability: one of `ABILITIES`, in the place of a quantity.
    """

    text: str
    quantity: Quantity | None = None
    limit: float = 0.0
    ability: str | None = None

    def excess(self, setting: Setting) -> float:
        """Return 0 if the setting meets the requirement, else by how much it does not.

        For a quantity this is the log of value / limit, or 5 if it was not measured; for an ability it is 1.
        """
        if self.ability is not None:
            return 0.0 if self.ability in setting.row["abilities"] else 1.0
        value = self.quantity.value(setting)
        return 5.0 if value is None else max(0.0, math.log(max(value, 1e-9) / self.limit))

    def value_text(self, setting: Setting) -> str:
        """Return the setting's value, or its abilities if it lacks the required one."""
        if self.ability is not None:
            return "offered" if not self.excess(setting) else f"offers {', '.join(setting.row['abilities']) or 'none'}"
        value = self.quantity.value(setting)
        return "not measured" if value is None else self.quantity.text(value)


def load_report(path: str | None) -> dict[str, Any]:
    """Load a report of `hfgen compare`, without the rows that were not measured.

    Args:
        path: report.json, relative to which pipelines' folders are found; None: the shipped report, without folders.

    Raises:
        ValueError: there is no such file, or it is no complete report.
    """
    file = SHIPPED if path is None else Path(path)
    if not file.exists():
        fix = "hfgen compare makes one: hfgen compare --help"
        if path is None:
            raise ValueError(f"This installation comes without measurements. Give --report report.json; {fix}.")
        raise ValueError(f"There is no report {path}; {fix}.")
    try:
        report = read_object(file, TEXT_BYTES)
    except ValueError as error:
        raise ValueError(f"{file} is no report of hfgen compare: give its report.json. ({error})") from error
    check_report(report, file)
    report = escaped_texts(report)
    rows = report["rows"]
    missing = {key for row in rows for key in REQUIRED_KEYS - row.keys()}
    if not rows or missing:
        problem = f"its rows lack {', '.join(sorted(missing))}" if missing else "it has no rows"
        raise ValueError(f"{file} is no complete report of hfgen compare: {problem}. Make it again.")
    measured = [row for row in rows if row.get("status", "measured") == "measured"]
    for row in measured:
        row["folder"] = str(file.parent / row["folder"]) if path is not None and row.get("folder") else None
    return {**report, "rows": measured}


def settings(report: Mapping[str, Any]) -> list[Setting]:
    """Return every model of the report with every way to sample single images that was timed.

    A setting that was timed without a Frechet distance takes that of the same scheduler, steps and precision at another
    batch size, or the row's own distance if it was measured with this setting.
    """
    result = []
    for row in report["rows"]:
        distances = {_sampler_key(e): e["frechet"] for e in row["speed"] if e.get("frechet") is not None}
        for entry in row["speed"]:
            if entry["batch"] == 1:
                own = frechet(row) if entry.get("default") else None
                result.append(Setting(row, entry, distances.get(_sampler_key(entry), own)))
    return result


def _sampler_key(entry: Mapping[str, Any]) -> tuple:
    return entry.get("scheduler"), entry.get("steps"), entry["dtype"]


def recommend(report: Mapping[str, Any], requirements: Sequence[Requirement]) -> tuple[str, bool]:
    """Return a text that names a setting and explains the choice, and whether the setting meets every requirement.

    The choice is the setting with the smallest Frechet distance among those that meet every requirement; by several
    feature networks, the geometric mean of the distances. If none does,
    the text names the nearest: fewest requirements missed, then the smallest total excess, then distance.

    Raises:
        ValueError: no setting has a Frechet distance.
    """
    ranking = [setting for setting in settings(report) if setting.frechet is not None]
    if not ranking:
        raise ValueError("This report has no Frechet distance of images drawn one by one, so nothing can be ranked.")
    ranking.sort(key=lambda setting: (setting.frechet, setting.speed["latency_p95_ms"]))
    matches = [setting for setting in ranking if not any(each.excess(setting) for each in requirements)]
    limits = "\n".join(_limits_of_validity(report, ranking, requirements))
    if not matches:
        return f"{_no_match(ranking, requirements)}\n{limits}", False
    best = matches[0]
    runner_up = next((setting for setting in matches if setting.row is not best.row), None)
    models = len({id(setting.row) for setting in matches})
    count = f"{plural(len(matches), 'setting')} of {plural(models, 'model')}"
    reasons = [("quality", f"Frechet distance {best.distance_text}, the best of {count} that meet every requirement")]
    reasons += [(each.text, each.value_text(best)) for each in requirements]
    reasons += [("train it", best.row["command"]), ("sample", best.command)]
    lines = [f"Take {best.model}, {best.sampler}.", *_aligned(reasons), "", *_runner_up(best, runner_up)]
    lines += _exclusions(report, ranking, matches, requirements)
    return "\n".join([*lines, "", limits]), True


def _aligned(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return an indented line for each pair, the second texts aligned."""
    width = max(len(name) for name, _ in pairs)
    return [f"  {name:{width}}  {text}" for name, text in pairs]


def _runner_up(best: Setting, other: Setting | None) -> list[str]:
    """Return lines about the best setting of another model: what it loses and wins against `best`."""
    if other is None:
        return ["No other model meets every requirement."]
    losses, wins = [f"Frechet distance {other.distance_text} against {best.frechet:.4g}{_doubt(best, other)}"], []
    for quantity in QUANTITIES.values():
        ours, theirs = quantity.value(best), quantity.value(other)
        if ours and theirs and abs(theirs / ours - 1) > TOLERANCE:
            side = losses if theirs > ours else wins
            side.append(f"{quantity.name} {quantity.text(theirs)} against {quantity.text(ours)}")
    ours, theirs = set(best.row["abilities"]), set(other.row["abilities"])
    losses += sorted(ours - theirs)
    wins += sorted(theirs - ours)
    pairs = [("loses", ", ".join(losses)), *([("wins", ", ".join(wins))] if wins else [])]
    return [f"Runner-up: {other.model}, {other.sampler}.", *_aligned(pairs)]


def _doubt(best: Setting, other: Setting) -> str:
    """Return how sure it is that the distance of `best` is lower: the spread of the rows between trainings decides."""
    trainings = [_trainings(setting) for setting in (best, other)]
    apart = differ(*trainings)
    if apart is None:
        return " (one training each: the next may reverse it)"
    return "" if apart else f" (within chance, of {min(map(len, trainings))} trainings each)"


def _trainings(setting: Setting) -> list[float]:
    """Return the distances of a row's trainings, moved to the mean of the setting; [] for a single training."""
    entry = ranking_entry(setting.row) or {}
    return [value - entry["value"] + setting.frechet for value in entry.get("trainings") or ()]


def _ranking_rule(rows: Sequence[Row]) -> str:
    """Return a line about what the order is by: all feature networks of the report."""
    networks = feature_networks(rows)
    if len(networks) > 1:
        return f"Ranked by the geometric mean of the Frechet distances of {' and '.join(networks)}."
    return (
        f"Ranked by one feature network, {networks[0] if networks else 'unnamed'}: this report carries no second one. "
        "A new hfgen compare measures by two, of which one sees blur and other faults of texture."
    )


def _limits_of_validity(
    report: Mapping[str, Any], ranking: Sequence[Setting], requirements: Sequence[Requirement]
) -> list[str]:
    """Return lines about what the answer does not know: longer trainings, other data, batches and hardware."""
    lines = [_ranking_rule(report["rows"])]
    for each in (each for each in requirements if each.quantity is QUANTITIES["train_budget"]):
        seconds = [setting.row["training_seconds"] for setting in ranking if not each.excess(setting)]
        if seconds and each.limit > MORE_TRAINING * max(seconds):
            lines.append(
                f"{each.text} allows more than this report knows: within it, the longest training took "
                f"{formats.duration(max(seconds))}. What more time would change was not measured, perhaps the order: "
                f"hfgen compare --train_budget {each.text.split(None, 1)[1].replace(' ', '')}."
            )
    data = {key: value for key, value in report.get("protocol", {}).items() if key in ("data", "size")}
    where = ", ".join(map(str, [*data.values(), report.get("hardware", "unknown hardware")]))
    return [
        *lines,
        f"Measured on {where}: latency of one image at a time, memory at the batch size of the training. Other data, "
        "sizes, batches and hardware give other values.",
    ]


def _exclusions(
    report: Mapping[str, Any],
    ranking: Sequence[Setting],
    matches: Sequence[Setting],
    requirements: Sequence[Requirement],
) -> list[str]:
    """Return a line for each model without a matching setting: what its nearest setting misses."""
    lines = []
    for row in report["rows"]:
        candidates = [setting for setting in ranking if setting.row is row]
        if candidates and not any(setting.row is row for setting in matches):
            nearest = min(candidates, key=lambda setting: _distance(setting, requirements))
            lines.append(f"Excluded: {nearest.model}, {nearest.sampler}: {_shortfalls(nearest, requirements)}.")
    return lines


def _distance(setting: Setting, requirements: Sequence[Requirement]) -> tuple[int, float, float]:
    """Return the order of settings that miss requirements: their number, total excess, Frechet distance."""
    excess = [each.excess(setting) for each in requirements]
    return sum(value > 0 for value in excess), sum(excess), setting.frechet


def _shortfalls(setting: Setting, requirements: Sequence[Requirement]) -> str:
    return "; ".join(f"{each.text} ({each.value_text(setting)})" for each in requirements if each.excess(setting))


def _no_match(ranking: Sequence[Setting], requirements: Sequence[Requirement]) -> str:
    """Return lines about the nearest setting and the requirements that it misses."""
    nearest = min(ranking, key=lambda setting: _distance(setting, requirements))
    missed = [each for each in requirements if each.excess(nearest)]
    lines = [
        "No setting meets every requirement.",
        f"The nearest is {nearest.model}, {nearest.sampler}, Frechet distance {nearest.distance_text};",
        f"it misses {_shortfalls(nearest, requirements)}.",
    ]
    impossible = [each.text for each in missed if all(each.excess(setting) for setting in ranking)]
    if impossible:
        lines.append(f"No model of the report meets {' or '.join(impossible)}, even without the other requirements.")
    options = " and ".join(each.text for each in missed)
    return "\n".join([*lines, f"Without {options} it would be the recommendation.", ""])

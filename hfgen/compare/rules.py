"""Rules of thumb of textbooks about families, checked against a report of `hfgen compare`."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .chance import LEVEL, MEAN, SPREAD, Statistic, relative_deviation
from .rows import Row, metric, ranking_entry

TOLERANCE = 0.05
"""Numbers count as equal if they differ by less than this share, whatever chance allows."""

FAMILY_GROUPS = {
    "VAE": ("vae",),
    "GAN": ("gan",),
    "diffusion": ("diffusion", "rectified_flow", "reflow", "flow_map"),
}
"""Group in textbooks -> families of hfgen. A rectified flow is diffusion's regression on a straight path."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of thumb: the best row in some quantity belongs to one of `groups`.

    Attributes:
        name: "topic: who is best".
        groups: keys of `FAMILY_GROUPS`.
        quantity: its name.
        measure: row -> {"value", and "trainings", those of several}; None if it was not measured.
        lower_is_better: whether the best row has the smallest value.
        statistic: what the value is of the trainings.
    """

    name: str
    groups: tuple[str, ...]
    quantity: str
    measure: Callable[[Row], Mapping[str, Any] | None]
    lower_is_better: bool
    statistic: Statistic = MEAN


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of checking a rule.

    Attributes:
        rule: its name.
        verdict: `held`, `failed`, `undecided` (the difference may be chance) or `unknown` (not measured).
        why: the values with their 95 % intervals.
    """

    rule: str
    verdict: str
    why: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A row's value of a rule's quantity, and of its trainings, with the sign that makes smaller better."""

    cost: float
    trainings: Sequence[float]
    group: str
    name: str

    def beats(self, other: "_Entry", statistic: Statistic, level: float) -> bool:
        """Return whether this row is better beyond chance, and by more than `TOLERANCE`."""
        if not (math.isfinite(self.cost) and math.isfinite(other.cost)):
            return math.isfinite(self.cost)
        if min(len(self.trainings), len(other.trainings)) < 2 or other.cost - self.cost <= TOLERANCE * abs(self.cost):
            return False
        return statistic.p_below(self.trainings, other.trainings) <= level

    def text(self, sign: int, statistic: Statistic) -> str:
        """Return name, value and interval."""
        if not math.isfinite(self.cost):
            return f"{self.name} none"
        value = f"{self.name} {sign * self.cost:.4g}"
        if len(self.trainings) < 2:
            return f"{value} (no spread known)"
        low, high = statistic.interval([sign * training for training in self.trainings])
        return f"{value} ({low:.4g} to {high:.4g})"


def check_rules(report: Mapping[str, Any]) -> list[Finding]:
    """Check each of `RULES`: compare the rows of its groups with the rows of the other groups.

    Families in no group of `FAMILY_GROUPS`, and rows of ablations, take no part. A rule holds if one of its own rows is
    better than every rival, and fails if a rival is better than each of its own rows: by more than `TOLERANCE`, and
    beyond chance. Each of the K rows may be that one, so every single test has the level `LEVEL` / K, and among equal
    families at most a share `LEVEL` of the rules is decided. Rows of a single training decide nothing, since the
    spread between trainings is not known.
    """
    return [_check(report, rule) for rule in RULES]


def _check(report: Mapping[str, Any], rule: Rule) -> Finding:
    sign = 1 if rule.lower_is_better else -1
    entries = sorted(_entries(report, rule, sign), key=lambda entry: entry.cost)
    values = ", ".join(entry.text(sign, rule.statistic) for entry in entries)
    own = [entry for entry in entries if entry.group in rule.groups]
    rivals = [entry for entry in entries if entry.group not in rule.groups]
    if not own or not rivals or not math.isfinite(entries[0].cost):
        return Finding(rule.name, "unknown", f"{rule.quantity}: {values or 'not measured'}; nothing to compare with")

    def best_of(some: Sequence[_Entry], others: Sequence[_Entry]) -> bool:
        level = LEVEL / len(entries)
        return any(all(entry.beats(other, rule.statistic, level) for other in others) for entry in some)

    verdict = "held" if best_of(own, rivals) else "failed" if best_of(rivals, own) else "undecided"
    return Finding(rule.name, verdict, f"{rule.quantity}: {values}")


def _entries(report: Mapping[str, Any], rule: Rule, sign: int) -> list[_Entry]:
    """Return an entry for each row that the rule is about and that has its quantity."""
    result = []
    for row in report["rows"]:
        if row.get("study", "families") != "families":
            continue
        group = next((group for group, families in FAMILY_GROUPS.items() if row["family"] in families), None)
        value = rule.measure(row)
        if group is not None and value is not None and value["value"] is not None:
            trainings = [sign * training for training in value.get("trainings") or ()]
            result.append(_Entry(sign * value["value"], trainings, group, row["name"]))
    return result


def _training_speed(row: Row) -> Mapping[str, Any] | None:
    images, seconds, each = row.get("images_seen"), row["training_seconds"], row.get("trainings") or {}
    if not (images and seconds):
        return None
    trainings = zip(each.get("images_seen", ()), each.get("training_seconds", ()), strict=True)
    return {"value": images / seconds, "trainings": [count / time for count, time in trainings]}


def _relative_deviation(row: Row) -> Mapping[str, Any] | None:
    trainings = (ranking_entry(row) or {}).get("trainings") or ()
    return {"value": relative_deviation(trainings), "trainings": trainings} if len(trainings) > 1 else None


def _edit_error(row: Row) -> Mapping[str, Any] | None:
    """Return the reconstruction error; infinity for a row without latent edits."""
    return metric(row, "reconstruction") if "latent-edit" in row["abilities"] else {"value": math.inf}


def _memory(row: Row) -> Mapping[str, Any]:
    return {"value": row.get("peak_memory_mib"), "trainings": (row.get("trainings") or {}).get("peak_memory_mib")}


STABILITY = "stability: diffusion"
RULES = (
    Rule("prototype: VAE", ("VAE",), "images a second in training", _training_speed, False),
    Rule("quality: GAN or diffusion", ("GAN", "diffusion"), "Frechet distance", ranking_entry, True),
    Rule("coverage: diffusion", ("diffusion",), "coverage", lambda row: metric(row, "coverage"), False),
    Rule(
        STABILITY,
        ("diffusion",),
        "deviation of the Frechet distance among trainings, relative to its mean",
        _relative_deviation,
        True,
        SPREAD,
    ),
    Rule("latent edits: VAE", ("VAE",), "reconstruction error of models with latent edits", _edit_error, True),
    Rule("few resources: VAE or small GAN", ("VAE", "GAN"), "MiB in training", _memory, True),
)


def rules_table(findings: Sequence[Finding]) -> str:
    """Write the findings as text, a line each, and how to measure the spread between trainings if the report lacks
    it."""
    width = max(len(finding.rule) for finding in findings)
    lines = [f"{finding.verdict:9}  {finding.rule:{width}}  {finding.why}" for finding in findings]
    lines += ["", "In brackets: 95 % intervals, of means over trainings, and of the deviation among them."]
    if any(finding.rule == STABILITY and finding.verdict == "unknown" for finding in findings):
        lines += ["One training says nothing of the next: several decide, hfgen compare --seeds 3."]
    elif any("no spread known" in finding.why for finding in findings):
        lines += ["No spread known: this report lacks the values of each training; a new hfgen compare has them."]
    return "\n".join(lines)

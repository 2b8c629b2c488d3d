"""Rules of thumb of textbooks about families, checked against a report of `hfgen compare`."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .rows import FRECHET, Row, metric

TOLERANCE = 0.05
"""Numbers without an interval count as equal if they differ by less than this share."""

FAMILY_GROUPS = {
    "VAE": ("vae",),
    "GAN": ("gan",),
    "diffusion": ("diffusion", "rectified_flow", "reflow"),
}
"""Group in textbooks -> families of hfgen. A rectified flow is diffusion's regression on a straight path."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of thumb: the best row in some quantity belongs to one of `groups`.

    Attributes:
        name: "topic: who is best".
        groups: keys of `FAMILY_GROUPS`.
        quantity: its name.
        measure: row -> {"value", and "interval" if there is one}; None if it was not measured.
        lower_is_better: whether the best row has the smallest value.
    """

    name: str
    groups: tuple[str, ...]
    quantity: str
    measure: Callable[[Row], Mapping[str, Any] | None]
    lower_is_better: bool


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of checking a rule.

    Attributes:
        rule: its name.
        verdict: `held`, `failed`, `undecided` (the difference is within the error) or `unknown` (not measured).
        why: the values.
    """

    rule: str
    verdict: str
    why: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A row's value of a rule's quantity, with the sign that makes smaller better."""

    cost: float
    group: str
    name: str
    interval: Sequence[float] | None


def check_rules(report: Mapping[str, Any]) -> list[Finding]:
    """Check each of `RULES`: compare the best row of its groups with the best row of the other groups.

    Families in no group of `FAMILY_GROUPS`, and rows of ablations, take no part. A rule is undecided if the second row
    lies within the interval of the better one (95 %, or the range of several trainings); without an interval, if the
    two differ by less than `TOLERANCE`.
    """
    return [_check(report, rule) for rule in RULES]


def _check(report: Mapping[str, Any], rule: Rule) -> Finding:
    sign = 1 if rule.lower_is_better else -1
    entries = []
    for row in report["rows"]:
        if row.get("study", "families") != "families":
            continue
        group = next((group for group, families in FAMILY_GROUPS.items() if row["family"] in families), None)
        value = rule.measure(row)
        if group is not None and value is not None and value["value"] is not None:
            entries.append(_Entry(sign * value["value"], group, row["name"], value.get("interval")))
    entries.sort(key=lambda entry: entry.cost)
    values = ", ".join(
        f"{entry.name} {f'{sign * entry.cost:.4g}' if math.isfinite(entry.cost) else 'none'}" for entry in entries
    )
    own = next((entry for entry in entries if entry.group in rule.groups), None)
    rival = next((entry for entry in entries if entry.group not in rule.groups), None)
    if own is None or rival is None or not math.isfinite(entries[0].cost):
        return Finding(rule.name, "unknown", f"{rule.quantity}: {values or 'not measured'}; nothing to compare with")
    best, second = sorted((own, rival), key=lambda entry: entry.cost)
    if best.interval is None:
        close = abs(second.cost - best.cost) <= TOLERANCE * abs(best.cost)
    else:
        close = max(sign * end for end in best.interval) >= second.cost
    verdict = "undecided" if close else "held" if best is own else "failed"
    return Finding(rule.name, verdict, f"{rule.quantity}: {values}")


def _training_speed(row: Row) -> Mapping[str, Any] | None:
    images, seconds = row.get("images_seen"), row["training_seconds"]
    return {"value": images / seconds} if images and seconds else None


def _relative_deviation(row: Row) -> Mapping[str, Any] | None:
    distance = metric(row, FRECHET)
    if not distance or not distance.get("trainings"):
        return None
    return {"value": distance["deviation"] / distance["value"]}


def _edit_error(row: Row) -> Mapping[str, Any] | None:
    """Return the reconstruction error; infinity for a row without latent edits."""
    return metric(row, "reconstruction") if "latent-edit" in row["abilities"] else {"value": math.inf}


def _memory(row: Row) -> Mapping[str, Any]:
    return {"value": row.get("peak_memory_mib")}


STABILITY = "stability: diffusion"
RULES = (
    Rule("prototype: VAE", ("VAE",), "images a second in training", _training_speed, False),
    Rule("quality: GAN or diffusion", ("GAN", "diffusion"), "Frechet distance", lambda row: metric(row, FRECHET), True),
    Rule("coverage: diffusion", ("diffusion",), "coverage", lambda row: metric(row, "coverage"), False),
    Rule(
        STABILITY,
        ("diffusion",),
        "deviation of the Frechet distance among trainings, relative to its mean",
        _relative_deviation,
        True,
    ),
    Rule("latent edits: VAE", ("VAE",), "reconstruction error of models with latent edits", _edit_error, True),
    Rule("few resources: VAE or small GAN", ("VAE", "GAN"), "MiB in training", _memory, True),
)


def rules_table(findings: Sequence[Finding]) -> str:
    """Write the findings as text, a line each, and how to measure stability if the report lacks it."""
    width = max(len(finding.rule) for finding in findings)
    lines = [f"{finding.verdict:9}  {finding.rule:{width}}  {finding.why}" for finding in findings]
    if any(finding.rule == STABILITY and finding.verdict == "unknown" for finding in findings):
        lines += ["", "Stability needs a report of several trainings: hfgen compare --seeds 3."]
    return "\n".join(lines)

"""Textbooks' rules of thumb about families, checked against the figures of an `hfgen compare` report."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CLOSE = 0.05
"""Numbers without an interval that differ by less than this share are taken for equal."""

KINDS = {"frechet": ("frechet", "fid"), "coverage": ("coverage",), "reconstruction": ("reconstruction",)}
"""What names of figures begin with."""

KIN = {
    "VAE": ("vae",),
    "GAN": ("gan",),
    "diffusion": ("diffusion", "rectified_flow", "reflow"),
}
"""The families that a word of the texts means. A rectified flow is diffusion's regression on a straight path."""


def figure(row: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The figure of a kind in `KINDS`, {"value", "interval", "better"}; None where it was not measured."""
    return next((f for name, f in row["figures"].items() if name.lower().startswith(KINDS[kind])), None)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of a rule: `held`, `failed`, `undecided` (within the error of the figures) or `unknown`, and why."""

    rule: str
    verdict: str
    why: str


def check_rules(report: Mapping[str, Any]) -> list[Finding]:
    """The textbooks' rules of thumb, each as one comparison among the report's rows.

    Rules say which words of `KIN` should come first in which figure; only families that some word means take part. A
    rule is undecided where the best it praises and the best of the others are nearer than the interval of the better
    one (95 %, or the range of several trainings), or, of figures without intervals, than `CLOSE`.
    """
    return [_judge(report, *rule) for rule in RULES]


def _judge(
    report: Mapping[str, Any], rule: str, words: tuple[str, ...], measured: str, of: Callable[..., Any], lower: bool
) -> Finding:
    sign, entries = 1 if lower else -1, []
    for row in report["rows"]:
        if row.get("study", "families") != "families":
            continue
        word = next((word for word, families in KIN.items() if row["family"] in families), None)
        if word is not None and (found := of(row)) is not None and found["value"] is not None:
            entries.append((sign * found["value"], word, row["name"], found.get("interval")))
    entries.sort(key=lambda entry: entry[0])
    told = ", ".join(
        f"{name} {f'{sign * value:.4g}' if math.isfinite(value) else 'none'}" for value, _, name, _ in entries
    )
    own = next((entry for entry in entries if entry[1] in words), None)
    rival = next((entry for entry in entries if entry[1] not in words), None)
    if own is None or rival is None or not math.isfinite(entries[0][0]):
        return Finding(rule, "unknown", f"{measured}: {told or 'not measured'}; nothing to compare with")
    best, other = min(own, rival, key=lambda entry: entry[0]), max(own, rival, key=lambda entry: entry[0])
    if best[3] is None:
        close = abs(other[0] - best[0]) <= CLOSE * abs(best[0])
    else:
        close = max(sign * end for end in best[3]) >= other[0]
    verdict = "undecided" if close else "held" if best is own else "failed"
    return Finding(rule, verdict, f"{measured}: {told}")


def _edited(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return figure(row, "reconstruction") if "latent-edit" in row["abilities"] else {"value": math.inf}


def _rate(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    seen, seconds = row.get("images_seen"), row["training_seconds"]
    return {"value": seen / seconds} if seen and seconds else None


def _spread(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = figure(row, "frechet")
    return {"value": found["deviation"] / found["value"]} if found and found.get("trainings") else None


STABILITY = "stability: diffusion"
RULES = (
    ("prototype: VAE", ("VAE",), "images a second in training", _rate, False),
    ("quality: GAN or diffusion", ("GAN", "diffusion"), "Frechet distance", lambda r: figure(r, "frechet"), True),
    ("coverage: diffusion", ("diffusion",), "coverage", lambda row: figure(row, "coverage"), False),
    (STABILITY, ("diffusion",), "deviation of the Frechet distance among trainings, of its mean", _spread, True),
    ("latent edits: VAE", ("VAE",), "reconstruction error where latents can be edited", _edited, True),
    (
        *("few resources: VAE or small GAN", ("VAE", "GAN"), "MiB while training"),
        *(lambda row: {"value": row.get("peak_memory_mib")}, True),
    ),
)
"""Rule, the words it praises, what is measured, where a row has it, and whether less is better."""


def rules_table(findings: Sequence[Finding]) -> str:
    """The findings as text, and how to have what the report does not say."""
    wide = max(len(finding.rule) for finding in findings)
    lines = [f"{finding.verdict:9}  {finding.rule:{wide}}  {finding.why}" for finding in findings]
    if any(finding.rule == STABILITY and finding.verdict == "unknown" for finding in findings):
        lines += ["", "Stability shows in a report of several trainings: hfgen compare --seeds 3."]
    return "\n".join(lines)

"""Figures with their protocol: metrics.json, a table, and the model card."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .measures import Figure

SECTION = ("<!-- results -->", "<!-- end of results -->")
"""Marks around the card's table of results, which is replaced as a whole."""


def entries(figures: Sequence[Figure], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What metrics.json keeps of figures: metric, value, error where it was estimated, protocol."""
    kept = []
    for figure in figures:
        entry = {key: value for key, value in dataclasses.asdict(figure).items() if value is not None}
        kept.append({**entry, "protocol": dict(protocol)})
    return kept


def table(figures: Sequence[Figure]) -> str:
    """The figures as text, a line each."""
    rows = [("metric", "value", "95 % interval", "better")]
    for figure in figures:
        error = "" if figure.interval is None else "{:.4g} to {:.4g}".format(*figure.interval)
        if figure.deviation is not None:
            error = f"deviation {figure.deviation:.2g}"
        rows.append((figure.metric, f"{figure.value:.4g}", error, figure.better))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def write(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Add entries to the list `evaluation` of a metrics.json; those of the same metric and protocol are replaced.

    Raises:
        ValueError: the file holds something else than a JSON object.
    """
    figures = {}
    if path.is_file():
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            figures = None
        if not isinstance(figures, dict):
            raise ValueError(f"{path} holds no JSON object to add results to. Move it away, or give another --output.")
    new = {_key(entry) for entry in found}
    kept = [entry for entry in figures.get("evaluation", []) if _key(entry) not in new]
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps({**figures, "evaluation": [*kept, *found]}, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _key(entry: Mapping[str, Any]) -> str:
    return json.dumps([entry.get("metric"), entry.get("protocol")], sort_keys=True)


def update_card(folder: Path) -> None:
    """Bring the card (README.md) of a pipeline's folder up to date with metrics.json: a marked section with a table of
    metrics and protocols, and the metadata's `model-index`. A folder without a card or figures is left as it is."""
    card, file = folder / "README.md", folder / "metrics.json"
    if not (card.is_file() and file.is_file()):
        return
    found = json.loads(file.read_text(encoding="utf-8")).get("evaluation", [])
    if not found:
        return
    from huggingface_hub import ModelCard

    page = ModelCard.load(card)
    page.data.model_name = next((line[2:] for line in page.text.splitlines() if line.startswith("# ")), folder.name)
    page.data.eval_results = [_result(entry) for entry in found]
    section = _section(found)
    start, end = (page.text.find(mark) for mark in SECTION)
    if 0 <= start < end:
        page.text = page.text[:start] + section + page.text[end + len(SECTION[1]) :]
    else:
        head, limits, tail = page.text.partition("## Use and limits")
        page.text = f"{head.rstrip()}\n\n{section}\n\n{limits}{tail}"
    page.save(card)


def _section(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [f"| {e['metric']} | {e['value']:.4g}{_error(e)} | {_protocol(e)} |" for e in found]
    return "\n".join(
        [SECTION[0], "## Results", "", "| metric | value | protocol |", "|---|---|---|", *rows, SECTION[1]]
    )


def _error(entry: Mapping[str, Any]) -> str:
    low, high = entry.get("interval") or (None, None)
    return "" if low is None else f" ({low:.4g} to {high:.4g})"


def _protocol(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in entry.get("protocol", {}).items())


def _result(entry: Mapping[str, Any]) -> Any:
    from huggingface_hub import EvalResult

    data = str(entry["protocol"].get("data", "unknown"))
    return EvalResult(
        task_type="unconditional-image-generation",
        dataset_type=data,
        dataset_name=data,
        metric_type=entry["metric"].split(" (")[0].lower().replace(" ", "_"),
        metric_name=entry["metric"],
        metric_value=entry["value"],
        metric_args={"protocol": _protocol(entry)},
    )

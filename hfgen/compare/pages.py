"""A report for people: one page that needs no other file and no network, and the same in Markdown."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import charts, tables
from .recipes import ABLATIONS
from .tables import Table

Row = Mapping[str, Any]
HEAD = "Which generative model, when?"
FRONTS = ("families", "steps")
"""Studies whose rows are worth drawing from in many ways."""


def brief(row: Row) -> str:
    """A line about a row."""
    if row["status"] == "failed":
        return f"{row['name']}: {row['notes'][0]}"
    parts = [tables.duration(row["training_seconds"]) + " of training"]
    value = charts.quality(row)
    parts += [] if value is None else [f"Frechet distance {tables.number(value)}"]
    speed = next((entry for entry in reversed(row["speed"]) if entry["default"]), None)
    parts += [] if speed is None else [f"{tables.number(speed['images_per_second'])} images/s"]
    return f"{row['name']}: {', '.join(parts + row['notes'])}"


def markdown(report: Mapping[str, Any]) -> str:
    """report.md. Pictures are files beside it."""
    lines = [f"# {HEAD}", "", _lead(report), ""]
    for study, rows in _studies(report).items():
        shown = [row for row in rows if charts.quality(row) is not None]
        lines += [f"## {_title(study)}", ""]
        lines += [f"{row['name']}:\n\n![samples](samples/{picture_name(row)})\n" for row in shown]
        lines += [*_markdown(tables.quality(rows)), *_markdown(tables.cost(rows))]
        if study in FRONTS and any(entry["front"] for row in rows for entry in row["speed"]):
            lines += ["On the front of quality, latency and time an image:", "", *_markdown(tables.pareto(rows))]
        for row in rows:
            lines += [f"- {row['name']}: {note}" for note in row["notes"]]
        lines += ["", "```", *dict.fromkeys(row["command"] for row in rows), "```", ""]
    lines += ["## Protocol", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _protocol(report).items()]
    return "\n".join([*lines, "", _spread(report), "", "```", report["command"], "```", ""])


def _markdown(table: Table) -> list[str]:
    """A table in Markdown; the best of a column is bold."""
    if not table.columns or not table.rows:
        return []
    lines = [f"| | {' | '.join(table.columns)} |", "|---" * (len(table.columns) + 1) + "|"]
    for row, cells in table.rows:
        texts = [f"**{c.text}**" if c.best else c.text for c in cells]
        errors = [f" {c.error}" if c.error else "" for c in cells]
        lines.append(f"| {row['name']} | {' | '.join(t + e for t, e in zip(texts, errors, strict=True))} |")
    return [*lines, ""]


def page(report: Mapping[str, Any], home: Path) -> str:
    """report.html, with the pictures of `home` inside."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("hfgen.compare", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["count"] = tables.count
    studies = [_section(study, rows, home) for study, rows in _studies(report).items()]
    return environment.get_template("report.html.jinja").render(
        head=HEAD,
        lead=_lead(report),
        answers=_answers(report),
        studies=studies,
        protocol=_protocol(report),
        command=report["command"],
        spread=_spread(report),
    )


def _spread(report: Mapping[str, Any]) -> str:
    """What stands behind a figure's ±."""
    if (trainings := report["protocol"]["trainings of a row"]) > 1:
        return (
            f"Figures are means over {trainings} trainings that differ in their seed alone; ± is the standard "
            "deviation among them, and bars of charts reach from the lowest to the highest. Pictures are of the first."
        )
    return (
        "Intervals are 95 % (± half their width), of the kernel distance and the score deviations over subsets. They "
        "do not hold the spread between trainings with different seeds, for which there is --seeds."
    )


def _section(study: str, rows: Sequence[Row], home: Path) -> dict[str, Any]:
    """What the page shows of a study."""
    drawn = [row for row in rows if charts.quality(row) is not None]
    fronts = study in FRONTS
    entries = [entry for row in rows for entry in row["speed"] if fronts and entry["frechet"]]
    shown = []
    if drawn and study in ABLATIONS:
        title, axis, _ = ABLATIONS[study]
        shown.append((title, charts.ablation(rows, title, axis, f"{study}-settings")))
    elif drawn:
        shown.append(("Quality, and what it took to train", charts.bars(rows, f"{study}-bars")))
    for batch in sorted({entry["batch"] for entry in entries}):
        title = "Quality and latency" if batch == 1 else f"Quality and throughput, in batches of {batch}"
        shown.append((title, charts.scatter(rows, batch, f"{study}-front-{batch}")))
    names = {row["name"]: picture_name(row) for row in drawn}
    return {
        "title": _title(study),
        "colours": charts.colours(rows),
        "quality": tables.quality(rows),
        "cost": tables.cost(rows),
        "pareto": tables.pareto(rows if fronts else []),
        "charts": shown,
        "samples": [(name, _inline(home / "samples" / file)) for name, file in names.items()],
        "nearest": [
            (name, _inline(home / "nearest" / file), _memory(row))
            for (name, file), row in zip(names.items(), drawn, strict=True)
        ],
        "commands": list({row["folder"]: (row["name"], row["command"]) for row in reversed(rows)}.values())[::-1],
        "notes": [(row["name"], note) for row in rows for note in row["notes"]],
        "abilities": [(row["name"], ", ".join(row["abilities"]) or tables.NONE) for row in rows],
    }


def picture_name(row: Row) -> str:
    """The file name of a row's pictures."""
    return f"{row['folder']}-{row['setting']}.png" if row["study"] == "steps" else f"{row['folder']}.png"


def _memory(row: Row) -> str:
    """How near samples are to training images, in words."""
    figure = charts.found(row, "nearer to training images")
    share = "" if figure is None else f"{figure['value']:.0%}".replace("%", " %")
    return f"nearer to a training image than a held-out one is: {share} (50 % would be new images)"


def _inline(path: Path) -> str:
    """A picture as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _studies(report: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Rows by study, in order."""
    return {
        study: [row for row in report["rows"] if row["study"] == study]
        for study in dict.fromkeys(row["study"] for row in report["rows"])
    }


def _title(study: str) -> str:
    return "Families" if study == "families" else f"Ablation: {ABLATIONS[study][0]}"


def _lead(report: Mapping[str, Any]) -> str:
    """What was done, in two sentences."""
    protocol = report["protocol"]
    trainings = protocol["trainings of a row"]
    times = f", {trainings} times from different seeds" if trainings > 1 else ""
    return (
        f"{protocol['data']}, {protocol['size']}: each model was trained on {protocol['trained on']} for "
        f"{protocol['budget of a training']}{times}, and measured alike: {protocol['generated images']:,} samples "
        f"against {protocol['compared with']}, with features of {protocol['features']}. {report['hardware']}, "
        f"{report['date']}."
    )


def _answers(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The first answers: (question, row, figure)."""
    rows = [row for row in report["rows"] if row["study"] == "families"]
    answers = []
    for question, begins, words in (
        ("Best samples", "Frechet distance", "Frechet distance {}"),
        ("Widest variety", "coverage", "covers {} of the real images"),
        ("Most probable", "bits per dimension", "{} bits per dimension"),
    ):
        figures = [(charts.found(row, begins), row["name"]) for row in rows if charts.found(row, begins)]
        if figures:
            sign = 1 if figures[0][0]["better"] == "lower" else -1
            best, name = min(figures, key=lambda each: sign * each[0]["value"])
            value = f"{best['value']:.0%}".replace("%", " %") if begins == "coverage" else tables.number(best["value"])
            answers.append((question, name, words.format(value)))
    speeds = [(entry, row["name"]) for row in rows for entry in row["speed"] if entry["default"]]
    if speeds:
        entry, name = max(speeds, key=lambda each: each[0]["images_per_second"])
        answers.insert(1, ("Fastest", name, f"{tables.number(entry['images_per_second'])} images/s"))
    return answers


def _protocol(report: Mapping[str, Any]) -> dict[str, str]:
    """Rows of the protocol."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return {**report["protocol"], "hardware": report["hardware"], "versions": versions, "date": report["date"]}

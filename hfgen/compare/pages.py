"""A report for people: one HTML page that needs no other file and no network, and the same in Markdown."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..console.text import escaped, fence
from . import charts, tables
from .formats import duration, number, percent
from .recipes import ABLATIONS
from .rows import FRECHET, Row, feature_networks, frechet, metric, metrics_by_network, ranking_entry, ranking_text
from .tables import Table

HEAD = "Which generative model, when?"
FRONT_STUDIES = ("families", "steps")
"""Studies with a Pareto front of quality and speed."""


def brief(row: Row) -> str:
    """Return a line about a row: training time, Frechet distance, speed, notes."""
    if row["status"] == "failed":
        return escaped(f"{row['name']}: {row['notes'][0]}")
    parts = [duration(row["training_seconds"]) + " of training"]
    distance, networks = frechet(row), metrics_by_network(row, FRECHET)
    each = ", ".join(f"{number(entry['value'])} by {label}" for label, entry in networks.items())
    parts += [] if distance is None else [f"Frechet distance {number(distance)} ({each})"]
    speed = next((entry for entry in reversed(row["speed"]) if entry["default"]), None)
    parts += [] if speed is None else [f"{number(speed['images_per_second'])} images/s"]
    return escaped(f"{row['name']}: {', '.join(parts + row['notes'])}")


def markdown(report: Mapping[str, Any]) -> str:
    """Return the text of report.md; its pictures are files beside it."""
    lines = [f"# {HEAD}", "", escaped(_lead(report), "markdown"), ""]
    for study, rows in _studies(report).items():
        with_samples = [row for row in rows if frechet(row) is not None]
        lines += [f"## {_title(study)}", ""]
        lines += [
            f"{escaped(row['name'], 'markdown')}:\n\n![samples](samples/{quote(picture_name(row))})\n"
            for row in with_samples
        ]
        lines += [*_markdown(tables.quality(rows)), *_markdown(tables.cost(rows))]
        if study in FRONT_STUDIES and any(entry["front"] for row in rows for entry in row["speed"]):
            lines += ["Pareto front of quality, latency and time an image:", "", *_markdown(tables.pareto(rows))]
        for row in rows:
            lines += [f"- {escaped(row['name'], 'markdown')}: {escaped(note, 'markdown')}" for note in row["notes"]]
        lines += ["", fence("\n".join(dict.fromkeys(row["command"] for row in rows))), ""]
    lines += ["## Protocol", "", "| | |", "|---|---|"]
    lines += [
        f"| {escaped(name, 'markdown')} | {escaped(value, 'markdown')} |" for name, value in _protocol(report).items()
    ]
    return "\n".join([*lines, "", _error_text(report), "", fence(report["command"]), ""])


def _markdown(table: Table) -> list[str]:
    """Return the lines of a table in Markdown, an empty line at its end; the best cell of a column is bold."""
    if not table.columns or not table.rows:
        return []
    columns = [escaped(column, "markdown") for column in table.columns]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(table.columns) + 1) + "|"]
    for row, cells in table.rows:
        texts = [f"**{c.text}**" if c.best else c.text for c in cells]
        errors = [f" {c.error}" if c.error else "" for c in cells]
        lines.append(
            f"| {escaped(row['name'], 'markdown')} | {' | '.join(t + e for t, e in zip(texts, errors, strict=True))} |"
        )
    return [*lines, ""]


def page(report: Mapping[str, Any], home: Path) -> str:
    """Return the text of report.html, which holds the pictures of the folder `home`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("hfgen.compare", ".")
    environment = Environment(
        loader=loader, autoescape=lambda _: True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown
    )
    studies = [_section(study, rows, home) for study, rows in _studies(report).items()]
    return environment.get_template("report.html.jinja").render(
        head=HEAD,
        lead=_lead(report),
        answers=_answers(report),
        studies=studies,
        protocol=_protocol(report),
        command=report["command"],
        errors=_error_text(report),
    )


def _shown(value: Any) -> Any:
    """Return a variable of the page: charts as they are, texts escaped."""
    from markupsafe import Markup

    return Markup(escaped(value, "html")) if isinstance(value, str) and not isinstance(value, Markup) else value


def _error_text(report: Mapping[str, Any]) -> str:
    """Return an explanation of ± in the tables and of error bars in the charts."""
    if (trainings := report["protocol"]["trainings of a row"]) > 1:
        return (
            f"Values are means over {trainings} trainings that differ in their seed alone. ± is the standard deviation "
            "among them. Error bars reach from the lowest training to the highest. Pictures are of the first training."
        )
    return (
        "± is half of a 95 % interval; for the kernel distance and the score it is the standard deviation over "
        "subsets. Neither includes the variation among trainings with different seeds: see --seeds."
    )


def _section(study: str, rows: Sequence[Row], home: Path) -> dict[str, Any]:
    """Return a study's variables in the template of the page."""
    with_samples = [row for row in rows if frechet(row) is not None]
    has_front = study in FRONT_STUDIES
    names = {row["name"]: picture_name(row) for row in with_samples}
    return {
        "title": _title(study),
        "colours": charts.colours(rows),
        "quality": tables.quality(rows),
        "cost": tables.cost(rows),
        "pareto": tables.pareto(rows if has_front else []),
        "charts": _charts(study, rows),
        "samples": [(name, _data_url(home / "samples" / file)) for name, file in names.items()],
        "nearest": [
            (name, _data_url(home / "nearest" / file), _memorisation(row))
            for (name, file), row in zip(names.items(), with_samples, strict=True)
        ],
        "commands": list({row["folder"]: (row["name"], row["command"]) for row in reversed(rows)}.values())[::-1],
        "notes": [(row["name"], note) for row in rows for note in row["notes"]],
        "abilities": [(row["name"], ", ".join(row["abilities"]) or tables.NONE) for row in rows],
    }


def _charts(study: str, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (title, SVG element) of each chart of a study."""
    result = []
    if any(frechet(row) is not None for row in rows):
        if study in ABLATIONS:
            title, axis, _ = ABLATIONS[study]
            result.append((title, charts.ablation(rows, title, axis, f"{study}-settings")))
        else:
            result.append(("Quality and training time", charts.bars(rows, f"{study}-bars")))
    entries = [entry for row in rows for entry in row["speed"] if study in FRONT_STUDIES and entry["frechet"]]
    for batch in sorted({entry["batch"] for entry in entries}):
        title = "Quality and latency" if batch == 1 else f"Quality and throughput, in batches of {batch}"
        result.append((title, charts.scatter(rows, batch, f"{study}-front-{batch}")))
    return result


def picture_name(row: Row) -> str:
    """Return the file name of a row's pictures."""
    return f"{row['folder']}-{row['setting']}.png" if row["study"] == "steps" else f"{row['folder']}.png"


def _memorisation(row: Row) -> str:
    """Return a text: how often a sample is nearer to a training image than a held-out image is."""
    entry = metric(row, "nearer to training images")
    share = "" if entry is None else percent(entry["value"])
    return f"nearer to a training image than a held-out image is: {share} (new images: 50 %)"


def _data_url(path: Path) -> str:
    """Return a picture as a data URL, as text that needs no escaping."""
    from markupsafe import Markup

    return Markup("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())


def _studies(report: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return study -> rows, in the order of the report."""
    return {
        study: [row for row in report["rows"] if row["study"] == study]
        for study in dict.fromkeys(row["study"] for row in report["rows"])
    }


def _title(study: str) -> str:
    return "Families" if study == "families" else f"Ablation: {ABLATIONS[study][0]}"


def _lead(report: Mapping[str, Any]) -> str:
    """Return the summary of the comparison: data, budget, protocol, hardware, date."""
    protocol = report["protocol"]
    trainings = protocol["trainings of a row"]
    times = f", {trainings} times from different seeds" if trainings > 1 else ""
    return (
        f"{protocol['data']}, {protocol['size']}: each model was trained on {protocol['trained on']} for "
        f"{protocol['budget of a training']}{times}. All are measured alike: {protocol['generated images']:,} samples "
        f"against {protocol['compared with']}, by features of {protocol['features']}. {report['hardware']}, "
        f"{report['date']}."
    )


def _answers(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (question, name of the best family, its value) for quality, speed, variety and likelihood."""
    rows = [row for row in report["rows"] if row["study"] == "families"]
    answers = []
    for question, find, text, form in (
        ("Best samples", ranking_entry, f"{ranking_text(feature_networks(rows))} {{}}", number),
        ("Widest variety", lambda row: metric(row, "coverage"), "covers {} of the real images", percent),
        ("Highest likelihood", lambda row: metric(row, "bits per dimension"), "{} bits per dimension", number),
    ):
        entries = [(find(row), row["name"]) for row in rows if find(row)]
        if entries:
            sign = 1 if entries[0][0]["better"] == "lower" else -1
            best, name = min(entries, key=lambda pair: sign * pair[0]["value"])
            answers.append((question, name, text.format(form(best["value"]))))
    speeds = [(entry, row["name"]) for row in rows for entry in row["speed"] if entry["default"]]
    if speeds:
        entry, name = max(speeds, key=lambda pair: pair[0]["images_per_second"])
        answers.insert(1, ("Fastest", name, f"{number(entry['images_per_second'])} images/s"))
    return answers


def _protocol(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows of the page's table of the protocol."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return {**report["protocol"], "hardware": report["hardware"], "versions": versions, "date": report["date"]}

"""Charts of a report as SVG elements of a page, each with a text that says the same.

matplotlib is imported when a chart is drawn.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..console.text import escaped
from .latency import pareto_front
from .rows import Row, feature_networks, frechet, frechet_interval, ranking_text, setting_text

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#555555")
"""Distinct for colour-blind readers (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/), dark enough on white."""
MARKERS = MappingProxyType({"float32": "o", "bfloat16": "^", "float16": "s"})
WIDTH = 4.9
"""Inches: half a page on a desktop, a full page on a phone; letters are large enough on both."""
INK, FAINT = "#333333", "#dddddd"


def colours(rows: Sequence[Row]) -> dict[str, str]:
    """Return family -> colour."""
    return {family: COLOURS[i % len(COLOURS)] for i, family in enumerate(dict.fromkeys(r["family"] for r in rows))}


@contextlib.contextmanager
def _figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """Open a matplotlib figure of this size in inches; yields it with its axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.style import context

    style = {"font.size": 10, "svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "hfgen"}
    style |= {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.color": FAINT}
    with context(["default", style]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.subplots(1, columns, sharey=columns > 1)


def _svg(figure: Any, name: str, text: str) -> str:
    """Return the figure as an SVG element: `name` before its ids, `text` as its label, no fixed size."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'\swidth="[^"]*pt"|\sheight="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escaped(text, "html")}"', 1)


def bars(rows: Sequence[Row], name: str = "bars") -> str:
    """Draw two bars for each row: Frechet distance with its interval, and training time."""
    rows_with_distance = [row for row in rows if frechet(row) is not None]
    names = [escaped(row["name"], "plot") for row in rows_with_distance]
    distances, errors = _distances(rows_with_distance)
    seconds = [row["training_seconds"] for row in rows_with_distance]
    family_colours = colours(rows)
    bar_colours = [family_colours[row["family"]] for row in rows_with_distance]
    with _figure(WIDTH, 1.0 + 0.4 * len(names), 2) as (figure, (left, right)):
        places, caps = range(len(names)), {"ecolor": INK, "capsize": 3}
        left.barh(places, distances, xerr=errors, color=bar_colours, height=0.62, error_kw=caps)
        right.barh(places, seconds, color=bar_colours, height=0.62)
        ends = [value + high for value, high in zip(distances, errors[1], strict=True)]
        for axes, values, label_places in ((left, distances, ends), (right, seconds, seconds)):
            for place, value, end in zip(places, values, label_places, strict=True):
                axes.annotate(f"{value:.3g}", (end, place), xytext=(4, 0), textcoords="offset points", va="center")
            axes.set_xlim(0, 1.28 * max(label_places))
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        left.set_yticks(places, names)
        left.invert_yaxis()
        left.set_xlabel(_ranking(rows))
        right.set_xlabel("training, seconds")
        texts = [
            f"{title}: Frechet distance {distance:.3g}, {time:.3g} seconds of training"
            for title, distance, time in zip(names, distances, seconds, strict=True)
        ]
        return _svg(figure, name, f"Bar chart. {'; '.join(texts)}.")


def _distances(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    """Return the rows' Frechet distances and [errors below, errors above]."""
    values, intervals = [frechet(row) for row in rows], [frechet_interval(row) for row in rows]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)]
    return values, [below, above]


def scatter(rows: Sequence[Row], batch: int, name: str = "front") -> str:
    """Draw Frechet distance over the time for an image, a point for each setting that was timed at this batch size.

    Points on the Pareto front are filled and joined by a line; the others are hollow.
    """
    points = [(row, entry) for row in rows for entry in row["speed"] if entry["batch"] == batch]
    points = [(row, entry) for row, entry in points if entry["frechet"] and entry["frechet"] > 0]
    places = [(1000 / entry["images_per_second"], entry["frechet"]) for _, entry in points]
    on_front = pareto_front(places)
    family_colours = colours(rows)
    with _figure(WIDTH, 4.0) as (figure, axes):
        line = sorted(place for place, on in zip(places, on_front, strict=True) if on)
        axes.plot(*zip(*line, strict=True), drawstyle="steps-post", color="#999999", lw=1.2, zorder=1)
        for (row, entry), place, on in zip(points, places, on_front, strict=True):
            _draw_point(axes, entry, place, on, family_colours[row["family"]])
        axes.set_xscale("log")
        axes.set_yscale("log")
        _set_ticks(axes, places)
        axes.grid(which="major")
        axes.set_xlabel("milliseconds for one image" if batch == 1 else f"milliseconds an image, in batches of {batch}")
        axes.set_ylabel(_ranking(rows))
        _legend(axes, rows, points, family_colours)
        texts = [
            f"{row['name']}, {setting_text(entry)}: {place[1]:.3g} in {place[0]:.3g} ms"
            for (row, entry), place, on in zip(points, places, on_front, strict=True)
            if on
        ]
        title = f"Scatter of Frechet distance against milliseconds an image at batch {batch}"
        return _svg(figure, name, f"{title}, {len(points)} settings. On the Pareto front: {'; '.join(texts)}.")


def _draw_point(axes: Any, entry: Mapping[str, Any], place: tuple[float, float], on_front: bool, colour: str) -> None:
    """Draw one setting; in float32 with its number of steps."""
    axes.scatter(
        *([x] for x in place),
        marker=MARKERS[entry["dtype"]],
        s=46,
        facecolor=colour if on_front else "white",
        edgecolor=colour,
        zorder=3 if on_front else 2,
    )
    if entry["scheduler"] is not None and entry["dtype"] == "float32":
        offset = {"xytext": (5, 4), "textcoords": "offset points"}
        axes.annotate(str(entry["steps"]), place, fontsize=8, color=colour, **offset)


def _set_ticks(axes: Any, places: Sequence[tuple[float, float]]) -> None:
    """Label logarithmic axes with numbers at 1, 2 and 5, in the place of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, values in ((axes.xaxis, [p[0] for p in places]), (axes.yaxis, [p[1] for p in places])):
        decades = math.log10(max(values) / min(values))
        if decades < 0.5:  # a narrow range would show noise as a difference
            middle = math.sqrt(max(values) * min(values))
            axis.axes.set(**{f"{axis.axis_name}lim": (middle / 2, middle * 2)})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _legend(axes: Any, rows: Sequence[Row], points: Sequence[Any], family_colours: Mapping[str, str]) -> None:
    """Put the legend above the axes: families by colour, precisions by marker."""
    from matplotlib.lines import Line2D

    families = list(dict.fromkeys(row["family"] for row, _ in points))
    labels = {row["family"]: escaped(row["name"].split(",")[0], "plot") for row in rows}
    keys = [
        Line2D([], [], marker="o", ls="", color=family_colours[family], label=labels[family]) for family in families
    ]
    dtypes = dict.fromkeys(entry["dtype"] for _, entry in points)
    keys += [Line2D([], [], marker=MARKERS[d], ls="", color=INK, mfc="white", label=d) for d in dtypes]
    axes.figure.legend(
        handles=keys, loc="outside upper left", ncols=3, frameon=False, handletextpad=0.2, columnspacing=1
    )


def ablation(rows: Sequence[Row], title: str, axis: str, name: str) -> str:
    """Draw Frechet distance with intervals over the settings of an ablation, a line for each family."""
    rows_with_distance = [row for row in rows if frechet(row) is not None]
    family_colours = colours(rows)
    labels = list(dict.fromkeys(_label(row["setting"]) for row in rows_with_distance))
    settings = [row["setting"] for row in rows_with_distance]
    numeric = all(isinstance(setting, int | float) and setting > 0 for setting in settings)
    with _figure(WIDTH, 3.2) as (figure, axes):
        for family in dict.fromkeys(row["family"] for row in rows_with_distance):
            own = [row for row in rows_with_distance if row["family"] == family]
            x = [row["setting"] if numeric else labels.index(_label(row["setting"])) for row in own]
            y, errors = _distances(own)
            style = {"marker": "o", "ls": "-" if numeric else "", "capsize": 3, "color": family_colours[family]}
            axes.errorbar(x, y, errors, label=escaped(own[0]["name"].split(",")[0], "plot"), **style)
        if numeric:
            axes.set_xscale("log")
            axes.set_xticks(settings, [_label(setting) for setting in settings])
            axes.minorticks_off()
        else:
            axes.set_xticks(range(len(labels)), labels)
            axes.margins(x=0.15)
        values = [frechet(row) for row in rows_with_distance]
        if max(values) > 20 * min(values) > 0:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(axis)
        axes.set_ylabel(_ranking(rows))
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        texts = [f"{row['name']}: {frechet(row):.3g}" for row in rows_with_distance]
        return _svg(figure, name, f"{title}: Frechet distance. {'; '.join(texts)}.")


def _ranking(rows: Sequence[Row]) -> str:
    """Return the name of the ranking number in two lines, as a chart has little room."""
    return ranking_text(feature_networks(rows)).replace(", ", ",\n")


def _label(setting: float | str) -> str:
    """Return a setting of an ablation as label of its axis."""
    return setting if isinstance(setting, str) else f"{setting:g}"

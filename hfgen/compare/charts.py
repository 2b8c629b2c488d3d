"""Charts of a report as SVG inside a page, each with a text that says the same. matplotlib is imported when one is
drawn."""

import contextlib
import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .latency import front

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#555555")
"""Told apart by people who see few colours (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/), dark enough on
white."""
MARKERS = MappingProxyType({"float32": "o", "bfloat16": "^", "float16": "s"})
WIDTH = 4.9
"""Inches: half a page, and the whole of a phone's, so that letters can be read on both."""
INK, FAINT = "#333333", "#dddddd"

Row = Mapping[str, Any]


def colours(rows: Sequence[Row]) -> dict[str, str]:
    """A colour for each family."""
    return {family: COLOURS[i % len(COLOURS)] for i, family in enumerate(dict.fromkeys(r["family"] for r in rows))}


@contextlib.contextmanager
def _figure(width: float, height: float, columns: int = 1) -> Iterator[Any]:
    """A figure of this size in inches, with its axes."""
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
    """The figure as an element of a page, its ids unlike those of other figures, with a text in its place."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    drawn = re.sub(r'\swidth="[^"]*pt"|\sheight="[^"]*pt"', "", drawn, count=2)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(text, quote=True)}"', 1)


def bars(rows: Sequence[Row], name: str = "bars") -> str:
    """Quality beside training time: a bar a row for its Frechet distance, with the interval, and one for its time."""
    shown = [row for row in rows if quality(row) is not None]
    values = [quality(row) for row in shown]
    spread = [interval(row) for row in shown]
    low = [max(0.0, v - s[0]) for v, s in zip(values, spread, strict=True)]
    high = [max(0.0, s[1] - v) for v, s in zip(values, spread, strict=True)]
    seconds = [row["training_seconds"] for row in shown]
    painted = [colours(rows)[row["family"]] for row in shown]
    with _figure(WIDTH, 1.0 + 0.4 * len(shown), 2) as (figure, (left, right)):
        places = range(len(shown))
        left.barh(places, values, xerr=[low, high], color=painted, height=0.62, error_kw={"ecolor": INK, "capsize": 3})
        right.barh(places, seconds, color=painted, height=0.62)
        for axes, numbers, ends in (
            (left, values, [v + h for v, h in zip(values, high, strict=True)]),
            (right, seconds, seconds),
        ):
            for place, number, end in zip(places, numbers, ends, strict=True):
                axes.annotate(f"{number:.3g}", (end, place), xytext=(4, 0), textcoords="offset points", va="center")
            axes.set_xlim(0, 1.28 * max(ends))
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        left.set_yticks(places, [row["name"] for row in shown])
        left.invert_yaxis()
        left.set_xlabel("Frechet distance")
        right.set_xlabel("training, seconds")
        said = [
            f"{row['name']}: Frechet distance {value:.3g}, {time:.3g} seconds of training"
            for row, value, time in zip(shown, values, seconds, strict=True)
        ]
        return _svg(figure, name, f"Bar chart. {'; '.join(said)}.")


def scatter(rows: Sequence[Row], batch: int, name: str = "front") -> str:
    """Quality against speed: a point for each setting timed with this batch, those that nothing beats filled and
    joined. At batch 1 the axis is the latency of a call, else the time an image."""
    points = [(row, entry) for row in rows for entry in row["speed"] if entry["batch"] == batch]
    points = [(row, entry) for row, entry in points if entry["frechet"] and entry["frechet"] > 0]
    painted = colours(rows)
    with _figure(WIDTH, 4.0) as (figure, axes):
        places = [(1000 / entry["images_per_second"], entry["frechet"]) for _, entry in points]
        kept = front(places)
        line = sorted(place for place, on in zip(places, kept, strict=True) if on)
        axes.plot(*zip(*line, strict=True), drawstyle="steps-post", color="#999999", lw=1.2, zorder=1)
        for (row, entry), place, on in zip(points, places, kept, strict=True):
            colour = painted[row["family"]]
            axes.scatter(
                *([x] for x in place),
                marker=MARKERS[entry["dtype"]],
                s=46,
                facecolor=colour if on else "white",
                edgecolor=colour,
                zorder=3 if on else 2,
            )
            if entry["scheduler"] is not None and entry["dtype"] == "float32":
                axes.annotate(
                    str(entry["steps"]), place, xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes, places)
        axes.grid(which="major")
        axes.set_xlabel("milliseconds for one image" if batch == 1 else f"milliseconds an image, in batches of {batch}")
        axes.set_ylabel("Frechet distance")
        _legend(axes, rows, points, painted)
        best = [
            f"{row['name']}, {setting(entry)}: {place[1]:.3g} in {place[0]:.3g} ms"
            for (row, entry), place, on in zip(points, places, kept, strict=True)
            if on
        ]
        what = f"Scatter of Frechet distance against milliseconds an image at batch {batch}"
        return _svg(figure, name, f"{what}, {len(points)} settings. On the Pareto front: {'; '.join(best)}.")


def _plain_ticks(axes: Any, places: Sequence[tuple[float, float]]) -> None:
    """Numbers rather than powers of ten, at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, values in ((axes.xaxis, [p[0] for p in places]), (axes.yaxis, [p[1] for p in places])):
        decades = math.log10(max(values) / min(values))
        if decades < 0.5:  # else noise would look like a difference
            middle = math.sqrt(max(values) * min(values))
            axis.axes.set(**{f"{axis.axis_name}lim": (middle / 2, middle * 2)})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _legend(axes: Any, rows: Sequence[Row], points: Sequence[Any], painted: Mapping[str, str]) -> None:
    """Families by colour, precisions by shape, above the axes."""
    from matplotlib.lines import Line2D

    shown = list(dict.fromkeys(row["family"] for row, _ in points))
    words = {row["family"]: row["name"].split(",")[0] for row in rows}
    keys = [Line2D([], [], marker="o", ls="", color=painted[family], label=words[family]) for family in shown]
    dtypes = dict.fromkeys(entry["dtype"] for _, entry in points)
    keys += [Line2D([], [], marker=MARKERS[d], ls="", color=INK, mfc="white", label=d) for d in dtypes]
    axes.figure.legend(
        handles=keys, loc="outside upper left", ncols=3, frameon=False, handletextpad=0.2, columnspacing=1
    )


def ablation(rows: Sequence[Row], title: str, axis: str, name: str) -> str:
    """Frechet distance over the settings of an ablation, with intervals; a line for each family."""
    shown = [row for row in rows if quality(row) is not None]
    painted = colours(rows)
    words = list(dict.fromkeys(_word(row["setting"]) for row in shown))
    numeric = all(isinstance(row["setting"], int | float) and row["setting"] > 0 for row in shown)
    with _figure(WIDTH, 3.2) as (figure, axes):
        for family in dict.fromkeys(row["family"] for row in shown):
            own = [row for row in shown if row["family"] == family]
            x = [row["setting"] if numeric else words.index(_word(row["setting"])) for row in own]
            y = [quality(row) for row in own]
            ends = [interval(row) for row in own]
            error = [[max(0.0, v - low) for v, (low, _) in zip(y, ends, strict=True)]]
            error.append([max(0.0, high - v) for v, (_, high) in zip(y, ends, strict=True)])
            line = "-" if numeric else ""
            axes.errorbar(
                x, y, error, marker="o", ls=line, capsize=3, color=painted[family], label=own[0]["name"].split(",")[0]
            )
        if numeric:
            axes.set_xscale("log")
            axes.set_xticks([row["setting"] for row in shown], [_word(row["setting"]) for row in shown])
            axes.minorticks_off()
        else:
            axes.set_xticks(range(len(words)), words)
            axes.margins(x=0.15)
        values = [quality(row) for row in shown]
        if max(values) > 20 * min(values) > 0:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(axis)
        axes.set_ylabel("Frechet distance")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        said = [f"{row['name']}: {quality(row):.3g}" for row in shown]
        return _svg(figure, name, f"{title}: Frechet distance. {'; '.join(said)}.")


def _word(value: float | str) -> str:
    """A setting of an ablation, on its axis."""
    return value if isinstance(value, str) else f"{value:g}"


def setting(entry: Mapping[str, Any]) -> str:
    """Steps, precision and batch of an entry of `speed`, in words."""
    steps = "one pass" if entry["scheduler"] is None else f"{entry['steps']} step{'s' * (entry['steps'] > 1)}"
    return f"{steps}, {entry['dtype']}, batch {entry['batch']}"


def found(row: Row, beginning: str) -> Mapping[str, Any] | None:
    """The figure of a row whose metric begins so; None where there is none."""
    return next((figure for metric, figure in row["figures"].items() if metric.startswith(beginning)), None)


def quality(row: Row) -> float | None:
    """A row's Frechet distance."""
    figure = found(row, "Frechet distance") or found(row, "FID")
    return figure and figure["value"]


def interval(row: Row) -> tuple[float, float]:
    """Both ends of the interval of a row's Frechet distance; the distance itself where none was estimated."""
    figure = found(row, "Frechet distance") or found(row, "FID")
    return tuple(figure["interval"] or (figure["value"], figure["value"]))

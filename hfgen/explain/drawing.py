"""Lessons side by side, frame by frame: drawn points above, the learned field below."""

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..utils.pictures import animate
from .families import FRAMES, Demo

SPAN = 1.75
"""Axes reach from -SPAN to SPAN."""
PIXELS, ARROWS, DOTS, TRAILS = 72, 15, 300, 32
RARE = 10.0
"""Where the log density is so many nats below its maximum no arrows are drawn: points do not come there."""
POINT, TRAIL, LEARNED, EXACT = "#e4572e", "#f2a65a", "#17324d", "#b8b8b8"
INCHES, DPI = 2.7, 80
SECONDS, HOLD, COLOURS = 6.0, 2.5, 64


def frames(lessons: Sequence[Demo], facts: Sequence[Mapping[str, float]], data: str) -> Iterator[Image.Image]:
    """The animation, `FRAMES` + 1 pictures from noise to data.

    Above: where the points should be, as a haze, the drawn points, and the ways of some of them. Below: the learned
    field as dark arrows, over the exact one in grey where it is known; arrows of one panel and frame share a scale, and
    fields that are of a time have none where no points are then.

    Args:
        lessons: a column each.
        facts: what `families.quality` says of each.
        data: the name of the data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(INCHES * len(lessons), 7.0) + 0.3, 2 * INCHES + 1.25), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(lessons), squeeze=False)
    figure.subplots_adjust(0.02, 0.06, 0.98, 0.84, wspace=0.06, hspace=0.2)
    headline = _Headline(figure, data)
    columns = [_Column(*pair, lesson, fact) for pair, lesson, fact in zip(axes.T, lessons, facts, strict=True)]
    for i in range(FRAMES + 1):
        headline.show(1 - i / FRAMES)
        for column in columns:
            column.show(i)
        canvas.draw()
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


class _Headline:
    """Which data, and a bar from noise to data."""

    left, right, high = 0.55, 0.91, 0.955

    def __init__(self, figure: Any, data: str):
        from matplotlib.lines import Line2D

        text = {"va": "center", "y": self.high}
        figure.text(0.02, s=data.replace("_", " "), fontsize=13, weight="bold", **text)
        figure.text(self.left - 0.01, s="noise", fontsize=10, ha="right", **text)
        figure.text(self.right + 0.01, s="data", fontsize=10, **text)
        self.clock = figure.text(0.33, s="", fontsize=11, family="monospace", **text)
        whole, self.bar = (
            Line2D([self.left, end], [self.high, self.high], color=colour, linewidth=wide)
            for end, colour, wide in ((self.right, EXACT, 3), (self.left, POINT, 5))
        )
        for line in (whole, self.bar):
            figure.add_artist(line)

    def show(self, t: float) -> None:
        self.clock.set_text(f"t = {t:.2f}")
        self.bar.set_xdata([self.left, self.left + (self.right - self.left) * (1 - t)])


class _Column:
    """The two panels of a lesson."""

    def __init__(self, upper: Any, lower: Any, lesson: Demo, fact: Mapping[str, float]):
        from matplotlib.collections import LineCollection

        self.lesson, self.hazes = lesson, []
        for axis, strength in ((upper, 0.5), (lower, 0.25)):
            axis.set(xlim=(-SPAN, SPAN), ylim=(-SPAN, SPAN), xticks=[], yticks=[], aspect="equal")
            for side in axis.spines.values():
                side.set_color(EXACT)
            options = {"cmap": "Blues", "vmin": 0, "vmax": 1 / strength, "interpolation": "bilinear"}
            self.hazes.append(axis.imshow(np.zeros((2, 2)), origin="lower", extent=[-SPAN, SPAN] * 2, **options))
        self.trails = upper.add_collection(LineCollection([], colors=TRAIL, linewidths=0.8))
        self.dots = upper.scatter([], [], s=6, color=POINT, linewidths=0, zorder=3)
        fields = [(lesson.exact, EXACT, 0.013), (lesson.field, LEARNED, 0.006)]
        head = {
            "headwidth": 3.2,
            "headlength": 3.5,
            "headaxislength": 3,
            "angles": "xy",
            "scale_units": "xy",
            "scale": 1,
        }
        at, none = _grid(ARROWS).numpy(), np.zeros(ARROWS**2)
        self.arrows = [
            (field, lower.quiver(*at.T, none, none, color=colour, width=width, **head))
            for field, colour, width in fields
            if field is not None
        ]
        upper.set_title(f"{lesson.title}\n{lesson.way}", fontsize=10)
        lower.set_title(lesson.field_name, fontsize=9, color=LEARNED)
        lower.set_xlabel(f"on the data {fact['inside']:.0%}, covers {fact['coverage']:.0%}", fontsize=9)

    def show(self, i: int) -> None:
        t, positions = self.lesson.times[i], self.lesson.positions
        log_density = self.lesson.density(_grid(PIXELS), t).reshape(PIXELS, PIXELS)
        haze = ((log_density - log_density.max()) / 2).exp().numpy()  # the root, so that thin parts are seen
        for image in self.hazes:
            image.set_data(haze)
        self.trails.set_segments(list(positions[: i + 1, :TRAILS].transpose(0, 1).numpy()))
        self.dots.set_offsets(positions[i, :DOTS].numpy())
        shown = [field(_grid(ARROWS), t) for field, _ in self.arrows]
        if self.lesson.exact is not None:
            seldom = self.lesson.density(_grid(ARROWS), t) < log_density.max() - RARE
            shown = [field.masked_fill(seldom[:, None], torch.nan) for field in shown]
        length = shown[0].norm(dim=1).nanquantile(0.9).clamp(min=1e-9)
        for (_, quiver), field in zip(self.arrows, shown, strict=True):
            quiver.set_UVC(*(_bounded(field / length) * 2 * SPAN / ARROWS).T.numpy())


def _grid(count: int) -> torch.Tensor:
    """The centres of count x count cells of a panel, (count^2, 2)."""
    at = (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * SPAN / count) - SPAN
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).flatten(0, 1)


def _bounded(arrows: torch.Tensor) -> torch.Tensor:
    """Arrows (M, 2), those longer than 1.4 cut to it."""
    size = arrows.norm(dim=1, keepdim=True)
    return arrows * (1.4 / size.clamp(min=1e-9)).clamp(max=1)


def save_gif(pictures: Sequence[Image.Image], path: Path) -> None:
    """An animation whose frames share `COLOURS` colours, which keeps it small."""
    some = pictures[:: max(1, len(pictures) // 4)]
    sheet = Image.new("RGB", (some[0].width, sum(picture.height for picture in some)))
    for i, picture in enumerate(some):
        sheet.paste(picture, (0, i * picture.height))
    palette = sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    animate([picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures], path, SECONDS, HOLD)


def save_html(pictures: Sequence[Image.Image], path: Path, title: str, text: str) -> None:
    """One page that opens offline: the frames with a slider and a button."""
    encoded = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=80)
        encoded.append(base64.b64encode(file.getvalue()).decode())
    each = round(1000 * SECONDS / len(pictures))
    page = _PAGE.replace("TITLE", html.escape(title)).replace("TEXT", html.escape(text)).replace("EACH", str(each))
    path.write_text(page.replace("FRAMES", ",".join(f'"{frame}"' for frame in encoded)), encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 1.5rem auto; padding: 0 1rem; color: #222 }
img { display: block; margin: auto; max-width: 100%; max-height: 75vh; border: 1px solid #ddd; border-radius: 6px }
.bar { display: flex; gap: .8rem; align-items: center; margin: .6rem 0 }
input { flex: 1; accent-color: #e4572e }
button { font: inherit; padding: .2rem 1rem }
</style>
<h1>TITLE</h1>
<img id="picture" alt="points on their way from noise to data, and the learned fields">
<div class="bar"><button id="play" type="button">Pause</button>
<label for="place">noise</label><input id="place" type="range" min="0" value="0"><span>data</span></div>
<p>TEXT</p>
<script>
const frames = [FRAMES], place = document.getElementById("place"), play = document.getElementById("play");
const picture = document.getElementById("picture");
let running = true, rest = 0;
place.max = frames.length - 1;
const show = i => { place.value = i; picture.src = "data:image/webp;base64," + frames[i]; };
place.oninput = () => { running = false; play.textContent = "Play"; show(+place.value); };
play.onclick = () => { running = !running; play.textContent = running ? "Pause" : "Play"; };
setInterval(() => {
  if (!running) return;
  if (+place.value < frames.length - 1) { show(+place.value + 1); rest = 0; }
  else if (++rest > 15) { show(0); }
}, EACH);
show(0);
</script>
</html>
"""

"""The animation of demos: a column each, with moving points above and the learned field below."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..console.text import escaped
from ..disk.files import write_text
from ..utils.pictures import animate
from .families import FRAMES, Demo

SPAN = 1.75
"""Axes reach from -SPAN to SPAN."""
PIXELS, ARROWS, DOTS, TRAILS = 72, 15, 300, 32
"""Density cells and arrows along a side of a panel; numbers of points and of trajectories that are drawn."""
DENSITY_RANGE = 10.0
"""Arrows are left out where the log density is this many nats below its maximum: no points come there."""
POINT, TRAIL, LEARNED, EXACT = "#e4572e", "#f2a65a", "#17324d", "#b8b8b8"
INCHES, DPI = 2.7, 80
SECONDS, HOLD, COLOURS = 6.0, 2.5, 64


def frames(demos: Sequence[Demo], qualities: Sequence[Mapping[str, float]], data: str) -> Iterator[Image.Image]:
    """Yield the `FRAMES` + 1 pictures of the animation, from noise to data.

    The upper panel shows the density that points should have, the points, and trajectories of some. The lower panel
    shows the learned field as dark arrows over the exact field in grey. Arrows of one panel and frame share a scale. If
    there is an exact field, arrows are drawn only where points are at this time.

    Args:
        demos: one for each column.
        qualities: result of `families.quality` for each demo.
        data: name of the data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(INCHES * len(demos), 7.0) + 0.3, 2 * INCHES + 1.25), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(demos), squeeze=False)
    figure.subplots_adjust(0.02, 0.06, 0.98, 0.84, wspace=0.06, hspace=0.2)
    headline = _Headline(figure, data)
    columns = [_Column(*pair, demo, quality) for pair, demo, quality in zip(axes.T, demos, qualities, strict=True)]
    for i in range(FRAMES + 1):
        headline.show(1 - i / FRAMES)
        for column in columns:
            column.show(i)
        canvas.draw()
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


class _Headline:
    """The line above the columns: name of the data, time, and a progress bar from noise to data."""

    left, right, y = 0.55, 0.91, 0.955

    def __init__(self, figure: Any, data: str):
        from matplotlib.lines import Line2D

        text = {"va": "center", "y": self.y}
        figure.text(0.02, s=data.replace("_", " "), fontsize=13, weight="bold", **text)
        figure.text(self.left - 0.01, s="noise", fontsize=10, ha="right", **text)
        figure.text(self.right + 0.01, s="data", fontsize=10, **text)
        self.clock = figure.text(0.33, s="", fontsize=11, family="monospace", **text)
        whole, self.bar = (
            Line2D([self.left, end], [self.y, self.y], color=colour, linewidth=width)
            for end, colour, width in ((self.right, EXACT, 3), (self.left, POINT, 5))
        )
        for line in (whole, self.bar):
            figure.add_artist(line)

    def show(self, t: float) -> None:
        """Set the time."""
        self.clock.set_text(f"t = {t:.2f}")
        self.bar.set_xdata([self.left, self.left + (self.right - self.left) * (1 - t)])


class _Column:
    """The two panels of a demo."""

    def __init__(self, upper: Any, lower: Any, demo: Demo, quality: Mapping[str, float]):
        from matplotlib.collections import LineCollection

        self.demo, self.densities = demo, []
        for axis, strength in ((upper, 0.5), (lower, 0.25)):
            axis.set(xlim=(-SPAN, SPAN), ylim=(-SPAN, SPAN), xticks=[], yticks=[], aspect="equal")
            for side in axis.spines.values():
                side.set_color(EXACT)
            options = {"cmap": "Blues", "vmin": 0, "vmax": 1 / strength, "interpolation": "bilinear"}
            self.densities.append(axis.imshow(np.zeros((2, 2)), origin="lower", extent=[-SPAN, SPAN] * 2, **options))
        self.trails = upper.add_collection(LineCollection([], colors=TRAIL, linewidths=0.8))
        self.dots = upper.scatter([], [], s=6, color=POINT, linewidths=0, zorder=3)
        fields = [(demo.exact_field, EXACT, 0.013), (demo.field, LEARNED, 0.006)]
        head = {
            "headwidth": 3.2,
            "headlength": 3.5,
            "headaxislength": 3,
            "angles": "xy",
            "scale_units": "xy",
            "scale": 1,
        }
        places, zeros = _grid(ARROWS).numpy(), np.zeros(ARROWS**2)
        self.arrows = [
            (field, lower.quiver(*places.T, zeros, zeros, color=colour, width=width, **head))
            for field, colour, width in fields
            if field is not None
        ]
        upper.set_title(f"{demo.title}\n{demo.method}", fontsize=10)
        lower.set_title(demo.field_name, fontsize=9, color=LEARNED)
        lower.set_xlabel(f"on the data {quality['inside']:.0%}, coverage {quality['coverage']:.0%}", fontsize=9)

    def show(self, i: int) -> None:
        """Draw frame i."""
        t, positions = self.demo.times[i], self.demo.positions
        log_density = self.demo.density(_grid(PIXELS), t).reshape(PIXELS, PIXELS)
        image = (
            ((log_density - log_density.max()) / 2).exp().numpy()
        )  # square root: regions of low density stay visible
        for artist in self.densities:
            artist.set_data(image)
        self.trails.set_segments(list(positions[: i + 1, :TRAILS].transpose(0, 1).numpy()))
        self.dots.set_offsets(positions[i, :DOTS].numpy())
        fields = [field(_grid(ARROWS), t) for field, _ in self.arrows]
        if self.demo.exact_field is not None:
            empty = self.demo.density(_grid(ARROWS), t) < log_density.max() - DENSITY_RANGE
            fields = [field.masked_fill(empty[:, None], torch.nan) for field in fields]
        length = fields[0].norm(dim=1).nanquantile(0.9).clamp(min=1e-9)
        for (_, quiver), field in zip(self.arrows, fields, strict=True):
            quiver.set_UVC(*(_shorten(field / length) * 2 * SPAN / ARROWS).T.numpy())


def _grid(count: int) -> torch.Tensor:
    """Return the centres of count x count cells of a panel, (count^2, 2)."""
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * SPAN / count) - SPAN
    return torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).flatten(0, 1)


def _shorten(arrows: torch.Tensor) -> torch.Tensor:
    """Return arrows (M, 2) with a length of 1.4 at most."""
    length = arrows.norm(dim=1, keepdim=True)
    return arrows * (1.4 / length.clamp(min=1e-9)).clamp(max=1)


def save_gif(pictures: Sequence[Image.Image], path: Path) -> None:
    """Save the pictures as an animation. Frames share one palette of `COLOURS` colours, which keeps the file small."""
    selection = pictures[:: max(1, len(pictures) // 4)]
    sheet = Image.new("RGB", (selection[0].width, sum(picture.height for picture in selection)))
    for i, picture in enumerate(selection):
        sheet.paste(picture, (0, i * picture.height))
    palette = sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    animate([picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures], path, SECONDS, HOLD)


def save_html(pictures: Sequence[Image.Image], path: Path, title: str, text: str) -> None:
    """Save the pictures as one HTML page that needs no network, with a slider and a button.

    Args:
        pictures: the frames.
        path: of the page.
        title, text: plain text above and below the frames.
    """
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=80)
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    interval = round(1000 * SECONDS / len(pictures))  # milliseconds
    page = (
        _PAGE.replace("TITLE", escaped(title, "html"))
        .replace("TEXT", escaped(text, "html"))
        .replace("INTERVAL", str(interval))
    )
    write_text(path, page.replace("FRAMES", ",".join(f'"{frame}"' for frame in encoded)))


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
}, INTERVAL);
show(0);
</script>
</html>
"""

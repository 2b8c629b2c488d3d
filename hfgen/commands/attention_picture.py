"""The picture of `hfgen attention`: a row for each step, a column for each layer, heat maps over the image."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ..evaluation.attention_maps import AttentionMap, Trace, enlarge
from ..utils import heatmap
from ..utils.pixels import to_levels

PANEL = 112
"""Approximate side of a panel, in pixels."""
MARGIN, HEADER, GAP, LEGEND = 132, 44, 22, 700
"""Pixels left of the panels, above them, and between rows; width of the legend."""
ABBREVIATIONS = {"unet.": "", "_blocks": "", "_block": "", "attentions": "attn", ".attention": ""}
"""Parts of layers' names and what the headings of columns write for them."""
UNIFORM_FACTOR = 3
"""Full red is the largest weight of a panel, and at least this many times the weight of uniform attention."""


def draw(trace: Trace, layers: Sequence[str], query: str | None, heads: bool, multiple: int) -> Image.Image:
    """Draw the input of the network at each step, and beside it a panel for each layer (and head).

    Args:
        trace: the maps.
        layers: names of the layers to show.
        query: "row,column" of a pixel, whose query's weights are shown; None: the mean over all queries.
        heads: whether each head has a column; else a column is the mean over heads.
        multiple: the network pads the sides of images to a multiple of this; 1: no padding.

    Raises:
        ValueError: `query` is not a pixel of the image.
    """
    maps = {(each.layer, each.call): each for each in trace.maps}
    names, calls = list(dict.fromkeys(name for name, _ in maps)), sorted({call for _, call in maps})
    columns = [
        (name, head)
        for name in names
        if name in layers
        for head in (range(maps[name, calls[0]].weights.shape[1]) if heads else [None])
    ]
    panel = _panel(trace.image)
    width, height = panel.width + 8, panel.height + GAP
    size = (max(MARGIN + (1 + len(columns)) * width, LEGEND), HEADER + len(calls) * height + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((8, 6), f"attention,\n{'mean query' if query is None else f'query {query}'}", "black", _font(13))
    pen.text((MARGIN, 6), "input", "black", _font(13))
    for i, (name, head) in enumerate(columns, 1):
        text = _heading(names.index(name) + 1, name, head, width)
        pen.text((MARGIN + i * width, 6), text, "black", _font(12))
    for row, (call, (title, x)) in enumerate(zip(calls, trace.inputs, strict=True)):
        top = HEADER + row * height
        pen.text((8, top + 8), title, "black", _font(13))
        sheet.paste(_panel(x), (MARGIN, top))
        for i, (name, head) in enumerate(columns, 1):
            left = MARGIN + i * width
            picture, caption = _heat_panel(panel, maps[name, call], head, query, trace.image.shape[-2:], multiple)
            sheet.paste(picture, (left, top))
            pen.text((left, top + panel.height + 2), caption, "#555555", _font(11))
    pen.text((8, size[1] - GAP + 4), _legend(query), "#555555", _font(11))
    return sheet


def _legend(query: str | None) -> str:
    whose = "averaged over all queries" if query is None else f"of the query at {query}"
    return (
        f"full red: largest weight in a panel, {whose}, at least {UNIFORM_FACTOR} times the uniform weight; "
        "below: number of positions that a query attends to, exp(entropy)"
    )


def _heat_panel(
    panel: Image.Image,
    attention: AttentionMap,
    head: int | None,
    query: str | None,
    size: Sequence[int],
    multiple: int,
) -> tuple[Image.Image, str]:
    """Return the panel with the heat map of one attention over it, and its caption: perplexity of positions."""
    padded = [side + -side % multiple for side in size]
    factors = panel.height / size[0], panel.width / size[1]
    extent = tuple(side * factor for side, factor in zip(padded, factors, strict=True))
    pixel = None if query is None else parse_pixel(query, size)
    if pixel is None:
        weights, perplexity = attention.query_mean()[0], attention.perplexity()[0]
    else:
        cell = [index * count // whole for index, count, whole in zip(pixel, attention.grid, padded, strict=True)]
        weights, perplexity = attention.from_query(*cell)[0], attention.perplexity(*cell)[0]
    weights = weights.mean(0) if head is None else weights[head]
    heat = enlarge(weights, attention.grid, extent, (panel.height, panel.width))
    picture = heatmap.overlay(panel, heat, max(float(heat.max()), UNIFORM_FACTOR / len(weights)))
    if pixel is not None:
        y, x = (round(index * factor) for index, factor in zip(pixel, factors, strict=True))
        box = (x, y, x + max(3, round(factors[1])), y + max(3, round(factors[0])))
        ImageDraw.Draw(picture).rectangle(box, outline="#00d0ff", width=2)
    perplexity = perplexity.mean() if head is None else perplexity[head]
    return picture, f"{perplexity:.0f} of {attention.weights.shape[-1]}"


def parse_pixel(text: str, size: Sequence[int]) -> tuple[int, int]:
    """Return (row, column) of "row,column" in an image of `size` (H, W).

    Raises:
        ValueError: the text is not the place of a pixel.
    """
    words = [word.strip() for word in text.split(",")]
    inside = len(words) == 2 and all(w.isdecimal() and int(w) < side for w, side in zip(words, size, strict=True))
    if not inside:
        raise ValueError(f"--query {text!r}: give row,column, from 0,0 to {size[0] - 1},{size[1] - 1}.")
    return int(words[0]), int(words[1])


def _panel(image: torch.Tensor) -> Image.Image:
    """Return an image (C, H, W) in [-1, 1] as a picture of about PANEL pixels: enlarged by an integer, or reduced."""
    pixels = to_levels(image.detach().float().cpu()).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    factor = max(1, round(PANEL / max(picture.size)))
    if factor > 1 or max(picture.size) <= PANEL:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((PANEL, PANEL))
    return picture


def _heading(number: int, layer: str, head: int | None, width: int) -> str:
    """Return the heading of a column of `width` pixels: the layer's number, the end of its name, the head."""
    letters, name = width // 7, layer
    for long, short in ABBREVIATIONS.items():
        name = name.replace(long, short)
    name = name if len(name) <= letters else ".." + name[-(letters - 2) :]
    return f"layer {number}\n{name}" if head is None else f"layer {number}, head {head + 1}\n{name}"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)

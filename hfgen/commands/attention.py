"""`hfgen attention`: where a network looks while it draws an image, or while it sees one in noise."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..options import argument, option, parse, parser
from ..utils.devices import placed

EXAMPLE = "hfgen attention outputs/quickstart --class_label 3 --steps 20 --step 1,5,10,15,20 --output attention.png"
PANEL = 112
"""Sides of panels are about so many pixels."""
MARGIN, TITLE, GAP, LEGEND = 132, 44, 22, 700
"""Pixels left of the panels, above them, and between their rows; and what the legend is wide."""
STEPS_SHOWN = 5
ABBREVIATIONS = {"unet.": "", "_blocks": "", "_block": "", "attentions": "attn", ".attention": ""}
"""Of layers' names above columns."""
EVEN = 3
"""Full red is what is looked at most, and at least so many times as much as under even attention."""


@dataclasses.dataclass
class AttentionOptions:
    """Attention"""

    pipeline: str = argument("folder of a trained pipeline of hfgen's, or of diffusers' with a U-Net, or a Hub id")
    output: str = option("attention.png", "where to save the picture")
    image: str | None = option(None, "look at this image, in the noise of each step; default: one that is drawn")
    class_label: str | None = option(None, "its class, by number or name")
    steps: int | None = option(None, "steps of the scheduler; default: its own")
    step: str | None = option(None, "which of them to show, from 1, separated by commas; default: five")
    layer: str | None = option(None, "layers by number, from 1, or by part of their name, with commas; default: all")
    query: str | None = option(None, "row,column of a pixel: where it looks; default: how much each is looked at")
    heads: bool = option(False, "each head by itself, in place of their mean")
    seed: int = option(0, "of the noise")
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")


class Run(NamedTuple):
    """What a pipeline did: its image, what it saw in each evaluation with a title, and all attention."""

    image: Any
    seen: list[tuple[str, Any]]
    maps: list[Any]


def main(argv: list[str] | None = None) -> None:
    """Draw the picture, and list the layers."""
    about = "Draw attention maps of a transformer or U-Net: a row a step, a column a layer, heat over the image."
    (options,) = parse(
        parser("hfgen attention", about, EXAMPLE, AttentionOptions, config=False), argv, AttentionOptions
    )
    pipeline = _pipeline(options)
    run = watch(pipeline, options)
    layers = list(dict.fromkeys(found.layer for found in run.maps))
    chosen = pick_layers(layers, options.layer)
    picture = draw(run, chosen, options, getattr(_network(pipeline), "multiple", 1))
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    picture.save(options.output)
    for number, layer in enumerate(layers, 1):
        one = next(found for found in run.maps if found.layer == layer)
        shape = f"{one.weights.shape[1]} heads over {' x '.join(map(str, one.positions))} positions"
        print(f"{'*' if layer in chosen else ' '} {number:2} {layer}: {shape}")
    print(f"{len(chosen)} of {len(layers)} layers (*) in {options.output}")


def _pipeline(options: AttentionOptions) -> Any:
    """The pipeline, on its device; one of diffusers' as ours around the same U-Net and scheduler."""
    import hfgen

    from ..saving import load as loading

    _, index = loading.find(options.pipeline, {})
    if {"unet", "scheduler"} <= index.keys():
        network, scheduler = (
            loading.component(index[key], key, options.pipeline).from_pretrained(options.pipeline, subfolder=key)
            for key in ("unet", "scheduler")
        )
        pipeline = hfgen.DenoisingPipeline(network, scheduler)
    else:
        pipeline = hfgen.HFGenPipeline.from_pretrained(options.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return placed(pipeline, options.device)


def _network(pipeline: Any) -> Any:
    """The component with most parameters."""
    from torch import nn

    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return max(networks, key=lambda network: sum(p.numel() for p in network.parameters()))


# --- running ----------------------------------------------------------------------------------------------------------


def watch(pipeline: Any, options: AttentionOptions) -> Run:
    """Draw an image, or look at the given one, with attention caught at the steps that are asked for.

    Raises:
        ValueError: the network has no attention over image positions, or options that do not fit the pipeline.
    """
    from ..evaluation.attention_maps import capture

    network, shape = _network(pipeline), pipeline.image_shape
    given = None if options.image is None else _read(options.image, shape).to(pipeline.device)
    stepwise = "scheduler" in pipeline.components
    if not stepwise:
        for name in ("steps", "step"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name}: a {type(pipeline).__name__} works in one pass. Leave it out.")
    times = _times(pipeline, options.steps) if stepwise else [None]
    shown = pick_steps(options.step, len(times))
    with capture(network, shape[1:], lambda layer, call: call in shown) as maps:
        image, seen = _denoise(pipeline, options, given, times) if stepwise else _code(pipeline, options, given)
    whole = [found for found in maps if found.positions is not None]
    if not whole:
        has = "attends to what are no positions of an image" if maps else "has no attention"
        raise ValueError(
            f"{options.pipeline}: its {type(network).__name__} {has}, so there is nothing to draw. Transformers have "
            "(hfgen train diffusion --model dit), and U-Nets (--model patch_unet or unet)."
        )
    return Run(image, [seen[i] for i in range(len(seen)) if i in shown], whole)


def _times(pipeline: Any, steps: int | None) -> Any:
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps or getattr(scheduler, "default_num_inference_steps", 50))
    return scheduler.timesteps


def _denoise(pipeline: Any, options: AttentionOptions, given: Any, times: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """The image, and x_t at each step: drawn, or the given image in the noise of the step's time."""
    import torch

    from ..paths import path_from_config

    path, generator = path_from_config(pipeline.scheduler.config), torch.Generator().manual_seed(options.seed)
    noise = torch.randn(1, *pipeline.image_shape, generator=generator).to(pipeline.device)
    clock = path.time_of(torch.as_tensor(times, dtype=torch.float64).cpu())

    def put_back(_: Any, i: int, timestep: Any, tensors: dict) -> dict:
        """The given image at the next step, whatever was drawn."""
        return {"latents": path.mix(given, noise, clock[min(i + 1, len(clock) - 1)])}

    call = pipeline.call_with(
        class_labels=options.class_label and _label(options.class_label),
        callback_on_step_end=None if given is None else put_back,
        num_inference_steps=options.steps,
    )
    drawn = pipeline(generator=generator, latents=noise, output_type="latent", return_trajectory=True, **call)
    seen = [
        (f"step {i + 1} of {len(clock)}\nt = {float(t):.2f}", x[0])
        for i, (t, x) in enumerate(zip(clock, drawn.trajectory, strict=False))
    ]
    return (drawn.images if given is None else given)[0], seen


def _code(pipeline: Any, options: AttentionOptions, given: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """The image, drawn in one pass, or the given one's reconstruction."""
    import torch

    if given is None:
        generator = torch.Generator().manual_seed(options.seed)
        call = pipeline.call_with(class_labels=options.class_label and _label(options.class_label))
        image = pipeline(generator=generator, output_type="latent", **call).images[0]
        return image, [("drawn in\none pass", image)]
    if options.class_label is not None or not hasattr(pipeline, "reconstruct"):
        what = "--class_label" if options.class_label is not None else "--image"
        raise ValueError(f"{what}: a {type(pipeline).__name__} does nothing with it. Leave it out.")
    return given[0], [("reconstructed", pipeline.reconstruct(given)[0])]


def _label(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _read(path: str, shape: Sequence[int]) -> Any:
    """The image of a file as (1, C, H, W) in [-1, 1], cropped to the shape of the model's and resized."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    from ..utils.pixels import from_levels

    channels, height, width = shape
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise ValueError(f"--image: this model's images have {channels} channels, which no image file has.")
    try:
        image = ImageOps.fit(Image.open(path).convert(modes[channels]), (width, height), Image.Resampling.LANCZOS)
    except UnidentifiedImageError:
        raise ValueError(f"--image {path} is no image that can be read.") from None
    pixels = torch.from_numpy(np.array(image)).reshape(height, width, channels).permute(2, 0, 1)
    return from_levels(pixels[None])


def pick_steps(text: str | None, count: int) -> list[int]:
    """Which of `count` steps, from 0: the given numbers from 1; by default the first, the last and three between."""
    if text is None:
        last = min(STEPS_SHOWN, count) - 1
        return [round(i * (count - 1) / max(1, last)) for i in range(last + 1)]
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if not (word.isdecimal() and 1 <= int(word) <= count)]
    if wrong:
        raise ValueError(f"--step {text!r}: {wrong[0]!r} is no step from 1 to {count}; see --steps.")
    return sorted({int(word) - 1 for word in words})


def pick_layers(layers: Sequence[str], text: str | None) -> list[str]:
    """The layers that numbers from 1 or parts of names mean; by default all."""
    if text is None:
        return list(layers)
    chosen = set()
    for word in (word.strip() for word in text.split(",")):
        number = int(word) if word.isdecimal() else 0
        found = (
            [layers[number - 1]] if 1 <= number <= len(layers) else [name for name in layers if word and word in name]
        )
        if not found:
            raise ValueError(f"--layer {word!r} is none of the {len(layers)} layers: {', '.join(layers)}.")
        chosen.update(found)
    return [name for name in layers if name in chosen]


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(run: Run, layers: Sequence[str], options: AttentionOptions, multiple: int) -> Any:
    """The picture: what was seen at the left of each row, then a panel a layer (and head).

    Args:
        run: what is drawn.
        layers: names of those to show.
        options: `query` and `heads`.
        multiple: what the network pads sides of images to a multiple of; 1: it does not.
    """
    from PIL import Image, ImageDraw

    maps = {(found.layer, found.call): found for found in run.maps}
    names, calls = list(dict.fromkeys(name for name, _ in maps)), sorted({call for _, call in maps})
    columns = [
        (name, head)
        for name in names
        if name in layers
        for head in (range(maps[name, calls[0]].weights.shape[1]) if options.heads else [None])
    ]
    panel = _panel(run.image)
    wide, high = panel.width + 8, panel.height + GAP
    size = (max(MARGIN + (1 + len(columns)) * wide, LEGEND), TITLE + len(calls) * high + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    title = "looked at by all" if options.query is None else f"seen from {options.query}"
    pen.text((8, 6), f"attention,\n{title}", "black", _font(13))
    pen.text((MARGIN, 6), "what it sees", "black", _font(13))
    for place, (name, head) in enumerate(columns, 1):
        text = _shortened(names.index(name) + 1, name, head, wide)
        pen.text((MARGIN + place * wide, 6), text, "black", _font(12))
    for row, (call, (text, seen)) in enumerate(zip(calls, run.seen, strict=True)):
        top = TITLE + row * high
        pen.text((8, top + 8), text, "black", _font(13))
        sheet.paste(_panel(seen), (MARGIN, top))
        for place, (name, head) in enumerate(columns, 1):
            found, left = maps[name, call], MARGIN + place * wide
            picture, said = _heated(panel, found, head, options.query, run.image.shape[-2:], multiple)
            sheet.paste(picture, (left, top))
            pen.text((left, top + panel.height + 2), said, "#555555", _font(11))
    pen.text((8, size[1] - GAP + 4), _legend(options), "#555555", _font(11))
    return sheet


def _legend(options: AttentionOptions) -> str:
    what = "looked at most in a panel" if options.query is None else f"what {options.query} looks at most in a panel"
    return f"full red: {what}, {EVEN} times an even share or more; below: to how many positions one looks, exp(entropy)"


def _heated(
    panel: Any, found: Any, head: int | None, query: str | None, size: Sequence[int], multiple: int
) -> tuple[Any, str]:
    """A panel with its heat, and what is said below it."""
    from PIL import ImageDraw

    from ..evaluation.attention_maps import spread
    from ..utils import heatmap as heat

    padded = [side + -side % multiple for side in size]
    factors = panel.height / size[0], panel.width / size[1]
    covered = tuple(side * factor for side, factor in zip(padded, factors, strict=True))
    pixel = None if query is None else parse_pixel(query, size)
    if pixel is None:
        weights, breadth = found.received()[0], found.breadth()[0]
    else:
        cell = [place * count // whole for place, count, whole in zip(pixel, found.positions, padded, strict=True)]
        weights, breadth = found.seen_from(*cell)[0], found.breadth(*cell)[0]
    weights = weights.mean(0) if head is None else weights[head]
    map_ = spread(weights, found.positions, covered, (panel.height, panel.width))
    picture = heat.overlay(panel, map_, max(float(map_.max()), EVEN / len(weights)))
    if pixel is not None:
        y, x = (round(place * factor) for place, factor in zip(pixel, factors, strict=True))
        box = (x, y, x + max(3, round(factors[1])), y + max(3, round(factors[0])))
        ImageDraw.Draw(picture).rectangle(box, outline="#00d0ff", width=2)
    breadth = breadth.mean() if head is None else breadth[head]
    return picture, f"{breadth:.0f} of {found.weights.shape[-1]}"


def parse_pixel(text: str, size: Sequence[int]) -> tuple[int, int]:
    """(row, column) of "row,column" in an image of (H, W).

    Raises:
        ValueError: no such pixel.
    """
    words = [word.strip() for word in text.split(",")]
    inside = len(words) == 2 and all(w.isdecimal() and int(w) < side for w, side in zip(words, size, strict=True))
    if not inside:
        raise ValueError(f"--query {text!r}: give row,column, from 0,0 to {size[0] - 1},{size[1] - 1}.")
    return int(words[0]), int(words[1])


def _panel(image: Any) -> Any:
    """An image (C, H, W) in [-1, 1] as a picture of about PANEL pixels: repeated pixels, or fewer."""
    from PIL import Image

    from ..utils.pixels import to_levels

    pixels = to_levels(image.detach().float().cpu()).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    factor = max(1, round(PANEL / max(picture.size)))
    if factor > 1 or max(picture.size) <= PANEL:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((PANEL, PANEL))
    return picture


def _shortened(number: int, layer: str, head: int | None, width: int) -> str:
    """A layer's number, the end of its name, and the head."""
    letters, name = width // 7, layer
    for long, short in ABBREVIATIONS.items():
        name = name.replace(long, short)
    name = name if len(name) <= letters else ".." + name[-(letters - 2) :]
    return f"layer {number}\n{name}" if head is None else f"layer {number}, head {head + 1}\n{name}"


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)

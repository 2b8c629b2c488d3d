"""`hfgen attention`: attention maps of a network while it draws a sample, or while it denoises a given image."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console.text import with_article
from ..disk.files import write_picture
from ..options import Options, argument, option, parse, parser
from ..utils.devices import place
from ..utils.drawing import check_draws
from ..utils.ranges import COUNT, COUNT_OR_0, COUNTS, SEED, Listed

EXAMPLE = (
    "hfgen attention outputs/quickstart --class_labels 3 --num_inference_steps 20 --step 1,5,10,15,20 "
    "--output attention.png"
)
STEPS_SHOWN = 5


@dataclasses.dataclass
class AttentionOptions(Options):
    """Attention"""

    pipeline: str = argument("folder or Hub id of a trained pipeline, of hfgen or of diffusers with a U-Net")
    output: str = option("attention.png", "file for the picture", path=True)
    image: str | None = option(
        None, "denoise this image, with the noise of each step added; default: draw a sample", path=True
    )
    class_labels: str | None = option(None, "class of the image, by name or number", former=("class_label",))
    num_inference_steps: int | None = option(
        None, "steps of the scheduler; default: its own", range=COUNT, former=("steps",)
    )
    step: str | None = option(None, "steps to show, by number from 1, separated by commas; default: five", range=COUNTS)
    layer: str | None = option(
        None, "layers to show, by number from 1 or part of their name, separated by commas; default: all"
    )
    query: str | None = option(
        None,
        "row,column of a pixel: show its query's weights; default: mean over all queries",
        range=Listed(COUNT_OR_0, 2),
    )
    heads: bool = option(False, "show each head; default: their mean")
    seed: int = option(0, "seed of the noise", range=SEED)
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")


def main(argv: list[str] | None = None) -> None:
    """Save the picture, and print the layers."""
    description = "Draw attention maps of a transformer or U-Net: a row for each step, a column for each layer."
    command = parser("hfgen attention", description, EXAMPLE, AttentionOptions, config=False)
    (options,) = parse(command, argv, AttentionOptions)

    from ..utils.pictures import check_picture_file
    from .attention_picture import draw

    check_picture_file("output", options.output)
    pipeline = _pipeline(options)
    result = trace(pipeline, options)
    layers = list(dict.fromkeys(each.layer for each in result.maps))
    selection = pick_layers(layers, options.layer)
    picture = draw(result, selection, options.query, options.heads, getattr(_network(pipeline), "multiple", 1))
    write_picture(options.output, picture)
    for number, layer in enumerate(layers, 1):
        first = next(each for each in result.maps if each.layer == layer)
        shape = f"{first.weights.shape[1]} heads over {' x '.join(map(str, first.grid))} positions"
        print(f"{'*' if layer in selection else ' '} {number:2} {layer}: {shape}")
    print(f"{len(selection)} of {len(layers)} layers (*) in {options.output}")


def _pipeline(options: AttentionOptions) -> Any:
    """Load the pipeline on its device; a diffusers pipeline as `DenoisingPipeline` of its U-Net and scheduler."""
    import hfgen

    from ..saving import load as loading
    from ..saving.saved import whole

    with whole(options.pipeline) as source:
        _, index = loading.read_index(source, {})
    if {"unet", "scheduler"} <= index.keys():
        network, scheduler = (
            loading.component_class(index[key], key, options.pipeline).from_pretrained(options.pipeline, subfolder=key)
            for key in ("unet", "scheduler")
        )
        pipeline = hfgen.DenoisingPipeline(network, scheduler)
    else:
        pipeline = hfgen.HFGenPipeline.from_pretrained(options.pipeline)
    check_draws(pipeline, "Its network has no positions of images to draw.")
    pipeline.set_progress_bar_config(disable=True)
    return place(pipeline, options.device)


def _network(pipeline: Any) -> Any:
    """Return the denoiser, or of other pipelines the component with most parameters."""
    from torch import nn

    if (denoiser := pipeline.components.get("denoiser")) is not None:
        return denoiser
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return max(networks, key=lambda network: sum(p.numel() for p in network.parameters()))


def trace(pipeline: Any, options: AttentionOptions) -> Any:
    """Draw a sample, or denoise `options.image`, and record the attention of the selected steps.

    Raises:
        ValueError: the network has no attention over image positions, or an option does not fit the pipeline.
    """
    from ..evaluation.attention_maps import Trace, capture

    network, shape = _network(pipeline), getattr(pipeline, "item_shape", pipeline.sample_shape)
    image = None if options.image is None else _read(options.image, pipeline).to(pipeline.device)
    has_steps = "scheduler" in pipeline.components
    if not has_steps:
        for name in ("num_inference_steps", "step"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name}: {with_article(type(pipeline).__name__)} generates in one pass. Leave it out."
                )
    timesteps = _timesteps(pipeline, options.num_inference_steps) if has_steps else [None]
    selection = pick_steps(options.step, len(timesteps))
    with capture(network, shape[1:], lambda layer, call: call in selection) as maps:
        if has_steps:
            result, inputs = _denoise(pipeline, options, image, timesteps)
        else:
            result, inputs = _generate(pipeline, options, image)
    if not has_steps and not any(each.grid for each in maps) and (maps or not inputs) and hasattr(pipeline, "encode"):
        with capture(network, shape[1:], lambda layer, call: call == 0) as maps:
            inputs = _encode(pipeline, options, result)
    image_maps = [each for each in maps if each.grid is not None]
    if not image_maps:
        problem = "has attention, but not over the positions of an image" if maps else "has no attention"
        raise ValueError(
            f"{options.pipeline}: its {type(network).__name__} {problem}, so there is nothing to draw. Transformers "
            "have attention (hfgen train diffusion --model dit), and so have U-Nets (--model patch_unet or unet)."
        )
    return Trace(result, [inputs[i] for i in range(len(inputs)) if i in selection], image_maps)


def _timesteps(pipeline: Any, steps: int | None) -> Any:
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps or getattr(scheduler, "default_num_inference_steps", 50))
    return scheduler.timesteps


def _denoise(pipeline: Any, options: AttentionOptions, image: Any, timesteps: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Return the final image and (title, x_t) of each step.

    Without `image` a sample is drawn. With it, the input of each step is x_t = alpha_t image + sigma_t noise.
    """
    import torch

    from ..paths import path_from_config
    from ..utils.seeds import sample_generators

    path, (generator,) = path_from_config(pipeline.scheduler.config), sample_generators(options.seed, [0])
    of_latents = hasattr(pipeline, "latent_scale")
    shape = pipeline.item_shape if of_latents else pipeline.sample_shape
    noise = torch.randn(1, *shape, generator=generator).to(pipeline.device)
    item = pipeline.to_items(image) if of_latents and image is not None else image
    times = path.time_of(torch.as_tensor(timesteps, dtype=torch.float64).cpu())

    def replace_latents(_: Any, i: int, timestep: Any, tensors: dict) -> dict:
        """Discard the scheduler's step: the next step's input is the image with that step's noise."""
        return {"latents": path.mix(item, noise, times[min(i + 1, len(times) - 1)])}

    call = pipeline.call_with(
        class_labels=options.class_labels,
        callback_on_step_end=None if image is None else replace_latents,
        num_inference_steps=options.num_inference_steps,
    )
    output = pipeline(generator=generator, latents=noise, output_type="latent", return_trajectory=True, **call)
    inputs = [
        (f"step {i + 1} of {len(times)}\nt = {float(t):.2f}", (pipeline.to_samples(x) if of_latents else x)[0])
        for i, (t, x) in enumerate(zip(times, output.trajectory, strict=False))
    ]
    drawn = pipeline.to_samples(output.images) if of_latents else output.images
    return (drawn if image is None else image)[0], inputs


def _generate(pipeline: Any, options: AttentionOptions, image: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Return a sample that is drawn in one pass, or the image and its reconstruction as the only input.

    There is no input if the image has yet to be encoded: the pipeline does not reconstruct.
    """
    from ..utils.seeds import sample_generators

    if image is None:
        (generator,) = sample_generators(options.seed, [0])
        call = pipeline.call_with(class_labels=options.class_labels)
        sample = pipeline(generator=generator, output_type="latent", **call).images[0]
        return sample, [("drawn in\none pass", sample)]
    if hasattr(pipeline, "encode") and not hasattr(pipeline, "reconstruct"):
        return image[0], []
    if options.class_labels is not None or not hasattr(pipeline, "reconstruct"):
        flag = "--class_labels" if options.class_labels is not None else "--image"
        raise ValueError(f"{flag} has no effect on {with_article(type(pipeline).__name__)}. Leave it out.")
    return image[0], [("reconstruction", pipeline.reconstruct(image)[0])]


def _encode(pipeline: Any, options: AttentionOptions, image: Any) -> list[tuple[str, Any]]:
    """Encode an image (C, H, W) that was drawn token by token, whose attention is no map, or that was given; return it
    as the only input."""
    pipeline.encode(image[None], **pipeline.call_with(class_labels=options.class_labels))
    return [("encoded in\none pass", image)]


def _read(path: str, pipeline: Any) -> Any:
    """Read an image file as (1, C, H, W) in [-1, 1], prepared as the training images were, and tell how.

    For a pipeline that does not say how, the centre square is resized. An image that is no square for the model is
    cropped to the model's aspect ratio.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from ..console.notes import tell
    from ..data.sources import CorruptImageError, Decoder, parse_colour
    from ..data.training_data import levels_of
    from ..utils.pixels import from_levels

    channels, height, width = pipeline.sample_shape
    if channels not in (1, 3, 4):
        raise ValueError(f"--image: this model's images have {channels} channels, and files have 1, 3 or 4.")
    record = pipeline.training_data or {}
    crop, background, levels = record.get("center_crop", True), record.get("background", "white"), levels_of(record)
    side = height if height == width else None
    decoder = Decoder("image", side, bool(crop), channels, parse_colour(str(background)), levels)
    Path(path).stat()  # raises an error of its own for a file that is not there
    try:
        pixels = decoder({"path": path}, "--image")
    except CorruptImageError:
        raise ValueError(f"--image {path} can't be read as an image.") from None
    if pixels.shape[1:] != (height, width):
        image = Image.fromarray(pixels.transpose(1, 2, 0).squeeze())
        pixels = np.array(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
        pixels = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    how = "cropped at the centre" if crop else "squeezed"
    whose = "as the training images were" if record else "since the pipeline does not say how it was trained"
    tell(f"image {path}: {how}, {width} x {height}, {channels} channel(s), on {background}, {whose}")
    return from_levels(torch.from_numpy(pixels.copy())[None])


def pick_steps(text: str | None, count: int) -> list[int]:
    """Return indices, from 0, of the steps that `text` lists by number from 1.

    Without `text` these are the first, the last and three between, evenly spaced.

    Raises:
        ValueError: a number that is not from 1 to `count`.
    """
    if text is None:
        last = min(STEPS_SHOWN, count) - 1
        return [round(i * (count - 1) / max(1, last)) for i in range(last + 1)]
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if not (word.isdecimal() and 1 <= int(word) <= count)]
    if wrong:
        raise ValueError(f"--step {text!r}: {wrong[0]!r} is no step from 1 to {count}; see --num_inference_steps.")
    return sorted({int(word) - 1 for word in words})


def pick_layers(layers: Sequence[str], text: str | None) -> list[str]:
    """Return the layers that `text` lists by number from 1 or by part of their names; all without `text`.

    Raises:
        ValueError: a number or part of a name that fits no layer.
    """
    if text is None:
        return list(layers)
    selection = set()
    for word in (word.strip() for word in text.split(",")):
        number = int(word) if word.isdecimal() else 0
        if 1 <= number <= len(layers):
            matches = [layers[number - 1]]
        else:
            matches = [name for name in layers if word and word in name]
        if not matches:
            raise ValueError(f"--layer {word!r} is none of the {len(layers)} layers: {', '.join(layers)}.")
        selection.update(matches)
    return [name for name in layers if name in selection]

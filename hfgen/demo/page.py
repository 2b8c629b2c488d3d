"""The page of a demo, made of gradio's components."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..console.text import escaped
from ..utils.ranges import SEED
from .studio import Studio

STYLE = """
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: auto}
.pictures img {image-rendering: pixelated}
"""
"""Small images are shown with their own pixels."""

ABOUT = "Images on this page are made by a model. Each file says so, and which model, seed and steps drew it."


def page_of(studio: Studio, title: str | None = None) -> gr.Blocks:
    """Return the page of a pipeline: samples, and interpolations and reconstructions where it can."""
    with gr.Blocks(title=title or studio.model.name, analytics_enabled=False) as page:
        gr.Markdown(f"# {escaped(title or studio.model.name, 'markdown')}\n{ABOUT}")
        with gr.Tab("Samples"):
            _samples(studio)
        if studio.can("interpolate"):
            with gr.Tab("Interpolation"):
                _interpolation(studio)
        if studio.can("reconstruct"):
            with gr.Tab("Reconstruction"):
                _reconstruction(studio)
    return page


def launch_options(studio: Studio) -> dict[str, Any]:
    """Return the options of `launch` that the page needs."""
    return {"css": STYLE, "allowed_paths": [str(studio.folder)], "footer_links": ["api"]}


def _samples(studio: Studio) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            seed = gr.Number(0, label="Seed", precision=0, minimum=SEED.low, maximum=SEED.high)
            most = studio.max_batch
            count = gr.Slider(1, most, min(8, most), step=1, label="Number of images")
            controls = _controls(studio)
            button = gr.Button("Draw", variant="primary")
        gallery, files = _outputs()

    def draw(seed: int, count: int, *values: Any) -> tuple[list[str], list[str]]:
        with _shown():
            call = studio.controls(**dict(zip(controls, values, strict=True)))
            return _twice(studio.draw(int(seed), int(count), call))

    _on(button, draw, [seed, count, *controls.values()], [gallery, files], "draw")


def _interpolation(studio: Studio) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            first = gr.Number(0, label="First seed", precision=0, minimum=SEED.low, maximum=SEED.high)
            second = gr.Number(1, label="Second seed", precision=0, minimum=SEED.low, maximum=SEED.high)
            most = max(2, studio.max_batch)
            steps = gr.Slider(2, most, min(8, most), step=1, label="Images on the way")
            controls = _controls(studio)
            button = gr.Button("Interpolate", variant="primary")
        gallery, files = _outputs()

    def interpolate(first: int, second: int, steps: int, *values: Any) -> tuple[list[str], list[str]]:
        with _shown():
            call = studio.controls(**dict(zip(controls, values, strict=True)))
            return _twice(studio.interpolate(int(first), int(second), int(steps), call))

    _on(button, interpolate, [first, second, steps, *controls.values()], [gallery, files], "interpolate")


def _reconstruction(studio: Studio) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = gr.Image(label="Your image", type="pil", sources=["upload", "clipboard"])
            asks = studio.model.takes_label("reconstruct")
            label = gr.Dropdown(studio.classes, label="Class", value=None) if asks else None
            button = gr.Button("Reconstruct", variant="primary")
        gallery, files = _outputs()

    def reconstruct(image: Any, *labels: Any) -> tuple[list[str], list[str]]:
        with _shown():
            if image is None:
                raise ValueError("Give an image first.")
            given = studio.model.labels(labels[0]) if labels and labels[0] else None
            return _twice(studio.reconstruct(image, given))

    _on(button, reconstruct, [image, *([label] if label else [])], [gallery, files], "reconstruct")


def _controls(studio: Studio) -> dict[str, Any]:
    """Return the controls of a call by the names that `Studio.controls` takes."""
    found: dict[str, Any] = {}
    if studio.classes:
        found["label"] = gr.Dropdown(studio.classes, value=studio.classes[0], label="Class")
    if studio.takes("prompt"):
        found["prompt"] = gr.Textbox(label="Prompt", value="a picture", max_length=2000)
    if studio.schedulers:
        found["scheduler"] = gr.Dropdown(studio.schedulers, value=studio.schedulers[0], label="Scheduler")
    if studio.steps is not None:
        found["steps"] = gr.Slider(1, max(100, studio.steps), studio.steps, step=1, label="Steps")
    if studio.takes("guidance_scale") and (studio.classes or studio.takes("prompt")):
        found["guidance"] = gr.Slider(1, 10, 1, step=0.1, label="Guidance (1: none)")
    return found


def _outputs() -> tuple[gr.Gallery, gr.Files]:
    """Return the gallery, and the files to download: a gallery's own button may write pixels anew."""
    with gr.Column(scale=2, min_width=300):
        gallery = gr.Gallery(
            label="Images",
            columns=4,
            format="png",
            object_fit="contain",
            elem_classes="pictures",
            buttons=["fullscreen"],
        )
        files = gr.Files(label="Download, with provenance", interactive=False)
    return gallery, files


def _on(button: gr.Button, function: Callable[..., Any], inputs: list[Any], outputs: list[Any], name: str) -> None:
    button.click(function, inputs, outputs, api_name=name)


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Show what the pipeline refuses to whoever asked."""
    try:
        yield
    except (ValueError, RuntimeError, TimeoutError) as error:
        raise gr.Error(str(error)[:1000]) from error


def _twice(paths: list[Path]) -> tuple[list[str], list[str]]:
    """Return the files for the gallery and for the download."""
    return [str(path) for path in paths], [str(path) for path in paths]

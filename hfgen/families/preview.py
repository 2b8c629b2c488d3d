"""What people see of a model: a grid of samples while it trains, pictures, facts and commands when it is done."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..console.progress import quiet
from ..console.text import shell_text
from ..disk.files import write_picture
from ..options import SampleArgs
from ..pipelines.classes import class_text, names_of_classes
from ..serving.revision import revision_of
from ..utils import pictures
from ..utils.arguments import checked
from ..utils.drawing import draws_images
from ..utils.provenance import Provenance, provenance_of, save_image
from ..utils.seeds import check_seed, sample_generators


class Preview:
    """The pictures of a family, and the texts of its cards. This base class shows samples of any pipeline.

    A subclass changes what its family shows. Every method gets the pipeline that it shows.

    Attributes:
        title: name of a model, before "on" and the name of its data.
        kind: the same in a word or two, for the card's summary and tags.
        grid_name: file of the finished pipeline's grid.
        call_options: arguments of a call that draws samples to be measured, besides number, labels and generators.
        protocol: further entries of the protocol of such measurements.
        card_options: names of the options that the card repeats.
        task, outcome: of the card, see `hfgen.saving.card.write_card`. None: the task and the outcome of a generator of
            images; for other items no task, and the first field of the output.

    Args:
        title, kind: the attributes.
        args: size of the grid.
        seed: of the first sample.
    """

    grid_name = "samples.png"
    call_options: Mapping[str, Any] = MappingProxyType({})
    protocol: Mapping[str, Any] = MappingProxyType({})
    card_options: tuple[str, ...] = ()
    task: str | None = None
    outcome: str | None = None

    @checked
    def __init__(self, title: str, kind: str, args: SampleArgs, seed: int):
        check_seed(seed + args.eval_batch_size - 1)
        check_seed(seed)
        self.title, self.kind, self.grid_size, self.seed = title, kind, args.eval_batch_size, seed

    def grid(self, pipeline: Any) -> Image.Image | None:
        """Draw one picture of samples, always from the same noise, so that pictures can be compared. With classes it
        has a row for each, beside its name.

        Returns None for items that have no picture here: see `picture_of`.
        """
        output, columns = self.draw(pipeline, **self.drawn_with(pipeline))
        return picture_of(output[0], columns, self.row_names(pipeline))

    def save(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the pictures of a finished pipeline in its folder; return captions by file name."""
        picture = self.grid(pipeline)
        if picture is None:
            return {}
        self.write(output, self.grid_name, picture, pipeline, self.action(pipeline))
        return {self.grid_name: "samples"}

    def action(self, pipeline: Any) -> str | None:
        """Return what the pipeline does for the grid, as the provenance says it; None: the grid shows nothing that it
        made."""
        return "generate"

    def write(
        self, output: Path, name: str, picture: Image.Image, pipeline: Any, action: str | None = "generate"
    ) -> None:
        """Write a picture, with the provenance of what it shows of a pipeline.

        Args:
            output: folder of the training.
            name: of the file in it.
            picture: what "generate" made are the samples of `draw`.
            pipeline: made what it shows.
            action: what the pipeline did; None: nothing, and the file has no provenance.

        Raises:
            WriteError: the file can't be written.
        """
        if action is None:
            write_picture(output / name, picture)
        else:
            save_image(output / name, picture, self.origin(pipeline, action))

    def origin(self, pipeline: Any, action: str = "generate") -> Provenance:
        """Return the provenance of a picture of what a pipeline made; of samples with their seeds and their call.

        The model is named by its class: the same training in another folder leaves the same bytes.
        """
        about = (type(pipeline).__name__, revision_of(pipeline))
        if action != "generate":
            return provenance_of(pipeline, *about, action=action)
        rows, columns = self.layout(pipeline)
        last = self.seed + rows * columns - 1
        seeds = self.seed if last == self.seed else f"{self.seed} to {last}"
        return provenance_of(pipeline, *about, seeds, {**self.shown(pipeline), **self.drawn_with(pipeline)})

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return rows of the card about the pictures."""
        return {"samples above": "fixed seeds"}

    def example(self, pipeline: Any) -> str:
        """Return the arguments of the card's example call: two classes, or four samples without classes."""
        classes = pipeline.config.get("num_classes")
        return "batch_size=4" if classes is None else f"class_labels={list(range(min(2, classes)))}"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return command lines to try next with the finished pipeline."""
        classes, names = (pipeline.config.get(name) for name in ("num_classes", "label_names"))
        images = draws_images(pipeline)
        labels = () if classes is None else ("--class_labels", class_text(min(3, classes - 1), names))
        place = ("--grid", "grid.png") if images else ("--output_dir", "samples")
        sample = command("hfgen", "sample", output, "--num_samples", 16, *labels, *place)
        return [sample, show_command(output)] if images else [sample]

    def adapter_command(self, base: str, output: Path) -> str:
        """Return the command line to try next with an adapter, trained on the pipeline `base`."""
        return command("hfgen", "sample", base, "--lora", output, *self.condition_words(), "--grid", "grid.png")

    def condition_words(self) -> tuple[Any, ...]:
        """Return what samples can't be drawn without on the command line."""
        return ()

    def layout(self, pipeline: Any) -> tuple[int, int]:
        """Return rows and columns of the grid: a row for each class if there are classes."""
        classes = pipeline.config.get("num_classes")
        rows = min(classes, self.grid_size) if classes else max(1, math.isqrt(self.grid_size))
        return rows, max(1, min(self.grid_size // rows, 10))

    def row_names(self, pipeline: Any) -> list[str] | None:
        """Return the name of the class of each row of the grid; None without classes."""
        return class_names(pipeline)[: self.layout(pipeline)[0]] if pipeline.config.get("num_classes") else None

    def drawn_with(self, pipeline: Any) -> dict[str, Any]:
        """Return the arguments of the call that draws the grid, besides `shown`, number and generators."""
        return dict(self.call_options)

    def shown(self, pipeline: Any) -> dict[str, Any]:
        """Return the argument that says what each sample of the grid shows: classes, row by row; {} without them."""
        rows, columns = self.layout(pipeline)
        named = pipeline.config.get("num_classes")
        return {"class_labels": [label for label in range(rows) for _ in range(columns)]} if named else {}

    def draw(self, pipeline: Any, **options: Any) -> tuple[Any, int]:
        """Draw samples with fixed seeds in this layout; return the pipeline's output and the number of columns."""
        rows, columns = self.layout(pipeline)
        generators = sample_generators(self.seed, range(rows * columns))
        with quiet(pipeline):
            output = pipeline(batch_size=rows * columns, generator=generators, **self.shown(pipeline), **options)
        return output, columns


def class_names(pipeline: Any) -> list[str]:
    """Return the names of a pipeline's classes, their numbers where they have none."""
    return names_of_classes(pipeline.config.num_classes, pipeline.config.get("label_names"))


def command(*words: object) -> str:
    """Return a command line of these words, with spaces and quotes in them protected from the shell."""
    return shell_text(words)


def show_command(output: Path) -> str:
    """Return the command line that opens one sample of a pipeline of images."""
    code = f"from hfgen import HFGenPipeline as P; P.from_pretrained({str(output)!r})().images[0].show()"
    return command("python", "-c", code)


def picture_of(samples: Any, columns: int, labels: list[str] | None = None) -> Image.Image | None:
    """Return a picture of samples, whatever they are.

    Args:
        samples: PIL images make a grid; a tensor or array of vectors (N, 2) or of points (N, P, 2) is a scatter plot,
            one of sequences (N, T, D) is D lines over time for each of the first samples. Others have no picture.
        columns: of a grid.
        labels: of the rows of a grid.
    """
    if isinstance(samples, list) and samples and isinstance(samples[0], Image.Image):
        return pictures.grid(samples, columns, labels=labels)
    x = torch.as_tensor(samples).detach().float().cpu() if not isinstance(samples, list) else None
    if isinstance(x, Tensor) and x.ndim in (2, 3) and x.shape[-1] == 2:
        return pictures.scatter(x.reshape(-1, 2).tolist())
    return curves_of(x) if isinstance(x, Tensor) and x.ndim == 3 else None


def curves_of(sequences: Tensor) -> Image.Image:
    """Return a picture of sequences (N, T, D): D lines over time for each of the first ones, six lines or D."""
    x = sequences.detach().float().cpu()
    count = max(1, len(pictures.COLOURS) // x.shape[2])
    lines = {f"sample {i}, {d}": x[i, :, d].tolist() for i in range(min(count, len(x))) for d in range(x.shape[2])}
    return pictures.curves({name: list(enumerate(line)) for name, line in lines.items()}, axis="time")

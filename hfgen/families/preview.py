"""What a family shows of its models: a sheet while they train, pictures and facts when they are done."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from ..options import SampleArgs
from ..saving.card import OUTCOME, TASK


def check(args: SampleArgs) -> None:
    """Refuse to show nothing. Raises ValueError."""
    if args.eval_batch_size < 1:
        raise ValueError(f"eval_batch_size={args.eval_batch_size} must be at least 1.")


class Preview(ABC):
    """A family's pictures, and what its card and the last lines of its runs say.

    Attributes:
        title: what a model is called, before "on" and the name of its data.
        kind: the same in a word or two, for the card's summary and tags.
        sheet_name: the file of the finished pipeline's sheet.
        options: arguments of a call, beside number, labels and generators, that draws images to be measured.
        protocol: what figures of such images hold for, besides.
        chosen: options of the run that the card repeats.
        task, outcome: of the card, see `hfgen.saving.card.write_card`.
    """

    sheet_name = "samples.png"
    options: Mapping[str, Any] = MappingProxyType({})
    protocol: Mapping[str, Any] = MappingProxyType({})
    chosen: tuple[str, ...] = ()
    task, outcome = TASK, OUTCOME

    def __init__(self, title: str, kind: str, args: SampleArgs, seed: int):
        check(args)
        self.title, self.kind, self.most, self.seed = title, kind, args.eval_batch_size, seed

    @abstractmethod
    def sheet(self, pipeline: Any) -> Image.Image:
        """One picture of what the pipeline does, always of the same noise, so that sheets can be compared."""

    @abstractmethod
    def hang(self, pipeline: Any, output: Path) -> dict[str, str]:
        """Save the pictures of a finished pipeline, the sheet among them, in its folder: captions by file name."""

    @abstractmethod
    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Rows of the card about the pictures."""

    @abstractmethod
    def example(self, pipeline: Any) -> str:
        """The arguments of the card's example call, as text."""

    @abstractmethod
    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """What to do next with the finished pipeline, as command lines."""

    def layout(self, pipeline: Any) -> tuple[int, int]:
        """Rows and columns of the sheet: a row a class where there are classes."""
        classes = pipeline.config.get("num_classes")
        rows = min(classes, self.most) if classes else max(1, math.isqrt(self.most))
        return rows, max(1, min(self.most // rows, 10))

    def draw(self, pipeline: Any, **call: Any) -> tuple[Any, int]:
        """What a call returns for samples with fixed seeds in this layout, and its columns."""
        rows, columns = self.layout(pipeline)
        if pipeline.config.get("num_classes"):
            call["class_labels"] = [label for label in range(rows) for _ in range(columns)]
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(self.seed + i) for i in range(rows * columns)]
        return pipeline(batch_size=rows * columns, generator=generators, **call), columns

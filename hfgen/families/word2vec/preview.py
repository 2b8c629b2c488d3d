"""What the card of word vectors shows: words and their neighbours."""

from pathlib import Path
from typing import Any

from ...options import SampleArgs
from ..preview import Preview, command

SHOWN = 5
"""Words, and neighbours of each, in a card."""


class WordPreview(Preview):
    """Neighbours of frequent words, in place of pictures.

    Args:
        seed: of the run.
    """

    card_options = ("method", "dimension", "window", "negatives", "subsample")

    def __init__(self, seed: int):
        super().__init__("Word vectors", "word2vec", SampleArgs(), seed)

    def grid(self, pipeline: Any) -> None:
        """Return None: vectors have no picture."""

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return the nearest words of some."""
        words = pipeline.config.words[:SHOWN]
        found = {word: ", ".join(name for name, _ in pipeline.most_similar(word, count=SHOWN)) for word in words}
        return {"words": f"{len(pipeline.config.words):,}", **{f"near {word!r}": text for word, text in found.items()}}

    def example(self, pipeline: Any) -> str:
        """Return the arguments of a call for two words."""
        return f"words={pipeline.config.words[:2]!r}"

    def commands(self, pipeline: Any, output: Path) -> list[str]:
        """Return the command that prints the neighbours of a word."""
        load = f"from hfgen import HFGenPipeline as P; p = P.from_pretrained({str(output)!r})"
        return [command("python", "-c", f"{load}; print(p.most_similar({pipeline.config.words[0]!r}))")]

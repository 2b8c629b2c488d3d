"""Options of word2vec. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import NEVER, Options, TrainArgs, option, variant
from ...utils.ranges import AT_LEAST_0, COUNT


@dataclasses.dataclass
class TextArgs(Options):
    """Data"""

    COMMON = ("text", "min_count")

    text: str | None = option(None, "text file in UTF-8; a line is a sentence", resumable=True, path=True)
    min_count: int = option(5, "rarer words are left out of the text", range=COUNT)


@dataclasses.dataclass
class VectorArgs(Options):
    """Vectors and objective"""

    COMMON = ("method", "dimension", "window")

    method: Literal["skip_gram", "cbow"] = option(
        "skip_gram", "skip_gram: from a word to each word near it; cbow: from these together to the word"
    )
    dimension: int = option(100, "of a vector", range=COUNT)
    window: int = option(5, "words to each side, at most", range=COUNT)
    negatives: int = option(5, "noise words of a pair", range=COUNT)
    subsample: float = option(
        1e-3, "share of the text from which words are left out at random; 0: none", range=AT_LEAST_0
    )
    noise_power: float = option(0.75, "power of a word's count, by which noise words are drawn", range=AT_LEAST_0)


@dataclasses.dataclass
class WordTrainArgs(TrainArgs):
    """Training"""

    output_dir: str = variant(
        TrainArgs, "output_dir", "outputs/word2vec", "folder for the vectors, logs and checkpoints"
    )
    train_batch_size: int = variant(TrainArgs, "train_batch_size", 2048, "words per process and micro-step")
    num_epochs: float = variant(TrainArgs, "num_epochs", 5.0)
    learning_rate: float = variant(TrainArgs, "learning_rate", 2.5e-3)
    max_grad_norm: float | None = variant(TrainArgs, "max_grad_norm", None)
    use_ema: bool = variant(TrainArgs, "use_ema", False)
    gradient_checkpointing: bool = variant(TrainArgs, "gradient_checkpointing", False, only_with=NEVER)
    sample_steps: int = variant(TrainArgs, "sample_steps", 0)


DESCRIPTION = "Train vectors of words on a text: word2vec, skip-gram or CBOW with negative sampling."
EXAMPLE = "hfgen train word2vec --text path/to/text.txt --output_dir outputs/word2vec"
GROUPS = (TextArgs, VectorArgs, WordTrainArgs)

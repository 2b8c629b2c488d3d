"""Texts as windows of words, for word2vec."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..disk.reading import JSON_BYTES, JSON_SIZE, read_text
from ..utils.arguments import checked
from .tensors import digest_of

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
"""Letters, with an apostrophe between them."""

MOST_BYTES = 8 << 30
"""Most bytes of a text, whose words are held in memory."""


class WindowData:
    """The words of a text, each with its neighbours in the sentence: the items of word2vec.

    Args:
        sentences: lists of words.
        window: words to each side.
        min_count: words that are rarer are left out, as if they were not in the text.
        name: for messages and cards.

    Attributes:
        words: the vocabulary, most frequent first; ties by the alphabet.
        counts (V,): how often each is in the text.

    Raises:
        ValueError: fewer than two words remain, or more than a saved pipeline can name.
    """

    unit, streaming, in_memory, value_range, num_classes, label_names = "words", False, True, None, None, None

    @checked
    def __init__(self, sentences: Iterable[list[str]], window: int = 5, min_count: int = 5, name: str = "text"):
        sentences = list(sentences)
        counts = Counter(word for sentence in sentences for word in sentence)
        frequent = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if len(frequent) < 2:
            raise ValueError(
                f"{name} has {len(frequent)} words that are there {min_count} times. Give a longer text, or a lower "
                "--min_count."
            )
        _check_vocabulary(frequent, name, min_count)
        numbers = {word: number for number, word in enumerate(frequent)}
        self.words, self.window, self.name = frequent, window, name
        self.counts = torch.tensor([counts[word] for word in frequent])
        text, gap = [-1] * window, [-1] * window  # between sentences no window reaches from one into the next
        for sentence in sentences:
            text += [numbers[word] for word in sentence if word in numbers] + gap
        self._text = torch.tensor(text, dtype=torch.int32)
        self._places = (self._text >= 0).nonzero()[:, 0]
        self.item_shape = (2 * window + 1,)

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits that depend on every word."""
        return digest_of({"text": self._text})

    @property
    def description(self) -> str:
        """Return the size of the text in a line."""
        return f"{self.name}, {len(self):,} words, {len(self.words):,} different ones"

    def __len__(self) -> int:
        return len(self._places)

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the windows "x" (B, 2 window + 1) around words, by their numbers; -1 is no word."""
        around = torch.arange(-self.window, self.window + 1)
        return {"x": self._text[self._places[rows][:, None] + around].long()}

    def finish(self, batch: dict[str, Tensor], position: int, seed: int) -> dict[str, Tensor]:
        """Return the batch."""
        return batch


def sentences_of(path: str | Path) -> list[list[str]]:
    """Return the words of each line of a text file, in small letters.

    Raises:
        ValueError: it can't be read, is no regular file, or no text in UTF-8.
    """
    try:
        lines = read_text(path, MOST_BYTES).splitlines()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}. Give another --text.") from None
    except ValueError as error:
        raise ValueError(f"{error} Give another --text.") from None
    return [WORD.findall(line.lower()) for line in lines]


def _check_vocabulary(words: list[str], name: str, min_count: int) -> None:
    """Raise ValueError for a vocabulary that the index of a pipeline, a JSON file, could not hold."""
    size, longest = sum(len(json.dumps(word)) + 16 for word in words), max(map(len, words))
    if size > JSON_BYTES - (1 << 16) or len(words) > JSON_BYTES // JSON_SIZE - 1000:
        raise ValueError(
            f"{name} has {len(words):,} words that are there {min_count} times, of up to {longest:,} letters: about "
            f"{size / 2**20:.1f} MiB in the index of a pipeline, which has at most {JSON_BYTES >> 20} MiB and "
            f"{JSON_BYTES // JSON_SIZE:,} entries. Give a higher --min_count."
        )

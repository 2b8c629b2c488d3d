"""Vectors of words: similar words, and analogies."""

from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from hfgen.utils.arguments import checked

from .base import HFGenPipeline
from .inputs import check_count
from .outputs import require_finite


class WordVectorsOutput(BaseOutput):
    """The output of `WordVectorsPipeline`.

    Args:
        vectors (B, D): of the words.
    """

    vectors: Tensor


class WordVectorsPipeline(HFGenPipeline):
    """The vectors of a vocabulary, such as word2vec learns them. It draws nothing.

    Args:
        vectors: a `WordVectorsModel`.
        words: the vocabulary, in the order of the vectors.

    Raises:
        ValueError: another number of words than of vectors, or a word twice.
    """

    model_cpu_offload_seq = "vectors"

    @checked
    def __init__(self, vectors: ModelMixin, words: list[str] | None = None):
        super().__init__()
        words = [] if words is None else words  # diffusers takes an argument without a default for a component
        if len(words) != vectors.config.vocab_size or len(set(words)) != len(words):
            raise ValueError(f"{len(words)} words, and {vectors.config.vocab_size} vectors: give each word once.")
        self.register_modules(vectors=vectors)
        self.register_to_config(words=list(words))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape (D,) of a vector."""
        return (self.vectors.config.dimension,)

    @checked
    @torch.no_grad()
    def __call__(self, words: str | Sequence[str], return_dict: bool = True) -> WordVectorsOutput | tuple[Tensor]:
        """Return the vectors of words.

        Args:
            words: one, or a list.
            return_dict: return a `WordVectorsOutput`, else a tuple of the vectors (B, D).

        Raises:
            ValueError: a word that is not in the vocabulary.
        """
        words = [words] if isinstance(words, str) else list(words)
        weight = require_finite(self.vectors.input.weight, "vectors", self.components)
        vectors = weight[[self._number(word) for word in words]]
        return WordVectorsOutput(vectors=vectors) if return_dict else (vectors,)

    @checked
    def similarity(self, first: str, second: str) -> float:
        """Return the cosine of the angle between the vectors of two words, from -1 to 1.

        Raises:
            ValueError: a word that is not in the vocabulary.
        """
        a, b = self._unit[[self._number(first), self._number(second)]]
        return float(a @ b)

    @checked
    def most_similar(
        self, positive: str | Sequence[str], negative: str | Sequence[str] = (), count: int = 10
    ) -> list[tuple[str, float]]:
        """Return the words nearest to the sum of unit vectors, those of `positive` less those of `negative`, each with
        its cosine, nearest first. The given words are left out.

        Args:
            positive, negative: one word each, or a list.
            count: number of words.

        Raises:
            ValueError: no word, one that is not in the vocabulary, or a count below 1.
        """
        check_count("count", count)
        added, taken = ([words] if isinstance(words, str) else list(words) for words in (positive, negative))
        if not added and not taken:
            raise ValueError("Give at least one word.")
        unit, numbers = self._unit, [self._number(word) for word in (*added, *taken)]
        signs = torch.tensor([1.0] * len(added) + [-1.0] * len(taken), device=unit.device)
        target = (signs[:, None] * unit[numbers]).sum(0)
        cosines = unit @ (target / target.norm().clamp(min=1e-12))
        cosines[numbers] = -torch.inf
        best = cosines.topk(min(count, len(cosines) - len(set(numbers))))
        words = self.config.words
        return [(words[i], value) for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    @checked
    def analogy(self, first: str, second: str, third: str, count: int = 1) -> list[tuple[str, float]]:
        """Return words that are to `third` what `second` is to `first`: near v(second) - v(first) + v(third), with
        cosines.

        Raises:
            ValueError: as `most_similar`.
        """
        return self.most_similar([second, third], [first], count)

    @property
    @torch.no_grad()
    def _unit(self) -> Tensor:
        """Return the vectors with norm 1, (V, D)."""
        weight = require_finite(self.vectors.input.weight, "vectors", self.components).float()
        return weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def _number(self, word: str) -> int:
        words = self.config.words
        if word not in words:
            raise ValueError(
                f"{word!r} is not among the {len(words):,} words of the vocabulary, which are in small letters."
            )
        return words.index(word)

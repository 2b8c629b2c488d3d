"""Two vectors for each word of a vocabulary, as word2vec learns them."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..utils.arguments import checked


class WordVectorsModel(ModelMixin, ConfigMixin):
    """An input vector v_w and an output vector u_w for each word w. The score of a target word t, given words c, is

        u_t . h,    h the mean of v_c over the words c

    (word2vec, Mikolov et al. 2013, https://arxiv.org/abs/1310.4546). The input vectors are those that are used.

    Args:
        vocab_size: number V of words.
        dimension: D.

    Raises:
        ValueError: a number below 1.
    """

    @checked
    @register_to_config
    def __init__(self, vocab_size: int, dimension: int = 100):
        super().__init__()
        if min(vocab_size, dimension) < 1:
            raise ValueError(f"{vocab_size=} and {dimension=} must be at least 1.")
        self.input, self.output = nn.Embedding(vocab_size, dimension), nn.Embedding(vocab_size, dimension)
        nn.init.uniform_(self.input.weight, -0.5 / dimension, 0.5 / dimension)
        nn.init.zeros_(self.output.weight)

    @property
    def sample_shape(self) -> tuple[int]:
        """The shape (D,) of a vector."""
        return (self.config.dimension,)

    def forward(self, words: Tensor, targets: Tensor) -> Tensor:
        """Return the scores (B, T) of target words.

        Args:
            words (B, C): numbers of words, int64; -1 is none. A row without words has the scores 0.
            targets (B, T): numbers of target words.
        """
        present = (words >= 0).to(self.input.weight.dtype)
        share = present / present.sum(1, keepdim=True).clamp(min=1)
        h = torch.einsum("bc,bcd->bd", share, F.embedding(words.clamp(min=0), self.input.weight))
        return torch.einsum("btd,bd->bt", F.embedding(targets, self.output.weight), h)

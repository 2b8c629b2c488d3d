"""The condition: a prompt of token ids."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hfgen.models.conditions import Condition


class PromptCondition(Condition):
    """A prompt of token ids for each sample, as the argument `prompt` (B, L) of the network.

    The null value repeats the token `num_tokens`, one more than the last token. The network has an embedding of it.

    Args:
        num_tokens: number of tokens.
    """

    def __init__(self, num_tokens: int):
        self.num_tokens = num_tokens

    def kwargs(self, batch: Mapping[str, Tensor], networks: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
        """Return `prompt` int64 (B, L) from the batch. Raises ValueError if it is missing."""
        if "prompt" not in batch:
            raise ValueError(f'The batch has no "prompt", only {", ".join(batch)}. Add it to the data set.')
        return {"prompt": batch["prompt"]}

    def null(self, kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the null token for each token."""
        return {name: torch.full_like(value, self.num_tokens) for name, value in kwargs.items()}

    def parse(self, prompt: Sequence, batch_size: int | None, length: int) -> Tensor:
        """Return prompts int64 (B, L).

        Args:
            prompt: one prompt, a list of L tokens, which is repeated; or a list of B prompts.
            batch_size: B; None: the number of prompts.
            length: L.

        Raises:
            ValueError: a prompt of another length, an unknown token, or another number of prompts than `batch_size`.
        """
        tokens = torch.as_tensor(prompt)
        tokens = tokens.expand(batch_size or 1, -1) if tokens.ndim == 1 else tokens
        if tokens.shape != (batch_size or len(tokens), length) or not tokens.numel() or tokens.is_floating_point():
            raise ValueError(
                f"prompt={prompt!r} must be {length} tokens, or a list of {batch_size or 'B'} such prompts."
            )
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.num_tokens:
            raise ValueError(f"prompt={prompt} has an unknown token; tokens are 0 to {self.num_tokens - 1}.")
        return tokens.long()

"""Texts as tokens, and tokens as the hidden states of a text encoder of `transformers`: alike in training and sampling.

Every text is padded to one length. What a network is told of a text therefore does not depend on the other texts of a
batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tokens_of(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Return "input_ids" and "attention_mask", int64 (B, length), of texts, which are cut to so many tokens.

    The first position is attended to even where a tokenizer makes no token of an empty text.

    Raises:
        ValueError: the tokenizer has no token for padding.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{type(tokenizer).__name__} has no token for padding. Set tokenizer.pad_token.")
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    tokens = tokenizer(list(texts), return_attention_mask=True, **options)
    mask = tokens["attention_mask"].clone()
    mask[:, 0] = 1
    return {"input_ids": tokens["input_ids"], "attention_mask": mask}


def lengths_of(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, before it is cut."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]


def states_of(encoder: Any, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a denoiser is told of tokens: "encoder_hidden_states" (B, L, D), "encoder_attention_mask" (B, L)."""
    states = encoder(**tokens).last_hidden_state
    return {"encoder_hidden_states": states, "encoder_attention_mask": tokens["attention_mask"]}


@torch.no_grad()
def encoded(tokenizer: Any, encoder: Any, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Return what a denoiser is told of texts, see `states_of`, in the dtype and on the device of the encoder."""
    tokens = tokens_of(tokenizer, texts, length)
    return states_of(encoder, {name: value.to(encoder.device) for name, value in tokens.items()})

"""The states of captions by a frozen text encoder: computed once, and kept in files that later runs read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...console.notes import tell
from ...console.progress import ProgressBar
from ...data.tensors import digest_of
from ...disk.files import replacing
from ...models.text_tokens import states_of

CHUNK = 256
"""Captions of a file."""


def caption_states(encoder: Any, tokens: Mapping[str, Tensor], folder: Path, main: bool = True) -> dict[str, Tensor]:
    """Return the states of captions (M, L, D) and their mask (M, L), on the CPU, from files where they are known.

    The name of a file is a digest of the encoder's weights and of the tokens of its captions. Files of other weights or
    captions are therefore never read, and a run that was stopped goes on with the captions that are left.

    Args:
        encoder: a text model of `transformers`.
        tokens: "input_ids" and "attention_mask" (M, L).
        folder: of the files.
        main: whether this process writes files; others read them, and compute what is not there.
    """
    weights, count = digest_of(encoder.state_dict()), len(tokens["input_ids"])
    starts = range(0, count, CHUNK)
    parts = [
        _states(encoder, {name: value[start : start + CHUNK] for name, value in tokens.items()}, folder, weights, main)
        for start in ProgressBar(starts, desc="Encoding captions", unit="file")
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _states(encoder: Any, tokens: dict[str, Tensor], folder: Path, weights: str, main: bool) -> dict[str, Tensor]:
    """Return the states of the captions of one file."""
    path = folder / f"{weights}-{digest_of(tokens)}.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            tell(f"{path} can't be read ({error}), and is made again.")
    with torch.no_grad():
        states = states_of(encoder, {name: value.to(encoder.device) for name, value in tokens.items()})
    states = {name: value.cpu().contiguous() for name, value in states.items()}
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            save_file(states, draft)
    return states

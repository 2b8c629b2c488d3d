"""The text autoencoder of a run: learnt from the captions before all else, and kept in a file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...console.notes import tell
from ...console.progress import ProgressBar
from ...data.tensors import digest_of
from ...disk.files import replacing
from ...models.text_autoencoder import TextAutoencoderModel
from ...models.text_tokens import lengths_of, tokens_of
from ...utils.seeds import generator_of, seed_of
from ..text_to_image.encoder import learn_tokenizer
from .options import LatentTextArgs

MOST_TOKENS = 77
"""Tokens of a caption at most by default."""

BATCH, LEARNING_RATE, WARMUP = 128, 2e-3, 50
"""Captions of a step, the largest learning rate, and steps of its rise."""


@dataclasses.dataclass(frozen=True)
class LatentTexts:
    """The text side of a training.

    Attributes:
        tokenizer: of `transformers`.
        autoencoder: a `TextAutoencoderModel`, as it stays.
        latents (M, K, d): of the captions.
        exact: share of the captions that it gives back token by token.
    """

    tokenizer: Any
    autoencoder: TextAutoencoderModel
    latents: Tensor
    exact: float


def latent_texts(captions: list[str], args: LatentTextArgs, folder: Path, seed: int, main: bool = True) -> LatentTexts:
    """Return the text side of a training on these captions. A file of the folder is read if it is of the same captions
    and options.

    Args:
        captions: M texts, each once.
        args: the options.
        folder: of the file.
        seed: of the run.
        main: whether this process writes the file; others read it, or learn the same.
    """
    tokenizer = learn_tokenizer(captions, args.vocab_size)
    lengths = lengths_of(tokenizer, captions)
    length = args.max_length or min(max(lengths), MOST_TOKENS)
    if cut := [text for text, count in zip(captions, lengths, strict=True) if count > length]:
        tell(f"{len(cut):,} of {len(captions):,} captions have more than {length} tokens, and are cut: {cut[0][:60]!r}")
    tokenizer.model_max_length = length
    tokens = tokens_of(tokenizer, captions, length)
    with torch.random.fork_rng(devices=[]):  # whether it is learnt or read changes no weight of the other networks
        torch.manual_seed(seed_of("text autoencoder", seed))
        network = TextAutoencoderModel(len(tokenizer), length, args.latent_tokens, args.latent_channels)
    facts = {"steps": args.text_steps, "noise": args.text_noise, "seed": seed}
    known = {**tokens, **network.state_dict(), **{name: torch.tensor(value) for name, value in facts.items()}}
    path = folder / f"text_autoencoder-{digest_of(known)}.safetensors"
    if not _read(network, path):
        _learn(network, tokens, args.text_steps, args.text_noise, seed)
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as draft:
                save_file({name: value.contiguous() for name, value in network.state_dict().items()}, draft)
    latents, exact = _encoded(network, tokens)
    print(f"Text autoencoder: {exact:.1%} of {len(captions):,} captions come back exactly", flush=True)
    if exact < 0.9:
        tell("texts are drawn from these latents, and many will be wrong: give more --text_steps or --latent_tokens.")
    return LatentTexts(tokenizer, network, latents, exact)


def _read(network: TextAutoencoderModel, path: Path) -> bool:
    """Load the weights of a file, if there is a sound one."""
    if not path.is_file():
        return False
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        tell(f"{path} can't be read ({error}), and is made again.")
        return False
    network.eval().requires_grad_(False)
    return True


def _learn(network: TextAutoencoderModel, tokens: Mapping[str, Tensor], steps: int, noise: float, seed: int) -> None:
    """Train it on tokens (M, L) by the cross-entropy of all positions, from latents with noise."""
    count, generator = len(tokens["input_ids"]), generator_of("text autoencoder", seed, "steps")
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.0)
    for step in ProgressBar(range(steps), desc="Learning texts", unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        rows = torch.randint(count, (min(BATCH, 4 * count),), generator=generator)
        ids, mask = tokens["input_ids"][rows], tokens["attention_mask"][rows]
        eps = noise * torch.randn((len(rows), *network.latent_shape), generator=generator)
        loss = F.cross_entropy(network(ids, mask, eps).logits.flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)


@torch.no_grad()
def _encoded(network: TextAutoencoderModel, tokens: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """Return the latents (M, K, d) of all tokens (M, L), and the share of rows that come back exactly."""
    latents, right = [], 0
    for ids, mask in zip(*(tokens[name].split(1024) for name in ("input_ids", "attention_mask")), strict=True):
        output = network(ids, mask)
        latents.append(output.latents)
        right += int((output.logits.argmax(-1) == ids).all(1).sum())
    return torch.cat(latents), right / len(tokens["input_ids"])

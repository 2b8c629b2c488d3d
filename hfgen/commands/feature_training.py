"""What trainings of feature networks share: the data, the loop, and the file that `load_features` reads."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..disk.files import write_bytes


def split(dataset: str) -> tuple[tuple, tuple]:
    """Return (images uint8 (N, C, H, W), labels (N,)) to train on, and the same to test on.

    The built-in digits have one split. Of these, every fifth image is held out for the test.

    Raises:
        ValueError: the images do not fit into memory.
    """
    import torch

    from ..data.images import load_images
    from ..options import DataArgs

    train = load_images(DataArgs(dataset=dataset))
    test = load_images(DataArgs(dataset=dataset, dataset_split="test")) if dataset != "digits" else train
    for part in (train, test):
        if not part.in_memory:
            raise ValueError(f"--dataset {dataset} does not fit into memory: {part.storage}. Give smaller images.")
    if test is not train:
        return (train.images, train.labels), (test.images, test.labels)
    held_out = torch.arange(len(train)) % 5 == 0
    return (train.images[~held_out], train.labels[~held_out]), (train.images[held_out], train.labels[held_out])


def autocast(args: Any) -> Any:
    """Return the context in which a network is called, by the option `mixed_precision`."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16")


def optimise(network: Any, losses: Iterable[Any], steps: int, args: Any) -> None:
    """Train a network in place by AdamW under a one-cycle LR schedule, with channels last.

    Args:
        network: what is trained.
        losses: yields the loss of each step when it is asked for.
        steps: their number.
        args: has `learning_rate` and `adam_weight_decay`.
    """
    import torch

    from ..console.progress import ProgressBar

    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=args.adam_weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=steps)
    network.train().to(memory_format=torch.channels_last)
    for loss in ProgressBar(losses, total=steps, desc="Training"):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().to(memory_format=torch.contiguous_format)


def save(
    args: Any,
    weights: Mapping[str, Any],
    config: Mapping[str, Any],
    facts: Mapping[str, str],
    score: str,
    counts: tuple[int, int],
) -> None:
    """Write the weights, with a description of the training.

    Args:
        args: the options, with `name`, `dataset` and `output`.
        weights: tensors by name.
        config: arguments of the network.
        facts: further entries of the description.
        score: what was measured on held-out images, in a word.
        counts: number of images of the training, and of held-out ones.
    """
    from safetensors.torch import save as to_bytes

    metadata = {
        "name": args.name,
        "config": json.dumps(config),
        **facts,
        "trained_on": f"{Path(args.dataset).name}: {counts[0]:,} images; {score} on {counts[1]:,} held out",
        "recipe": json.dumps({k: v for k, v in dataclasses.asdict(args).items() if k not in ("dataset", "output")}),
    }
    content = to_bytes({key: value.contiguous() for key, value in weights.items()}, metadata=metadata)
    write_bytes(args.output, _with_facts_in_order(content))


def _with_facts_in_order(content: bytes) -> bytes:
    """Return a file of safetensors whose facts are sorted, which the library writes in a random order. So the same
    training leaves the same bits."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]

"""Floating-point operations of one optimiser step of a front door, as the last line that this prints.

    python -m hfgen.compare.flops vae --dataset digits ...    # options as for `hfgen train`

Matrix products, convolutions and attention, forwards and backwards, as torch's counter knows them, over the few steps
of a dry run. An optimiser step is one of the trainer's, in which every player moves at least once.
"""

import collections
import importlib
import sys
from typing import Any

from ..registry import FAMILIES


def main(argv: list[str]) -> None:
    """Count, and print the number."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from torch.utils.flop_counter import FlopCounterMode

    moves: collections.Counter[int] = collections.Counter()

    def moved(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        moves[id(optimizer)] += 1

    family, processes, _, *words = argv
    if processes != "--num_processes":
        raise ValueError(f"{argv} must begin with a family and --num_processes 1.")
    hook = register_optimizer_step_post_hook(moved)
    with FlopCounterMode(display=False) as counter:
        importlib.import_module(f"hfgen.training.{FAMILIES[family]}").main([*words, "--dry_run"])
    hook.remove()
    print(counter.get_total_flops() / min(moves.values()))


if __name__ == "__main__":
    main(sys.argv[1:])

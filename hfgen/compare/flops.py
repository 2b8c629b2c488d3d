"""Floating-point operations of one optimiser step of a front door, printed as the last line of output.

    python -m hfgen.compare.flops vae --num_processes 1 --dataset digits ...    # options as for `hfgen train`

Counted are matrix products, convolutions and attention, forward and backward, by torch's counter, over the few steps
of a dry run. An optimiser step is a step of the trainer: each player's optimiser steps at least once in it.
"""

import collections
import importlib
import sys
from typing import Any

from ..registry import FAMILIES


class NoModules:
    """Stands in for the counter's list of modules, whose hooks forbid the gradient of a gradient: penalties need it."""

    parents = ("Global",)

    def __enter__(self) -> "NoModules":
        return self

    def __exit__(self, *_: object) -> None:
        """End nothing."""


def main(argv: list[str] | None = None) -> None:
    """Run the front door's dry run, and print the operations of a step.

    Raises:
        ValueError: the arguments do not begin with a family and --num_processes 1.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from torch.utils.flop_counter import FlopCounterMode

    argv = sys.argv[1:] if argv is None else argv
    steps: collections.Counter[int] = collections.Counter()

    def count_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps[id(optimizer)] += 1

    family, processes, _, *options = argv
    if processes != "--num_processes":
        raise ValueError(f"{argv} must begin with a family and --num_processes 1.")
    hook = register_optimizer_step_post_hook(count_step)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter:
        importlib.import_module(FAMILIES[family].door).main([*options, "--dry_run"])
    hook.remove()
    print(counter.get_total_flops() / min(steps.values()))


if __name__ == "__main__":
    main()

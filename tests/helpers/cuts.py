"""Laws of a run of any objective, which does not depend on how the run is cut.

`build()` returns (networks, objective), with the same bits each time.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.helpers.toys import TracedObjective, rows, run, weights


class Interruption(Exception):
    """The end of a process."""


def check_resume(folder: Path, build: Callable, place: tuple[int, int, int]) -> None:
    """Interrupt a run, resume it, and compare all bits with those of an uninterrupted run.

    Args:
        folder: gets the runs `whole` and `cut`.
        build: see the module.
        place: (step, turn, shard) of the loss before which the run is interrupted, in the middle of an accumulation.
    """

    def interrupt(step):
        if (step.number, step.turn, step.shard) == place:
            raise Interruption

    options = {"train_batch_size": 4, "gradient_accumulation_steps": 2, "checkpointing_steps": 1, "logging_steps": 1}
    networks, objective = build()
    whole, result = run(folder / "whole", objective=objective, networks=networks, **options)
    networks, objective = build()
    with pytest.raises(Interruption):
        run(folder / "cut", objective=TracedObjective(objective, interrupt), networks=networks, **options)
    networks, objective = build()
    cut, cut_result = run(folder / "cut", objective=objective, networks=networks, **options)
    for a, b in ((cut, whole), (cut_result.networks, result.networks)):
        values, expected = weights(a), weights(b)
        assert values.keys() == expected.keys() and all(torch.equal(values[key], expected[key]) for key in values)
    assert rows(folder / "cut") == rows(folder / "whole")


def check_micro_batches(folder: Path, build: Callable, rel: float, abs: float, **options: object) -> None:
    """Compare a run with four micro-batches of two and a run with a batch of eight.

    Weights must agree to 1e-5, and logs to the tolerances `rel` and `abs`.
    """
    trained = []
    for name, size, micro_batches in (("8", 8, 1), ("4x2", 2, 4)):
        networks, objective = build()
        cut = {"train_batch_size": size, "gradient_accumulation_steps": micro_batches, "logging_steps": 1, **options}
        trained.append(run(folder / name, objective=objective, networks=networks, **cut)[0])
    assert_close(weights(trained[0]), weights(trained[1]), rtol=0, atol=1e-5)
    for a, b in zip(rows(folder / "8"), rows(folder / "4x2"), strict=True):
        assert {key: pytest.approx(a[key], rel=rel, abs=abs) for key in a} == b

"""Laws of a run of any objective: the same however it is cut. `make()` is (networks, objective), the same each time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.helpers.toys import Traced, rows, run, weights


class Lost(Exception):
    """The process is gone."""


def check_resumed(folder: Path, make: Callable, lost: tuple[int, int, int]) -> None:
    """Lost before the loss at (step, turn, shard), amid an accumulation, it goes on to the bits of a whole run: in
    `whole` and `cut` of the folder."""

    def strike(step):
        if (step.number, step.turn, step.shard) == lost:
            raise Lost

    options = {"train_batch_size": 4, "gradient_accumulation_steps": 2, "checkpointing_steps": 1, "logging_steps": 1}
    networks, objective = make()
    whole, result = run(folder / "whole", objective=objective, networks=networks, **options)
    networks, objective = make()
    with pytest.raises(Lost):
        run(folder / "cut", objective=Traced(objective, strike), networks=networks, **options)
    networks, objective = make()
    again, resumed = run(folder / "cut", objective=objective, networks=networks, **options)
    for got, wanted in ((again, whole), (resumed.networks, result.networks)):
        got, wanted = weights(got), weights(wanted)
        assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in got)
    assert rows(folder / "cut") == rows(folder / "whole")


def check_micro_batches(folder: Path, make: Callable, rel: float, abs: float, **options: object) -> None:
    """Four micro-batches of two are a batch of eight: weights to 1e-5, figures to these tolerances."""
    runs = []
    for name, size, micro_batches in (("8", 8, 1), ("4x2", 2, 4)):
        networks, objective = make()
        cut = {"train_batch_size": size, "gradient_accumulation_steps": micro_batches, "logging_steps": 1, **options}
        runs.append(run(folder / name, objective=objective, networks=networks, **cut)[0])
    assert_close(weights(runs[0]), weights(runs[1]), rtol=0, atol=1e-5)
    for a, b in zip(rows(folder / "8"), rows(folder / "4x2"), strict=True):
        assert {key: pytest.approx(a[key], rel=rel, abs=abs) for key in a} == b

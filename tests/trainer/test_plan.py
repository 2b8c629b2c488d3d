"""Trainings of a time: the plan of steps follows the clock, the LR schedule the plan, and a resume goes on by it."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch

from hfgen.objectives.denoising import Denoising
from hfgen.paths import StraightPath
from hfgen.trainer import log
from hfgen.trainer.plan import Plan
from tests.helpers import toys
from tests.helpers.processes import run_in_two_processes
from tests.helpers.toys import TracedObjective, run

ALONE = SimpleNamespace(is_main_process=True, num_processes=1)
BUDGET = 60.0


def follow(first, step_seconds, rehearse=None, budget=BUDGET):
    """Return (plan, seconds used, positions) of a training whose step s at time t takes step_seconds(s, t)."""
    plan, step, seconds, positions = Plan(first, budget, rehearse), 0, 0.0, [0.0]
    while step < plan.total:
        seconds += step_seconds(step, seconds)
        step += 1
        if plan.due(step):
            plan.renew(step, seconds, ALONE)
        positions.append(plan.position(step))
    return plan, seconds, positions


CLOCKS = {
    "as guessed": lambda s, t: 0.06,
    "faster than guessed": lambda s, t: 0.01,
    "slower than guessed": lambda s, t: 0.3,
    "slows down midway": lambda s, t: 0.06 if t < 30 else 0.18,
    "slows down 8 times": lambda s, t: 0.02 if t < 30 else 0.16,
    "slows down late": lambda s, t: 0.03 if t < 55 else 0.12,
    "speeds up midway": lambda s, t: 0.2 if t < 30 else 0.04,
    "compiles first": lambda s, t: 12.0 if s == 0 else 0.05,
    "drifts": lambda s, t: 0.03 * (1 + t / 30),
    "swings": lambda s, t: 0.05 * (1 + 0.5 * math.sin(t / 3)),
    "every tenth step is slow": lambda s, t: 0.3 if s % 10 == 9 else 0.03,
    "steps of a second": lambda s, t: 1.0 if t < 30 else 1.5,
}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_training_uses_its_time(name):
    plan, seconds, positions = follow(1000, CLOCKS[name])
    assert abs(seconds - BUDGET) < 0.03 * BUDGET
    assert all(a < b for a, b in itertools.pairwise(positions))  # the schedule never turns back
    assert positions[-1] == pytest.approx(1000, abs=30)  # and is through at the end
    assert len(plan.rows) < 150


@pytest.mark.parametrize("name", CLOCKS)
def test_what_follows_the_steps_fits_in(name):
    fits = iter((1.0, 9.0))  # the fit to latents of a trained network takes longer

    _, seconds, _ = follow(1000, CLOCKS[name], lambda: next(fits))
    assert abs(seconds + 9.0 - BUDGET) < 0.03 * BUDGET
    assert next(fits, None) is None


def test_without_a_time_steps_are_what_they_are():
    plan = Plan(100)
    assert plan.total == 100 and [plan.position(step) for step in range(101)] == list(range(101))
    assert not any(map(plan.due, range(101))) and plan.state() is None and plan.facts() is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_times_out_of_range_are_refused(seconds):
    with pytest.raises(ValueError, match="max_train_seconds"):
        Plan(10, seconds)


class Clock:
    """A clock that a training's step moves: 0.1 s a step, and 0.3 s from step 40 on."""

    def __init__(self, monkeypatch):
        self.now, self.seen = 0.0, set()
        monkeypatch.setattr(log, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def tick(self, step):
        self.now += 0.1 if step.number < 40 else 0.3


def trained(folder, clock, stop=None, **options):
    objective = TracedObjective(Denoising(StraightPath()), clock.tick)
    preview = None if stop is None else lambda networks, step: step == stop
    short = {"max_train_steps": 30, "max_train_seconds": 10.0, "lr_warmup_steps": 3, "logging_steps": 1}
    networks, result = run(folder, objective=objective, preview=preview, **{**short, "sample_steps": 1, **options})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result, {name: p.detach().clone() for name, p in networks["denoiser"].named_parameters()}, rows


def test_a_clock_that_slows_down_midway(tmp_path, monkeypatch):
    result, _, rows = trained(tmp_path / "whole", Clock(monkeypatch))
    assert result.finished and abs(result.seconds - 10) < 0.3  # 3 %
    assert result.step == len(rows) == 60  # 40 steps in 4 s, and 20 in 6 s
    rates = [row["lr"] for row in rows]
    assert rates[-1] < 1e-2 * max(rates) and rates[2:] == sorted(rates[2:], reverse=True)
    assert result.plan["seconds"] == 10 and result.plan["plans"][-1][-1] == 60


@pytest.mark.parametrize("stop", [2, 17, 45])
def test_a_resume_goes_on_by_the_plan(tmp_path, monkeypatch, stop):
    whole, weights, rows = trained(tmp_path / "whole", Clock(monkeypatch))
    first, *_ = trained(tmp_path / "cut", Clock(monkeypatch), stop)
    assert not first.finished and first.step == stop
    second, continued, rows_again = trained(tmp_path / "cut", Clock(monkeypatch))
    assert second.finished and second.plan == whole.plan
    assert rows_again == rows
    for name, value in weights.items():
        assert torch.equal(value, continued[name]), name


def test_more_time_goes_on_and_less_time_ends(tmp_path, monkeypatch):
    trained(tmp_path, Clock(monkeypatch))
    more, *_ = trained(tmp_path, Clock(monkeypatch), max_train_seconds=13.0)
    assert more.finished and more.step == 70 and abs(more.seconds - 13) < 0.39
    same, *_ = trained(tmp_path, Clock(monkeypatch), max_train_seconds=13.0)
    assert same.step == 70


TWO = """
import functools, sys, torch
from types import SimpleNamespace
from hfgen.trainer import log
from tests.helpers import toys

rank, now, rehearsals = 0, 0.0, []

def tick(step):
    global now, rank
    rank = torch.distributed.get_rank()
    now += (0.1 if step.number < 40 else 0.3) * (1 + 4 * rank)  # the clock of the second process is another one

def rehearse(networks):
    rehearsals.append(torch.distributed.get_rank())
    return 1.0

log.time = SimpleNamespace(perf_counter=lambda: now)
toys.train = functools.partial(toys.train, rehearse=rehearse)
for name, stop in (("whole", None), ("cut", 17), ("cut", None)):
    options = {"max_train_steps": 30, "max_train_seconds": 10.0, "logging_steps": 1, "sample_steps": 1}
    objective = toys.TracedObjective(toys.HingeGAN(), tick)
    preview = lambda networks, step: step == stop
    now = 0.0
    networks, result = toys.run(
        f"{sys.argv[1]}/{name}", "gan", objective, toys.gan_networks(), preview=preview, train_batch_size=4, **options
    )
    kept = {"plan": result.plan, "step": result.step, "seconds": result.seconds, "rehearsals": rehearsals[:]}
    rehearsals.clear()
    torch.save({**kept, "weights": toys.weights(networks)}, f"{sys.argv[1]}/{name}{stop or ''}-{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_to_the_plan_of_the_first(tmp_path):
    run_in_two_processes(TWO, tmp_path)
    whole, other = (torch.load(tmp_path / f"whole-{rank}.pt") for rank in (0, 1))
    assert whole["plan"] == other["plan"] and whole["step"] == other["step"]
    assert whole["step"] == 42 and whole["seconds"] == pytest.approx(9.2)  # 40 steps of two turns, two, and 1 s after
    assert whole["rehearsals"] == [0, 0] and other["rehearsals"] == []
    assert (tmp_path / "cut17-0.pt").exists() and torch.load(tmp_path / "cut17-1.pt")["step"] == 17
    for rank in (0, 1):
        again = torch.load(tmp_path / f"cut-{rank}.pt")
        assert again["plan"] == whole["plan"] and again["step"] == whole["step"]
        for name, value in whole["weights"].items():
            assert torch.equal(value, again["weights"][name]), name
    lines = toys.rows(tmp_path / "whole")
    assert lines == toys.rows(tmp_path / "cut") and len(lines) == whole["step"]

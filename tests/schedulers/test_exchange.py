"""The law of exchange: with a perfect network, every scheduler draws the data's distribution, or is refused by name.

Schedulers of ours and diffusers', with all their options, on six paths with five kinds of prediction, made afresh, from
a saved folder, by an exchange, and by the way through the other library.
"""

import itertools
import warnings
from collections import Counter

import pytest

from hfgen.registry import PATHS
from tests.helpers.exchange import KINDS, ROUTES, Case, ours, theirs, verdict

pytestmark = pytest.mark.filterwarnings("ignore")


def tally(cases, problem="gaussian"):
    """Return how many cases are right and refused, and what is wrong with the others."""
    pipelines, counts, wrong = {}, Counter(), []
    for case in cases:
        result = verdict(case, problem, pipelines)
        counts[result if result in ("right", "refused") else "wrong"] += 1
        wrong += [result] if result not in ("right", "refused") else []
    return counts, wrong


def turns(schedulers, start=0):
    """Return each scheduler once, with paths, kinds and routes in turn."""
    places = list(itertools.product(PATHS, KINDS, ROUTES))
    return [Case(*scheduler, *places[(start + 37 * i) % len(places)]) for i, scheduler in enumerate(schedulers)]


@pytest.mark.parametrize("schedulers", [ours, theirs])
def test_an_exchange_keeps_the_distribution_or_is_refused(schedulers):
    """Each scheduler with each choice of its options, once."""
    counts, wrong = tally(turns(schedulers()))
    assert not wrong, "\n".join(wrong[:20])
    assert counts["right"]


@pytest.mark.parametrize("path", PATHS)
def test_default_schedulers_on_every_path_and_kind(path):
    defaults = [(name, {}) for name in ("DPMSolverPlusPlusScheduler", "RectifiedFlowScheduler")]
    swaps = [("diffusers.UniPCMultistepScheduler", {}), ("diffusers.DPMSolverMultistepScheduler", {})]
    cases = [Case(*s, path, kind, route) for s in defaults + swaps for kind in KINDS for route in ROUTES]
    counts, wrong = tally(cases)
    assert not wrong, "\n".join(wrong[:20])
    assert sum(counts.values()) == 80


def test_an_exchange_keeps_a_mixture():
    schedulers = [s for s in ours() if not s[1].keys() & {"grid_type", "final_sigmas_type"}][::3]
    wrong = tally(turns(schedulers, start=11), "mixture")[1]
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("schedulers", [ours, theirs])
def test_the_whole_product(schedulers, path, route):
    """Every choice of options on every network by every route; `-s` prints the counts."""
    cases = [Case(*scheduler, path, kind, route) for scheduler in schedulers() for kind in KINDS]
    counts, wrong = tally(cases)
    with warnings.catch_warnings():
        print(f"{schedulers.__name__}, {path}, {route}: {dict(counts)}")
    assert not wrong, "\n".join(wrong[:20])

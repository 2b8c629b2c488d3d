"""The law of exchange: with a perfect network, every scheduler draws the data's distribution, or is refused by name.

Schedulers of ours and diffusers', with all their options, on six paths with five kinds of prediction, made afresh, from
a saved folder, by an exchange, and by the way through the other library. Networks, tables and heads that know the
variances of reverse steps. Chains and descents on an energy.
"""

import itertools
import warnings
from collections import Counter

import pytest
import torch

import hfgen
from hfgen.registry import PATHS
from tests.helpers.exchange import KINDS, ROUTES, Case, knowing, ours, theirs, verdict
from tests.helpers.exchange_energies import CHAINS, EnergyCase, chains, crossings, energy_cases, energy_verdict

pytestmark = pytest.mark.filterwarnings("ignore")


def tally(cases, problem=None):
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


def test_variances_that_a_network_knows_are_drawn_by_every_route():
    """A fifth of the schedulers, without the thousand steps of a network that knows those of the training alone."""
    places = list(itertools.product(PATHS, KINDS, ROUTES))
    short = [case for case in knowing() if case[2] != "learned"]
    cases = [
        Case(name, options, *places[37 * i % len(places)], variance)
        for i, (name, options, variance) in enumerate(short)
    ]
    counts, wrong = tally(cases[::5])
    assert not wrong, "\n".join(wrong)
    assert counts["right"] == len(cases[::5])


def test_half_of_the_channels_is_no_prediction_unless_the_configuration_says_so():
    scheduler = hfgen.RectifiedFlowScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"output \(2, 2, 4, 4\) has another shape than the sample \(2, 1, 4, 4\)"):
        scheduler.step(torch.zeros(2, 2, 4, 4), scheduler.timesteps[0], torch.zeros(2, 1, 4, 4))


def test_options_given_by_position_go_over_like_those_by_name():
    """diffusers records options by position as left at their defaults."""
    flow = hfgen.RectifiedFlowScheduler.from_config(hfgen.RectifiedFlowScheduler(1000, "euler").config)
    assert flow.config.solver == "euler" and flow.config.power == 1.0
    large = hfgen.DDPMScheduler(1000, 0.0001, 0.02, "linear", None, "fixed_large")
    assert hfgen.DDPMScheduler.from_config(large.config).config.variance_type == "fixed_large"
    for name in CHAINS:
        first = getattr(hfgen, name)(0.003)
        for other in CHAINS:
            assert getattr(hfgen, other).from_config(first.config).config.step_size == 0.003


@pytest.mark.parametrize("route", ROUTES)
def test_an_exchange_keeps_the_density_of_an_energy(route):
    turn = ROUTES.index(route)
    cases = [EnergyCase(*chain, route, CHAINS[(i + turn) % 3]) for i, chain in enumerate(chains())][turn::4]
    assert all(energy_verdict(case) in ("right", "refused") for case in cases), [energy_verdict(c) for c in cases]


@pytest.mark.parametrize(("name", "draw"), crossings(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_follows_a_path_and_what_follows_an_energy_are_not_exchanged(name, draw):
    words = "path=None" if "from the configuration" in name else name.split()[0]
    with pytest.raises(ValueError, match=words):
        draw()


@pytest.mark.slow
def test_the_whole_product_of_energies():
    results = [energy_verdict(case) for case in energy_cases()]
    print(Counter(result if result in ("right", "refused") else "wrong" for result in results))
    assert not (wrong := [result for result in results if result not in ("right", "refused")]), "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("path", PATHS)
def test_the_whole_product_of_known_variances(path, route):
    cases = [
        Case(name, options, path, kind, route, variance) for name, options, variance in knowing() for kind in KINDS
    ]
    counts, wrong = tally(cases)
    print(f"variances, {path}, {route}: {dict(counts)}")
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

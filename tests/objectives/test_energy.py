"""Objectives of energies: regressions by hand, contrastive divergence by its gradient, chains that are written back."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.models.energy import EnergyOutput, energy_and_gradient
from hfgen.objectives.base import Step
from hfgen.objectives.coupling import optimal_coupling
from hfgen.paths import StraightPath, VEPath


class Parabola(nn.Module):
    """E(x) = k |x - centre|^2 / 2, with a centre for each class."""

    def __init__(self, dimensions=2, classes=None):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.0))
        self.centre = nn.Parameter(torch.zeros(classes or 1, dimensions))

    def forward(self, sample, class_labels=None, with_gradient=False):
        rows = torch.zeros(len(sample), dtype=torch.long) if class_labels is None else class_labels
        energy = lambda x: self.k * (x - self.centre[rows]).square().sum(1) / 2  # noqa: E731
        if with_gradient:
            value, gradient = energy_and_gradient(energy, sample)
            return EnergyOutput(energy=value, gradient=gradient)
        return EnergyOutput(energy=energy(sample))


def batch(count=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return {"x": torch.randn(count, 2, generator=generator), "labels": labels}


# --- regressions ------------------------------------------------------------------------------------------------------


def test_equilibrium_matching_by_hand():
    objective, items, step = hfgen.EquilibriumMatching(decay=0.25), batch(), Step(3, 5)
    value = objective.loss("energy", {"energy": Parabola()}, items, step).value
    t = objective.noise.times(step, 8).float()[:, None]
    eps = step.randn("noise", items["x"])
    x_t = (1 - t) * items["x"] + t * eps
    target = (t / 0.25).clamp(max=1) * (eps - items["x"])
    assert_close(value, (x_t - target).square().mean())


def test_near_the_data_the_target_is_the_gradient_of_a_parabola():
    """c(t) (eps - x_0) = (x_t - x_0) / decay for t below decay, and never longer than eps - x_0."""
    objective = hfgen.EquilibriumMatching(decay=0.3)
    t = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    assert_close(objective.scale(t)[t < 0.3], t[t < 0.3] / 0.3)
    assert (objective.scale(t)[t >= 0.3] == 1).all()


def test_the_best_energy_of_one_point_is_its_parabola():
    """All data at one point and decay 1: the target is x_t - x_0 whatever the time, which a parabola fits exactly."""
    items = {"x": torch.tensor([[0.5, -1.0]]).expand(16, 2)}
    energy = Parabola()
    with torch.no_grad():
        energy.centre.copy_(items["x"][:1])
    for number in range(3):
        loss = hfgen.EquilibriumMatching(decay=1.0).loss("energy", {"energy": energy}, items, Step(number))
        assert float(loss.value.detach()) < 1e-12


def test_scores_at_many_levels_are_the_denoising_of_a_network_with_a_clock():
    """The same number as `Denoising` on the VE path with eps, for a network that undoes its scale of the input."""
    path, step, items = VEPath(0.02, 5.0), Step(4, 2), batch()

    class Clocked(nn.Module):
        def forward(self, sample, timestep):
            return sample / path.input_scale(path.time_of(timestep.double())).to(sample)[:, None]

    ours = hfgen.NoiseConditionalScore(0.02, 5.0).loss("energy", {"energy": Parabola()}, items, step)
    theirs = hfgen.Denoising(path, "epsilon", "low_discrepancy").loss("denoiser", {"denoiser": Clocked()}, items, step)
    assert_close(ours.value, theirs.value, rtol=1e-4, atol=0)


def test_coupled_noise_is_the_same_noise_in_the_best_order():
    """By brute force over all orders of five; a batch with its own noise keeps it."""
    x, noise = batch(5)["x"], batch(5, seed=9)["x"]
    coupled = optimal_coupling(x, noise)
    costs = {order: float((x - noise[list(order)]).square().sum()) for order in itertools.permutations(range(5))}
    assert torch.equal(coupled, noise[list(min(costs, key=costs.get))])
    objective, energy = hfgen.EquilibriumMatching(coupling="optimal"), {"energy": Parabola()}
    plain = hfgen.EquilibriumMatching()
    coupled = {"x": x, "noise": optimal_coupling(x, Step(2).randn("noise", x))}
    values = [objective.loss("energy", energy, {"x": x}, Step(2)).value]
    values += [each.loss("energy", energy, coupled, Step(2)).value for each in (plain, objective)]
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


def test_the_condition_is_dropped_as_in_denoising():
    objective = hfgen.EquilibriumMatching(num_classes=3, label_dropout=1.0)
    energy = Parabola(classes=4)
    objective.loss("energy", {"energy": energy}, batch(), Step(0)).value.backward()
    assert (energy.centre.grad[:3] == 0).all() and (energy.centre.grad[3] != 0).any()


@pytest.mark.parametrize("cut", [2, 4])
def test_slices_of_a_step_add_up_to_it(cut):
    """Regressions, and chains from noise, from data and from earlier steps."""
    items, energy = batch(), {"energy": Parabola()}
    objectives = [hfgen.EquilibriumMatching(), contrast(start="noise"), contrast(start="data"), contrast()]
    for objective in objectives:
        parts = []
        for shard in range(cut):
            part = {name: value.chunk(cut)[shard] for name, value in items.items()}
            parts.append(objective.loss("energy", energy, part, Step(0, 0, 0, shard, cut)).value)
        whole = (contrast() if objective is objectives[-1] else objective).loss("energy", energy, items, Step(0)).value
        assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=1e-6)


# --- contrastive divergence -------------------------------------------------------------------------------------------


def contrast(start="persistent", count=64, **options):
    chain = hfgen.Langevin(5, 0.05, 1.0, None)
    kept = hfgen.PersistentChains(count, (2,)) if start == "persistent" else None
    return hfgen.ContrastiveDivergence(chain, start, kept, **{"penalty": 0.0, "data_noise": 0.0, **options})


def test_its_gradient_is_that_of_the_mean_energies():
    """dL = <dE(data)> - <dE(chain)> per dimension, by hand for a parabola: |x|^2 / 2 of both."""
    energy, items = Parabola(), batch()
    objective = contrast(start="data")
    y, _ = objective.negatives(energy, items["x"], {}, Step(2))
    loss = objective.loss("energy", {"energy": energy}, items, Step(2))
    loss.value.backward()
    expected = (items["x"].square().sum(1).mean() - y.square().sum(1).mean()) / 2 / 2
    assert_close(energy.k.grad, expected)
    assert_close(loss.logs["gap"], -expected * energy.k.detach())
    assert not y.requires_grad


def test_its_chain_is_langevin_dynamics_by_hand():
    energy, x, step = Parabola(), batch()["x"], Step(1)
    y, _ = contrast(start="data").negatives(energy, x, {}, step)
    for k in range(5):
        x = x - 0.05 * x + math.sqrt(0.1) * step.randn(f"chain {k}", x)
    assert_close(y, x)


def test_the_penalty_is_that_of_squared_energies_per_dimension():
    energy, items = Parabola(), batch()
    plain, penal = (
        contrast(start="data", penalty=p).loss("energy", {"energy": energy}, items, Step(0)) for p in (0, 1)
    )
    y, _ = contrast(start="data").negatives(energy, items["x"], {}, Step(0))
    squares = [(x.square().sum(1) / 4).square().mean() for x in (items["x"], y)]
    assert_close(penal.value - plain.value, sum(squares))


def test_training_finds_the_width_and_the_mean_of_normal_data():
    """Persistent chains of a parabola: k is 1 / variance, as maximum likelihood says."""
    torch.manual_seed(0)
    energy, objective = Parabola(), contrast(count=512, restart=0.0)
    data = torch.randn(512, 2) * 0.7 + torch.tensor([0.5, -0.5])
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.05)
    for number in range(150):
        optimizer.zero_grad()
        objective.loss("energy", {"energy": energy}, {"x": data}, Step(number)).value.backward()
        optimizer.step()
    assert float(energy.k.detach()) == pytest.approx(1 / 0.7**2, rel=0.2)
    assert_close(energy.centre.detach()[0], torch.tensor([0.5, -0.5]), atol=0.15, rtol=0)


def test_chains_go_on_from_where_they_were_left():
    objective, energy, items = contrast(count=8, restart=0.0), Parabola(), batch()
    chains = objective.state["chains"]
    objective.loss("energy", {"energy": energy}, items, Step(0))
    left = chains.items.clone()
    slots = chains.slots(Step(1), 8)
    assert sorted(slots.tolist()) == list(range(8)) and (chains.ages == 1).all()
    y, _ = objective.negatives(energy, items["x"], {}, Step(1))
    x = left[slots]
    for k in range(5):
        x = x - 0.05 * x + math.sqrt(0.1) * Step(1).randn(f"chain {k}", x)
    assert_close(y, x)
    assert torch.equal(chains.items[slots], y) and (chains.ages == 2).all()


def test_chains_that_begin_anew_take_the_class_of_the_batch_and_others_keep_theirs():
    options = {"num_classes": 3, "label_dropout": 0.0}
    energy, items = Parabola(classes=4), batch()
    kept, anew = contrast(count=8, restart=0.0, **options), contrast(count=8, restart=1.0, **options)
    for objective in (kept, anew):
        objective.loss("energy", {"energy": energy}, items, Step(0))
        chains = objective.state["chains"]
        assert torch.equal(chains.labels[chains.slots(Step(0), 8)], items["labels"])
        before = chains.labels.clone()
        shifted = {**items, "labels": (items["labels"] + 1) % 3}
        objective.loss("energy", {"energy": energy}, shifted, Step(1))
        expected = before if objective is kept else chains.labels
        assert torch.equal(chains.labels, expected)
    assert torch.equal(chains.labels[chains.slots(Step(1), 8)], shifted["labels"])


def test_the_state_is_restored_bit_for_bit():
    objective, energy = contrast(count=32), {"energy": Parabola()}
    for number in range(3):
        objective.loss("energy", energy, batch(), Step(number))
    saved = copy.deepcopy(objective.state["chains"].state_dict())
    goes_on = objective.loss("energy", energy, batch(), Step(3)).value
    again = contrast(count=32)
    again.state["chains"].load_state_dict(saved)
    assert torch.equal(again.loss("energy", energy, batch(), Step(3)).value, goes_on)
    for name, value in objective.state["chains"].state_dict().items():
        assert torch.equal(value, again.state["chains"].state_dict()[name])


# --- both -------------------------------------------------------------------------------------------------------------


def test_energy_matching_is_its_flow_and_then_both():
    flow, part = hfgen.EquilibriumMatching(), contrast(start="data")
    objective, energy = hfgen.EnergyMatching(flow, part, 2, 0.5), {"energy": Parabola()}
    for number in range(4):
        step = Step(number)
        loss = objective.loss("energy", energy, batch(), step)
        expected = flow.loss("energy", energy, batch(), step).value
        if number >= 2:
            expected = expected + 0.5 * part.loss("energy", energy, batch(), step).value
        assert_close(loss.value, expected)
        assert ("gap" in loss.logs) == (number >= 2)
    assert hfgen.EnergyMatching(flow, contrast(), 2).state


class Field(nn.Module):
    def forward(self, sample, with_gradient=False):
        return EnergyOutput(gradient=sample)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hfgen.EquilibriumMatching(decay=0.0), "decay=0.0 must be above 0"),
        (lambda: hfgen.EquilibriumMatching(decay=1.5), "decay=1.5 must be above 0 and at most 1"),
        (lambda: hfgen.EquilibriumMatching(coupling="best"), "coupling='best' is not known"),
        (lambda: hfgen.NoiseConditionalScore(2.0, 1.0), "VE needs 0 < sigma_min < sigma_max"),
        (lambda: hfgen.Langevin(0, 0.1, 1.0, None), "num_steps=0 must be at least 1"),
        (lambda: hfgen.Langevin(1, 0.1, 1.0, 0.0), "clip=0.0 must be above 0"),
        (lambda: hfgen.ContrastiveDivergence(hfgen.Langevin(1, 0.1, 1.0, None)), "persistent chains have a state"),
        (lambda: contrast(start="buffer"), "start='buffer' is not known"),
        (lambda: contrast(restart=2.0), "restart=2.0 must be"),
        (lambda: contrast(count=4).loss("energy", {"energy": Parabola()}, batch(), Step(0)), "4 chains are fewer"),
        (
            lambda: contrast().loss("energy", {"energy": Parabola()}, {**batch(), "mask": torch.ones(8)}, Step(0)),
            "chains know no padding",
        ),
        (lambda: contrast(start="data").loss("energy", {"energy": Field()}, batch(), Step(0)), "has no energy"),
        (
            lambda: hfgen.EnergyMatching(hfgen.EquilibriumMatching(num_classes=3), contrast(), 1),
            "num_classes 3 and None",
        ),
    ],
)
def test_what_can_not_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_straight_is_the_path_of_equilibrium_matching():
    assert isinstance(hfgen.EquilibriumMatching().path, StraightPath)

"""Laws of flow maps: the closed form of Gaussian data, the corners, dropout, guidance, and two processes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hfgen.objectives.base import Step
from hfgen.objectives.conditioning import dropped_rows
from hfgen.objectives.denoising import Denoising
from hfgen.objectives.flow_map import CORNERS, FlowMap
from hfgen.objectives.tangents import Draws, difference
from hfgen.paths import StraightPath
from tests.helpers.processes import run_in_two_processes
from tests.helpers.toys import run, weights

MEAN, STD = 0.3, 0.5
COUNT = 2048


def velocity(x, t):
    """The velocity E[eps - x_0 | x_t] for data N(MEAN, STD^2)."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN) - MEAN


def mean_velocity(x, t, r):
    """The ODE's solution from t to r is linear: the deviation from the mean grows as that of x_t."""
    before, after = (((1 - time) ** 2 * STD**2 + time**2) ** 0.5 for time in (t, r))
    end = (1 - r) * MEAN + after / before * (x - (1 - t) * MEAN)
    return torch.where(t > r, (x - end) / (t - r).clamp(min=1e-12), velocity(x, t))


class Exact(nn.Module):
    """The flow map in closed form, of items (B, 1)."""

    def forward(self, x, timestep, r_timestep=None):
        t = timestep[:, None] / 1000
        return mean_velocity(x, t, t if r_timestep is None else r_timestep[:, None] / 1000)


class Linear(nn.Module):
    """u = a(t, r) x + b(t, r) with polynomials a and b of total degree 8: linear in its weights."""

    def __init__(self):
        super().__init__()
        self.powers = [(i, j) for i in range(9) for j in range(9 - i)]
        self.weight = nn.Parameter(torch.zeros(2 * len(self.powers), dtype=torch.float64))

    def forward(self, x, timestep, r_timestep=None):
        t = timestep.double()[:, None] / 500 - 1
        r = t if r_timestep is None else r_timestep.double()[:, None] / 500 - 1
        terms = torch.cat([t**i * r**j for i, j in self.powers], 1)
        return (torch.cat([terms * x, terms], 1) @ self.weight)[:, None]


class Teacher(nn.Module):
    def forward(self, x, timestep):
        return velocity(x, timestep[:, None] / 1000)


def gaussian(count=COUNT):
    return {"x": MEAN + STD * torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))}


def minimiser(objective, steps=1):
    """Solve gradient = 0, which is linear in the weights: the loss's fixed point itself, without an optimiser."""
    network, teacher = Linear(), Teacher()
    size = len(network.weight)

    def gradient(weight):
        network.weight.data = weight
        network.weight.grad = None
        value = objective.loss("denoiser", {"denoiser": network, "teacher": teacher}, gaussian(), Step(0)).value
        value.backward()
        return network.weight.grad.clone()

    offset = gradient(torch.zeros(size, dtype=torch.float64))
    columns = [gradient(unit) - offset for unit in torch.eye(size, dtype=torch.float64)]
    network.weight.data = torch.linalg.lstsq(torch.stack(columns, 1), -offset[:, None], driver="gelsd").solution[:, 0]
    return network


@pytest.mark.parametrize(("tangent", "step_share"), [("jvp", 1.0), ("difference", 1e-3)])
def test_the_minimiser_is_the_closed_flow_map(tangent, step_share):
    objective = FlowMap(
        "mean_flow", tangent, step_share, flow_share=0.2, teacher="teacher", adaptive_power=0, time_sampling="uniform"
    )
    network = minimiser(objective)
    z = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for t, r in ((1.0, 0.0), (1.0, 0.5), (0.6, 0.2), (0.5, 0.5)):
        times = [torch.full((41, 1), value, dtype=torch.float64) for value in (t, r)]
        scale = ((1 - t) ** 2 * STD**2 + t**2) ** 0.5
        x = (1 - t) * MEAN + scale * z
        u = network(x, 1000 * times[0][:, 0], 1000 * times[1][:, 0])
        assert ((u - mean_velocity(x, *times)).abs().max() * (t - r or 1.0)) < 1e-3


@pytest.mark.parametrize("tangent", ["jvp", "difference"])
def test_consistency_at_zero_is_the_end_of_the_ode(tangent):
    objective = FlowMap("consistency", tangent, 1e-3, flow_share=0.2, teacher="teacher", adaptive_power=0)
    network = minimiser(objective)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    one = torch.full((41,), 1000.0, dtype=torch.float64)
    steps = 2000
    end = x.clone()
    for i in range(steps):  # midpoint rule, from noise to data
        t = 1 - i / steps
        middle = end - velocity(end, torch.tensor(t)) / (2 * steps)
        end = end - velocity(middle, torch.tensor(t - 1 / (2 * steps))) / steps
    assert (x - network(x, one, 0 * one) - end).abs().max() < 1e-3


@pytest.mark.parametrize("method", ["mean_flow", "improved_mean_flow", "consistency", "shortcut"])
def test_the_closed_flow_map_is_a_fixed_point_without_a_teacher(method):
    """In expectation: no weight of a linear correction has a gradient, up to the noise of the items."""
    tangent = {"shortcut": "difference"}.get(method, "jvp")
    objective = FlowMap(method, tangent, adaptive_power=0, time_sampling="uniform")

    class Corrected(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))

        def forward(self, x, timestep, r_timestep=None):
            t = timestep[:, None] / 1000
            r = t if r_timestep is None else r_timestep[:, None] / 1000
            return mean_velocity(x, t, r) + torch.cat([0 * x + 1, x, (t - r) * x, t - r], 1) @ self.weight[:, None]

    network, gradients = Corrected(), []
    for number in range(24):
        network.weight.grad = None
        objective.loss("denoiser", {"denoiser": network}, gaussian(), Step(number)).value.backward()
        gradients.append(network.weight.grad.clone())
    gradients = torch.stack(gradients)
    deviation = gradients.std(0) / 24**0.5
    assert (gradients.mean(0).abs() < 4.5 * deviation + 0.01).all()  # the same items: their mean is not MEAN


def test_a_difference_divides_by_the_step_and_is_zero_without_one():
    """u(x, t, r) = x t of a toy network: (.3 * .8 - (.3 - .2 * 2) * .6) / .2 = 1.5."""

    class Product(nn.Module):
        def forward(self, x, timestep, r_timestep=None):
            return x * timestep[:, None] / 1000

    t, r, s = (
        torch.tensor(times, dtype=torch.float64) for times in ([0.8, 0.5, 0.4], [0.1, 0.2, 0.4], [0.6, 0.5, 0.4])
    )
    x, draws = torch.full((3, 1), 0.3, dtype=torch.float64), Draws(torch.device("cpu"))
    u = Product()(x, 1000 * t)
    change = difference(Product(), u, x, torch.full_like(x, 2.0), t, r, s, {}, draws)
    assert_close(change, torch.tensor([[1.5], [0.0], [0.0]], dtype=torch.float64))


def test_logs_of_what_no_item_has_are_zero():
    batch = {"x": torch.randn(8, 1)}
    moving = FlowMap("mean_flow", flow_share=1e-12).loss("denoiser", {"denoiser": Exact()}, batch, Step(0)).logs
    still = FlowMap("flow_matching").loss("denoiser", {"denoiser": Exact()}, batch, Step(0)).logs
    assert float(moving["flow_error"]) == 0 < float(moving["du_dt"])
    assert float(still["du_dt"]) == 0 < float(still["flow_error"])


def test_without_intervals_it_is_flow_matching_bit_for_bit():
    torch.manual_seed(0)
    network = nn.Linear(1, 1).double()

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, timestep, r_timestep=None):
            assert r_timestep is None or torch.equal(r_timestep, timestep)
            return self.inner(x) * timestep[:, None] / 1000

    batch, step = gaussian(64), Step(3, seed=5)
    ours = FlowMap("flow_matching", adaptive_power=0).loss("denoiser", {"denoiser": Flow()}, batch, step)
    flow = Denoising(StraightPath(), time_sampling="low_discrepancy")
    theirs = flow.loss("denoiser", {"denoiser": Flow()}, batch, step)
    assert_close(ours.value.float(), theirs.value.float(), rtol=1e-6, atol=0)
    share = FlowMap("improved_mean_flow", flow_share=1.0, adaptive_power=0)
    assert torch.equal(share.loss("denoiser", {"denoiser": Flow()}, batch, step).value, ours.value)
    assert ours.logs["du_dt"] == 0 and ours.logs["flow_error"] == ours.logs["error"]


def test_the_curriculum_leads_from_flow_matching_to_derivatives():
    objective = FlowMap("mean_flow", "jvp", curriculum_steps=100)
    shares = [objective.step_of(number) for number in (0, 50, 99, 100, 5000)]
    assert shares[0] == 1 and shares[-2:] == [0, 0] and shares[1] > shares[2] > 0
    assert shares[1] == pytest.approx(0.1414, abs=1e-4)  # half of the way to 2 %, in logarithms
    times = objective.intervals(Step(0), 1000)
    assert_close(times.s, times.r, rtol=0, atol=1e-12)
    later = FlowMap("mean_flow", "difference", 0.1, curriculum_steps=100)
    assert later.step_of(100) == 0.1 and later.step_of(50) == pytest.approx(0.1**0.5)
    for name in CORNERS:
        drawn = FlowMap(name, "difference").intervals(Step(1), 1000)
        assert (drawn.r <= drawn.s).all() and (drawn.s <= drawn.t).all()
        assert (drawn.r == drawn.t).double().mean() == (1 if name == "flow_matching" else pytest.approx(0.5, abs=0.06))


class WithDropout(nn.Module):
    """A network whose output is its own dropout mask, scaled by time."""

    def __init__(self, p=0.5):
        super().__init__()
        self.drop, self.gain = nn.Dropout(p), nn.Parameter(torch.ones(()))

    def forward(self, x, timestep, r_timestep=None):
        return self.gain * self.drop(torch.ones_like(x)) * timestep[:, None] / 1000


@pytest.mark.parametrize("tangent", ["jvp", "difference"])
def test_all_evaluations_of_a_loss_share_their_dropout(tangent):
    """The derivative of mask * t is the mask, 0 or 2: with other masks a difference would be up to 2 / h."""
    torch.manual_seed(1)
    objective = FlowMap("mean_flow", tangent, 0.01, flow_share=0.5)
    logs = objective.loss("denoiser", {"denoiser": WithDropout().train()}, {"x": torch.zeros(4000, 1)}, Step(0)).logs
    assert logs["du_dt"] == pytest.approx(2**0.5, rel=0.03)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    nn.Dropout()(torch.ones(4000, 1))
    assert torch.equal(torch.get_rng_state(), state)  # later draws are those of one evaluation


def test_items_at_rest_learn_the_velocity_of_data_with_dropout_too():
    """A network with dropout is evaluated for all items; a dropout that drops nothing changes no loss."""
    items, losses = {"x": torch.randn(64, 1, generator=torch.Generator().manual_seed(2))}, []
    for p in (0.0, 1e-12):
        network = WithDropout(p).train()
        objective = FlowMap("shortcut", "difference", flow_share=0.7)
        losses.append(objective.loss("denoiser", {"denoiser": network}, items, Step(3)).value.detach())
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6) and losses[0] > 0.1


class ByClass(nn.Module):
    """The velocity of class k is k + 1, that of the null class 10."""

    def __init__(self, classes=3):
        super().__init__()
        self.table = nn.Parameter(torch.tensor([float(k + 1) for k in range(classes)] + [10.0]))

    def forward(self, x, timestep, class_labels=None, r_timestep=None):
        return self.table[class_labels][:, None].expand_as(x) + 0 * x


@pytest.mark.parametrize("teacher", [None, "teacher"])
def test_guidance_is_part_of_what_is_learnt(teacher):
    """A constant velocity is its own mean velocity, so the target is 2 v_k - 1 v_null, and v_null for dropped rows."""
    labels = torch.arange(300) % 3
    objective = FlowMap("improved_mean_flow", num_classes=3, guidance_scale=2.0, teacher=teacher, adaptive_power=0)
    batch = {"x": torch.zeros(300, 1), "labels": labels, "noise": torch.zeros(300, 1)}
    networks = {"denoiser": ByClass(), "teacher": ByClass()}
    step = Step(0)
    dropped = dropped_rows(objective.label_dropout, step, 300)
    data = torch.zeros(300) if teacher is None else torch.where(dropped, 10.0, labels + 1.0)
    target = torch.where(dropped, data, 2 * data - 10.0)
    present = torch.where(dropped, 10.0, labels + 1.0)
    error = objective.loss("denoiser", networks, batch, step).logs["error"]
    assert_close(error, (present - target).square().mean(), rtol=1e-5, atol=0)


def test_padding_has_no_error():
    mask = torch.tensor([[True, False]]).expand(8, 2)
    x = torch.where(mask, 0.5, 7.0)
    network = WithDropout(0.0)
    objective = FlowMap("mean_flow", flow_share=0.5)
    first = objective.loss("denoiser", {"denoiser": network}, {"x": x, "mask": mask}, Step(0)).value
    other = objective.loss("denoiser", {"denoiser": network}, {"x": x * mask, "mask": mask}, Step(0)).value
    assert torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "progressive"}, "method='progressive' is not known. Choose one of: flow_matching, shortcut"),
        ({"tangent": "exact"}, "tangent='exact'"),
        ({"flow_share": 0.0}, "flow_share"),
        ({"step_share": 1.5}, "step_share"),
        ({"method": "shortcut", "tangent": "jvp"}, "shortcut takes steps"),
        ({"method": "flow_matching", "curriculum_steps": 5}, "curriculum_steps=5 does nothing for flow_matching"),
        ({"guidance_scale": float("nan"), "num_classes": 3}, "guidance_scale=nan must be a finite number"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 needs a condition"),
        ({"guidance_scale": 2.0, "num_classes": 3, "label_dropout": 0.0}, "label_dropout above 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        FlowMap(**options)


class TwoTimes(nn.Module):
    """An MLP of two times for digits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(66, 24), nn.SiLU(), nn.Linear(24, 64))

    def forward(self, x, timestep, r_timestep=None):
        ends = timestep if r_timestep is None else r_timestep
        times = torch.stack([timestep, ends], 1).to(x.dtype) / 1000
        return self.body(torch.cat([x.flatten(1), times], 1)).view_as(x)


TWO = """
import sys
import torch
from tests.helpers.toys import run, weights
from tests.objectives.test_flow_map import FlowMap, TwoTimes

for tangent in ("jvp", "difference"):
    folder = f"{sys.argv[1]}/{tangent}"
    networks, _ = run(folder, objective=FlowMap(tangent=tangent), networks={"denoiser": TwoTimes()}, train_batch_size=4)
    torch.save(weights(networks), f"{folder}/{torch.distributed.get_rank()}.pt")
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    run_in_two_processes(TWO, tmp_path)
    for tangent in ("jvp", "difference"):
        alone, _ = run(
            tmp_path / f"one-{tangent}", objective=FlowMap(tangent=tangent), networks={"denoiser": TwoTimes()}
        )
        parts = [torch.load(tmp_path / tangent / f"{rank}.pt") for rank in range(2)]
        start = weights({"denoiser": TwoTimes()})
        for name, value in weights(alone).items():
            assert torch.equal(parts[0][name], parts[1][name])
            assert_close(parts[0][name], value, rtol=1e-5, atol=2e-6)
            assert (value - start[name]).abs().max() > 1e-4


def test_targets_evaluate_whole_networks():
    """A network that is split over processes is gathered for one evaluation by its hooks, and a target is another."""
    assert FlowMap().differentiates_twice and FlowMap("shortcut").differentiates_twice

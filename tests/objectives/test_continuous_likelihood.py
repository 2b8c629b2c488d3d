"""Maximum likelihood of an ODE: closed forms, order of convergence, unbiased traces, and memory by steps."""

import math

import pytest
import torch
from torch import nn

import hfgen
from hfgen.objectives import continuous_likelihood
from hfgen.objectives.base import Step


class Field(nn.Module):
    """A velocity of points (2,) that bends with time, and has no symmetric Jacobian."""

    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2)).double()

    def forward(self, x, timestep):
        assert timestep.shape == (len(x),) and 0 <= float(timestep[0]) <= 1000
        return self.layers(torch.cat([x, timestep[:, None].to(x) / 1000], 1))


def signs(*shape):
    return torch.randint(0, 2, shape).double() * 2 - 1


def test_a_linear_velocity_has_its_closed_form():
    """x_1 = exp(a) x_0, and log p(x_0) = log N(exp(a) x_0) + d a."""
    x, a = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    objective = hfgen.ContinuousLikelihood(12, "none")
    loss = objective.loss("denoiser", {"denoiser": lambda x, t: a * x}, {"x": x}, Step(0))
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = (normal.log_prob(math.exp(0.7) * x).flatten(1).sum(1) + 4 * 0.7).mean()
    torch.testing.assert_close(loss.logs["log_prob"], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(loss.value, -loss.logs["log_prob"] / 4)
    (slope,) = torch.autograd.grad(loss.value, a)
    exact = math.exp(1.4) * float(x.square().sum((1, 2, 3)).mean()) / 4 - 1  # d/da of -log p / 4
    assert abs(float(slope) - exact) < 1e-3


def test_densities_converge_at_order_four():
    field, x, probe = Field(), torch.randn(50, 2, dtype=torch.float64), signs(50, 2)
    with torch.no_grad():
        fine, *rough = (hfgen.ContinuousLikelihood(n, "none").log_prob(field, x, probe, {}) for n in (96, 6, 12))
    errors = [float((value - fine).abs().mean()) for value in rough]
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.7


def test_the_trace_is_estimated_without_bias():
    """Rotation and scaling at once: the mean over both pairs of signs is exact, each alone is not."""
    matrix = torch.tensor([[0.3, 1.0], [0.5, -0.1]], dtype=torch.float64)
    x, objective = torch.randn(4, 2, dtype=torch.float64), hfgen.ContinuousLikelihood(40, "none")
    probes = [torch.tensor([[1.0, sign]], dtype=torch.float64).expand(4, -1) for sign in (1.0, -1.0)]
    first, second = (objective.log_prob(lambda x, t: x @ matrix.T, x, probe, {}).detach() for probe in probes)
    end = x @ torch.matrix_exp(matrix).T
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(end).sum(1) + 0.2
    torch.testing.assert_close((first + second) / 2, expected, atol=1e-6, rtol=0)
    assert (first - expected).abs().min() > 1


def test_gradients_are_those_without_checkpoints_and_memory_does_not_grow_with_the_network(monkeypatch):
    field, x, probe, kept = Field(200), torch.randn(8, 2, dtype=torch.float64), signs(8, 2), []

    def gradients(steps):
        field.zero_grad()
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = hfgen.ContinuousLikelihood(steps, "none").log_prob(field, x, probe, {}).sum()
        value.backward()
        kept.append(sum(sizes))
        return [parameter.grad.clone() for parameter in field.parameters()]

    with_checkpoints = gradients(4)
    gradients(8)
    monkeypatch.setattr(continuous_likelihood, "checkpoint", lambda f, *args, use_reentrant: f(*args))
    torch.testing.assert_close(with_checkpoints, gradients(4))
    assert kept[1] - kept[0] < 500 < 20_000 < kept[2]  # four steps more keep less than one activation of the network


def test_the_density_is_that_of_torchdiffeq():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    field, x, probe = Field(), torch.randn(20, 2, dtype=torch.float64), signs(20, 2)

    def augmented(t, state):
        at = state[0].detach().requires_grad_()
        with torch.enable_grad():
            velocity = field(at, (1000 * t).expand(len(at)))
            (slope,) = torch.autograd.grad(velocity, at, probe)
        return velocity.detach(), (slope * probe).sum(1)

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    state = torchdiffeq.odeint(augmented, (x, x.new_zeros(20)), ends, method="rk4", options={"step_size": 0.01})
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(state[0][-1]).sum(1) + state[1][-1]
    with torch.no_grad():
        found = hfgen.ContinuousLikelihood(60, "none").log_prob(field, x, probe, {})
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_network_of_flow_matching_is_trained_further_on_levels():
    torch.manual_seed(0)
    network = hfgen.build_denoiser("dit", "xs", 8, 1, num_classes=2)
    batch = {"x": torch.randint(0, 256, (4, 1, 8, 8)) / 127.5 - 1, "labels": torch.tensor([0, 1, 1, 0])}
    objective = hfgen.ContinuousLikelihood(2, num_classes=2)
    loss = objective.loss("denoiser", {"denoiser": network}, batch, Step(3))
    loss.value.backward()
    assert 0 < float(loss.logs["bits_per_dim"]) < 30
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    with torch.no_grad():
        again = objective.loss("denoiser", {"denoiser": network}, batch, Step(3))
    torch.testing.assert_close(again.value, loss.value.detach())


def test_impossible_options_are_refused():
    for options, words in (
        ({"num_steps": 0}, "num_steps"),
        ({"dequantisation": "gaussian"}, "dequantisation='gaussian' is not known"),
        ({"label_dropout": 2.0}, "label_dropout"),
    ):
        with pytest.raises(ValueError, match=words):
            hfgen.ContinuousLikelihood(**options)
    network = hfgen.build_denoiser("dit", "xs", 8, 1, gradient_checkpointing=True)
    with pytest.raises(ValueError, match="Leave gradient_checkpointing out"):
        hfgen.ContinuousLikelihood().loss("denoiser", {"denoiser": network}, {"x": torch.zeros(1, 1, 8, 8)}, Step(0))
    with pytest.raises(ValueError, match="density is one of real numbers"):
        hfgen.ContinuousLikelihood().loss("denoiser", {}, {"x": torch.zeros(1, 1, dtype=torch.long)}, Step(0))

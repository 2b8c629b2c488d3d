"""Residual and implicit flows: bounds of norms, exact and estimated determinants, fixed points and their gradients."""

import math

import pytest
import torch
from torch import nn

import hfgen
from hfgen.distributions.densities import flow_log_prob
from hfgen.models.fixed_point import TOLERANCES, fixed_point, implicit_solution
from hfgen.models.lipschitz import ContractiveNetwork, LipSwish, convolution_norm_bound, norm_bound
from hfgen.models.residual_determinants import CERTAIN_TERMS, estimated_log_det

KINDS = ("residual", "implicit")


def scattered(module, std=0.5):
    """The module with random weights, which reach the bounds of their norms."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double()


def flow(kind="residual", network="mlp", **options):
    small = {"sample_size": 4, "num_layers": 4, "hidden_channels": 12, "network_depth": 2}
    return hfgen.ResidualFlowModel(**{**small, "kind": kind, "network": network, **options})


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (3, 64), (64, 3), (40, 40), (1, 1)])
def test_the_bound_of_a_norm_is_above_it_and_near(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    norm = float(torch.linalg.svdvals(matrix)[0])
    assert norm * (1 - 1e-9) <= float(norm_bound(matrix)) <= 1.03 * norm
    flat = torch.eye(shape[0], dtype=torch.float64)  # all singular values alike: the worst case
    assert 1 - 1e-9 <= float(norm_bound(flat)) <= shape[0] ** (1 / 128) + 1e-9
    small = norm_bound(matrix.float() * 1e-18)
    torch.testing.assert_close(small.double(), norm_bound(matrix) * 1e-18, rtol=1e-3, atol=0)
    assert float(norm_bound(torch.zeros(shape))) < 1e-10


@pytest.mark.parametrize("side", (1, 3, 5))
def test_the_bound_of_a_convolution_is_above_the_norm_of_its_matrix(side):
    """Zeros around the image; the matrix of an image of 10 x 10, whose norm is near that of all sizes."""
    torch.manual_seed(0)
    weight = torch.randn(3, 2, side, side, dtype=torch.float64)
    unit = torch.eye(200, dtype=torch.float64).view(200, 2, 10, 10)
    norm = float(torch.linalg.svdvals(nn.functional.conv2d(unit, weight, padding=side // 2).flatten(1))[0])
    bound = float(convolution_norm_bound(weight))
    assert norm * (1 - 1e-9) <= bound <= (1.05, 1.2, 1.7)[side // 2] * norm


def test_the_slope_of_the_activation_is_at_most_one():
    activation, x = LipSwish().double(), torch.linspace(-200, 200, 40001, dtype=torch.float64, requires_grad=True)
    for raw in (-3.0, 0.5, 4.0):
        activation.raw_slope.data.fill_(raw)
        (slope,) = torch.autograd.grad(activation(x).sum(), x)
        assert 0.99 < float(slope.abs().max()) <= 1


@pytest.mark.parametrize("kind", ("mlp", "conv"))
@pytest.mark.parametrize("std", (0.01, 0.5, 20.0))
def test_a_network_contracts_whatever_its_weights(kind, std):
    network = scattered(ContractiveNetwork((2, 4, 4), kind, 12, 2, 0.8, 3), std)
    x, labels = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.tensor([1])
    jacobian = torch.autograd.functional.jacobian(lambda v: network(v, labels).flatten(), x).flatten(1)
    assert float(torch.linalg.svdvals(jacobian)[0]) <= 0.8
    with torch.autocast("cpu", torch.bfloat16):
        assert network.float()(x.float(), labels).dtype == torch.float32


def test_small_weights_stay_as_they_are():
    network = scattered(ContractiveNetwork((6, 1, 1), "mlp", 8, 1, 0.9, None), 0.01)
    for layer, weight in zip(network.layers, network.weights(), strict=True):
        torch.testing.assert_close(weight, layer.weight)


# --- fixed points -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_fixed_points_are_within_their_tolerance_of_the_solution(dtype):
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    shift = torch.randn(5, 9, dtype=torch.float64) * torch.tensor([0.0, 1e-3, 1, 30, 1e4])[:, None]
    exact = torch.linalg.solve(torch.eye(9) - 0.95 * rotation, shift.T).T
    found = fixed_point(lambda x: 0.95 * x @ rotation.to(dtype).T + shift.to(dtype), shift.to(dtype), 0.95).double()
    error = (found - exact).norm(dim=1)
    assert (error <= 1.1 * TOLERANCES[dtype] * (1 + exact.norm(dim=1))).all()


def test_a_map_without_a_fixed_point_is_refused():
    with pytest.raises(ValueError, match="No fixed point was found within 1e-05 after 500 iterations"):
        fixed_point(lambda x: x + 1, torch.zeros(2, 3), 0.5)
    with pytest.raises(ValueError, match="not finite"):
        fixed_point(lambda x: x / 2, torch.full((1, 1), math.nan), 0.5)


def test_gradients_of_an_implicit_solution_are_those_through_its_inverse():
    """z + f(z) = shift: for a linear f = A z by the closed form; the graph does not grow with the iterations."""
    torch.manual_seed(0)
    matrix = (0.5 * torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]).requires_grad_()
    shift = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    z = implicit_solution(lambda v: v @ matrix.T, shift, 0.5)
    exact = torch.linalg.solve(torch.eye(4) + matrix, shift.T).T
    torch.testing.assert_close(z, exact)
    weights = torch.randn(3, 4, dtype=torch.float64)
    ours = torch.autograd.grad((z * weights).sum(), (shift, matrix))
    torch.testing.assert_close(ours, torch.autograd.grad((exact * weights).sum(), (shift, matrix)))
    calls = []
    implicit_solution(lambda v: calls.append(torch.is_grad_enabled()) or v @ matrix.T, shift, 0.5)
    assert sum(calls) == 2 and len(calls) > 10


# --- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ("mlp", "conv"))
@pytest.mark.parametrize("kind", KINDS)
def test_flows_are_inverted_both_ways_and_know_their_determinants(kind, network):
    model = scattered(flow(kind, network, squeeze=2 if network == "conv" else 1, num_class_embeds=3))
    x, labels = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2])
    z, log_det = model(x, labels, return_dict=False)

    def jacobian(i):
        return torch.autograd.functional.jacobian(lambda v: model(v[None], labels[i : i + 1]).latents.flatten(), x[i])

    expected = torch.stack([torch.linalg.slogdet(jacobian(i).flatten(1))[1] for i in range(2)])
    torch.testing.assert_close(log_det, expected)
    with torch.no_grad():
        torch.testing.assert_close(model.inverse(z, labels), x)
        torch.testing.assert_close(model(model.inverse(x, labels), labels).latents, x)
    assert not torch.allclose(model(x, labels.flip(0)).latents, z)  # classes matter
    torch.testing.assert_close(model(x[:1], labels[:1]).log_det, log_det[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_of_determinants_and_of_their_gradients_are_unbiased(kind):
    """Over 4,000 draws of the direction and of the length of the series: within four standard errors."""
    model = scattered(flow(kind, sample_size=2, num_layers=2, log_det="estimate"))
    assert model.noise_shape == (2, 5)
    x, weight = torch.randn(1, 1, 2, 2, dtype=torch.float64), model.layers[1].network.layers[1].weight
    exact = model(x).log_det.sum()
    (slope,) = torch.autograd.grad(exact, weight)
    many, noise = x.expand(4000, -1, -1, -1), torch.randn(4000, 2, 5, dtype=torch.float64)
    estimates = model(many, noise=noise).log_det
    error = float(estimates.detach().std()) / 4000**0.5
    assert abs(float((estimates.mean() - exact).detach())) < 4 * error < 0.2
    parts = torch.stack([torch.autograd.grad(p.mean(), weight, retain_graph=True)[0] for p in estimates.chunk(20)])
    assert ((parts.mean(0) - slope).abs() < 4.5 * parts.std(0) / 20**0.5 + 1e-9).all()


def test_an_estimate_of_a_linear_map_has_the_terms_that_its_number_says():
    """tr J^k of a multiple c of the identity is c^k |v|^2."""
    x, v = torch.zeros(3, 2, dtype=torch.float64), torch.tensor([[1.0, 0], [2, 0], [1, 1]], dtype=torch.float64)
    uniform = torch.tensor([0.9, 0.4, 0.2], dtype=torch.float64)  # no further term, one, two
    found = estimated_log_det(lambda y: 0.5 * y, x, v, uniform)
    sums = [0.5 - 0.125, 0.375 + 2 / 24, 0.375 + 2 / 24 - 4 / 64]
    torch.testing.assert_close(found, torch.tensor(sums, dtype=torch.float64) * torch.tensor([1, 4, 2]))
    assert CERTAIN_TERMS == 2


@pytest.mark.parametrize("kind", KINDS)
def test_densities_integrate_to_one(kind):
    model = scattered(flow(kind, sample_size=1, in_channels=2))
    side = torch.arange(-12, 12, 0.2, dtype=torch.float64)
    model.norms[0].log_scale.data.fill_(0.5)
    with torch.no_grad():
        density = flow_log_prob(model(torch.cartesian_prod(side, side).view(-1, 2, 1, 1))).exp()
    assert abs(float(density.sum()) * 0.04 - 1) < 1e-3


def test_an_implicit_flow_stretches_more_than_a_residual_one():
    """One layer x + g(x) stretches by at most 1.9, its inverse by 10."""
    steep = []
    for kind in KINDS:
        model = flow(kind, sample_size=1, num_layers=2, network_depth=1, hidden_channels=1).double()
        for layer, sign in zip(model.layers, (1, -1), strict=True):
            first, last = layer.network.layers
            first.weight.data.fill_(5.0), last.weight.data.fill_(sign * 5.0 if kind == "implicit" else 5.0)
            first.bias.data.fill_(20.0), last.bias.data.fill_(0.0)
        x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        steep.append(float(model(x).log_det.detach().exp()))
    assert steep[0] <= 1.9**2 < steep[1]


def test_trained_flows_fit_data_and_invert_them_in_float32():
    torch.manual_seed(0)
    model, data = flow("implicit", sample_size=1, in_channels=2, num_layers=4), torch.randn(256, 2, 1, 1)
    data[:, 1] = 0.3 * data[:, 1] + data[:, 0] ** 2
    model.initialise(data)
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(25):
        loss = -flow_log_prob(model(data)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    with torch.no_grad():
        assert (model.inverse(model(data).latents) - data).abs().max() < 1e-4
        assert model.inverse(torch.randn(2000, 2, 1, 1)).isfinite().all()


def test_impossible_flows_are_refused():
    for options, words in (
        ({"kind": "explicit"}, "kind='explicit' is not known"),
        ({"network": "vit"}, "network='vit' is not known"),
        ({"log_det": "trace"}, "log_det='trace' is not known"),
        ({"slope": 1.0}, "below 1"),
        ({"num_layers": 0}, "at least 1"),
        ({"squeeze": 3}, "squeeze=3 do not tile"),
    ):
        with pytest.raises(ValueError, match=words):
            hfgen.ResidualFlowModel(**options)
    with pytest.raises(ValueError, match="residual flow is inverted in one pass"):
        flow().inverse(torch.zeros(1, 1, 4, 4), num_segments=2)

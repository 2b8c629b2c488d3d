"""Elementwise maps of flows: inverses, slopes, bounds, and the densities that they make."""

import math

import pytest
import torch

from hfgen.models.elementwise import build_elementwise, logit_of_normal, normal_of_logit

MAPS = ("additive", "affine", "logistic_mixture", "spline")


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_inverted_and_know_their_slopes(name):
    chosen = build_elementwise(name, 4)
    torch.manual_seed(0)
    x, params = 3 * torch.randn(500, dtype=torch.float64), 2 * torch.randn(500, chosen.size, dtype=torch.float64)
    x.requires_grad_()
    y, log_slope = chosen.forward(x, params)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log())
    torch.testing.assert_close(chosen.inverse(y, params), x)


@pytest.mark.parametrize("name", MAPS)
def test_maps_increase_and_stay_finite_for_any_parameters_in_float32(name):
    chosen = build_elementwise(name, 4)
    torch.manual_seed(0)
    params = 30 * torch.randn(200, 1, chosen.size)
    for function in (
        lambda v: chosen.forward(v, params.expand(-1, 81, -1))[0],
        lambda v: chosen.inverse(v, params.expand(-1, 81, -1)),
    ):
        y = function(torch.linspace(-8, 8, 81).expand(200, 81))
        assert y.isfinite().all() and (y.diff(dim=1) >= -1e-4 * (1 + y[:, 1:].abs())).all()


def test_maps_are_the_identity_at_first_but_the_mixture():
    x = torch.linspace(-7, 7, 30)
    for name in ("additive", "affine", "spline"):
        chosen = build_elementwise(name, 4)
        y, log_slope = chosen.forward(x, chosen.initial().expand(30, -1))
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log_slope, torch.zeros(30), atol=1e-6, rtol=0)


def test_a_mixture_map_with_a_normal_base_is_the_mixture():
    """log N(y) + log dy/dx = log sum_k w_k logistic(x; m_k, s_k), by the formula in float64."""
    chosen, x = build_elementwise("logistic_mixture", 2), torch.linspace(-40, 40, 401, dtype=torch.float64)
    params = torch.tensor([math.log(0.3), math.log(0.7), -1.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    y, log_slope = chosen.forward(x, params.expand(401, -1))
    logistic = [torch.exp(-(x - m).abs()) / (1 + torch.exp(-(x - m).abs())) ** 2 for m in (-1.0, 2.0)]
    expected = (0.3 * logistic[0] + 0.7 * logistic[1]).log()
    torch.testing.assert_close(-y.square() / 2 - math.log(2 * math.pi) / 2 + log_slope, expected)


def test_normal_numbers_of_logits_and_back():
    logits = torch.tensor([-20000.0, -200.0, -40.01, -39.9, -20.0, -1.0, 0.0, 0.5, 30.0, 500.0], dtype=torch.float64)
    y, log_slope = normal_of_logit(logits)
    torch.testing.assert_close(logit_of_normal(y), logits)
    inner = logits.abs() < 20.5
    torch.testing.assert_close(torch.special.ndtr(y[inner]), torch.sigmoid(logits[inner]))
    step = 1e-4
    slope = (normal_of_logit(logits + step)[0] - normal_of_logit(logits - step)[0]) / (2 * step)
    torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-4, atol=1e-7)


def test_an_unknown_map_is_refused():
    with pytest.raises(ValueError, match="elementwise='cubic' is not known"):
        build_elementwise("cubic", 4)
    with pytest.raises(ValueError, match="components=1"):
        build_elementwise("spline", 1)

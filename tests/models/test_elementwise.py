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
    """log N(y) + log dy/dx = log sum_k w_k logistic(x; m_k, s_k), with the fixed component, by the formula."""
    chosen, x = build_elementwise("logistic_mixture", 2), torch.linspace(-36, 36, 401, dtype=torch.float64)
    params = torch.tensor([math.log(0.3), math.log(0.7), -1.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    y, log_slope = chosen.forward(x, params.expand(401, -1))
    logistic = [torch.exp(-(x - m).abs()) / (1 + torch.exp(-(x - m).abs())) ** 2 for m in (-1.0, 2.0, 0.0)]
    expected = (0.9998 * (0.3 * logistic[0] + 0.7 * logistic[1]) + 0.0002 * logistic[2]).log()
    torch.testing.assert_close(-y.square() / 2 - math.log(2 * math.pi) / 2 + log_slope, expected)


def test_a_fitted_mixture_has_narrow_components_where_most_numbers_are():
    """Columns: 8-bit black with noise and some greys; a normal one; one number alone."""
    torch.manual_seed(0)
    black = torch.where(torch.rand(4000) < 0.8, (2 * torch.rand(4000) - 1) / 255 - 1, torch.rand(4000))
    x = torch.stack([black, torch.randn(4000), torch.zeros(4000)], 1)
    chosen = build_elementwise("logistic_mixture", 8)
    params, unit = chosen.fitted(x)
    assert params.shape == unit.shape == (3, 24) and params.isfinite().all()
    y, log_slope = chosen.forward(x, params.expand(4000, -1, -1))
    log_density = -y.square() / 2 - math.log(2 * math.pi) / 2 + log_slope
    entropy = torch.tensor(
        [0.8 * math.log(2 / 255 / 0.8) + 0.2 * math.log(1 / 0.2), 0.5 * math.log(2 * math.pi * math.e)]
    )
    assert (-log_density.mean(0)[:2] - entropy < 0.5).all()  # the entropies of the columns, in nats
    assert (params[0, 8:13].abs() < 1.005).all() and unit[0, 8] < 1e-3 < 0.03 < unit[0, 15] and unit[0, 0] == 1
    initial, ones = build_elementwise("spline", 4).fitted(x)
    assert not initial.any() and (ones == 1).all() and initial.shape == (3, 11)


def test_no_gap_between_components_loses_the_inverse():
    """Two levels with nothing between: numbers there come back in float32, to less than a level of 8 bits."""
    chosen = build_elementwise("logistic_mixture", 2)
    params = torch.tensor([0.0, 0.0, -1.0, 1.0, -9.0, -9.0])
    x = torch.linspace(-1.2, 1.2, 301)
    y, _ = chosen.forward(x, params.expand(301, -1))
    assert (chosen.inverse(y, params.expand(301, -1)) - x).abs().max() < 2 / 255


def test_normal_numbers_of_logits_and_back():
    logits = torch.tensor([-20000.0, -200.0, -40.01, -39.9, -20.0, -1.0, 0.0, 0.5, 30.0, 500.0], dtype=torch.float64)
    y, log_slope = normal_of_logit(logits)
    torch.testing.assert_close(logit_of_normal(y), logits)
    edge, rate = normal_of_logit(torch.tensor(40.0, dtype=torch.float64))
    torch.testing.assert_close(y[0], -edge - 19960 * rate.exp())  # in a straight line, not as the root of 2 l
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

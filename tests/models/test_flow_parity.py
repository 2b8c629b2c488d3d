"""The same parameters and the same density as in zuko, for vectors."""

import pytest
import torch
from torch import nn

import hfgen
from hfgen.distributions.densities import flow_log_prob
from hfgen.models.elementwise import build_elementwise
from hfgen.models.flow_layers import Coupling

zuko = pytest.importorskip("zuko")
SIZE = 6


def pair(elementwise, univariate, shapes):
    """A flow of hfgen and one of zuko, for vectors of 6 numbers, with the same random weights."""
    torch.manual_seed(0)
    ours = hfgen.CouplingFlowModel(
        1,
        SIZE,
        num_levels=1,
        layers_per_level=4,
        squeeze=1,
        elementwise=elementwise,
        components=4,
        network="mlp",
        hidden_channels=16,
    ).double()
    transforms = []
    for index, layer in enumerate(part for part in ours.modules() if isinstance(part, Coupling)):
        mask = (torch.arange(SIZE) < SIZE // 2) ^ (index % 2 == 1)
        hidden = {"hidden_features": (16, 16), "activation": nn.SiLU}
        theirs = zuko.flows.GeneralCouplingTransform(
            SIZE, mask=mask, univariate=univariate, shapes=shapes, **hidden
        ).double()
        network = layer.conditioner
        linear = [part for part in theirs.hyper if isinstance(part, zuko.nn.Linear | nn.Linear)]
        for mine, other in zip([*network.layers, network.output], linear, strict=True):
            nn.init.normal_(mine.weight, std=0.3)
            nn.init.normal_(mine.bias, std=0.3)
            other.load_state_dict(mine.state_dict())
        transforms.append(theirs)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(SIZE).double(), torch.ones(SIZE).double(), buffer=True
    )
    return ours, zuko.lazy.Flow(transforms, base)


@pytest.mark.parametrize(
    "elementwise, univariate, shapes",
    [
        ("additive", zuko.transforms.AdditiveTransform, [()]),
        ("affine", zuko.transforms.MonotonicAffineTransform, [(), ()]),
        ("spline", zuko.transforms.MonotonicRQSTransform, [(4,), (4,), (3,)]),
    ],
)
def test_nice_realnvp_and_spline_couplings_have_the_density_of_zuko(elementwise, univariate, shapes):
    ours, theirs = pair(elementwise, univariate, shapes)
    x = 2 * torch.randn(200, SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(flow_log_prob(ours(x[:, :, None, None])), theirs().log_prob(x), atol=1e-5, rtol=1e-5)
        z = ours(x[:, :, None, None]).latents
        torch.testing.assert_close(theirs().transform.inv(z.flatten(1)), x, atol=1e-5, rtol=1e-5)


def test_splines_are_those_of_zuko():
    torch.manual_seed(0)
    params, x = 3 * torch.randn(400, 11, dtype=torch.float64), 4 * torch.randn(400, dtype=torch.float64)
    y, log_slope = build_elementwise("spline", 4).forward(x, params)
    expected = zuko.transforms.MonotonicRQSTransform(*params.split((4, 4, 3), -1)).call_and_ladj(x)
    torch.testing.assert_close((y, log_slope), tuple(expected))

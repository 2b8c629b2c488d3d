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


def test_masked_autoregressive_gaussians_have_the_density_of_an_autoregressive_transform_of_zuko():
    """RNADE's and MADE's conditionals of one component are MAF: z_i = (x_i - mu_i(x_<i)) / sigma_i(x_<i). zuko gets the
    same networks as its conditioner, and computes density and inverse by itself, in its own parameters of a scale."""
    for kind in ("made", "nade", "fvsbn"):
        torch.manual_seed(0)
        ours = hfgen.MaskedAutoregressiveModel(kind, (SIZE,), None, hidden_size=16).double()
        for parameter in ours.parameters():
            nn.init.normal_(parameter, std=0.2)

        def affine(x, ours=ours):
            _, params = ours(x, order=0, return_dict=False)
            mean, log_scale = (part.squeeze(-1) for part in ours.conditional._split(params.squeeze(2))[1:])
            inner = -log_scale
            scale = inner / (1 - inner.abs() / abs(torch.log(torch.tensor(1e-3))))  # zuko bounds it softly
            return zuko.transforms.MonotonicAffineTransform(-mean * inner.exp(), scale)

        transform = zuko.transforms.AutoregressiveTransform(affine, SIZE)
        x = 2 * torch.randn(200, SIZE, dtype=torch.float64)
        with torch.no_grad():
            z, log_det = transform.call_and_ladj(x)
            expected = (torch.distributions.Normal(0.0, 1.0).log_prob(z) + log_det).sum(1)
            torch.testing.assert_close(ours(x).log_prob.double(), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(transform.inv(z), x, atol=1e-5, rtol=1e-5)


def test_the_flow_of_an_ode_has_the_density_of_zuko():
    """Both pairs of signs together have the exact trace of two dimensions, which zuko computes."""
    from tests.objectives.test_continuous_likelihood import Field

    field, x = Field(), torch.randn(30, 2, dtype=torch.float64)
    transform = zuko.transforms.FreeFormJacobianTransform(
        lambda t, x: field(x, 1000 * t.expand(len(x))), 0.0, 1.0, tuple(field.parameters()), 1e-10, 1e-9, True
    )
    with torch.no_grad():
        z, log_det = transform.call_and_ladj(x)
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det
        probes = (torch.tensor([[1.0, sign]]).double().expand(30, -1) for sign in (1.0, -1.0))
        parts = [hfgen.ContinuousLikelihood(40, "none").log_prob(field, x, probe, {}) for probe in probes]
    torch.testing.assert_close(sum(parts) / 2, expected, atol=1e-5, rtol=1e-5)

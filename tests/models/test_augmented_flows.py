"""Flows with noise of their own: the plain flow without noise, the bound of an autoencoder, bins that are filled."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import hfgen
from hfgen.distributions.densities import flow_log_prob, standard_normal_log_prob
from hfgen.distributions.likelihoods import HALF_LEVEL

COUPLING = {"num_levels": 1, "squeeze": 1, "network": "mlp", "hidden_channels": 12, "network_depth": 1}
FLOWS = {
    "CouplingFlowModel": {**COUPLING, "layers_per_level": 2},
    "TransformerFlowModel": {"patch_size": 2, "num_blocks": 2, "layers_per_block": 1, "hidden_size": 32},
    "ResidualFlowModel": {"num_layers": 2, "hidden_channels": 12},
}


def scattered(module, std=0.3):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double()


def vectors(numbers, extra, layers=2, **options):
    """A flow of vectors (numbers, 1, 1) and of `extra` more numbers, by couplings."""
    inside = {**COUPLING, "sample_size": 1, "in_channels": numbers + extra, "layers_per_level": layers}
    return hfgen.AugmentedFlowModel("CouplingFlowModel", inside, extra, hidden_channels=8, **options)


def test_without_noise_it_is_the_plain_flow():
    model = scattered(vectors(4, 0))
    assert model.noise_shape is None and model.bound_noise_shape == (0,) and model.latent_shape == model.sample_shape
    assert {name.removeprefix("joint.") for name in model.state_dict()} == set(model.joint.state_dict())
    x = torch.randn(5, 4, 1, 1, dtype=torch.float64)
    ours, plain = model(x), model.joint(x)
    torch.testing.assert_close((ours.latents, ours.log_det), (plain.latents, plain.log_det))


def test_a_flow_whose_latents_are_the_noise_has_the_bound_of_an_autoencoder():
    """x = mu(v) + sigma(v) z with v ~ N(0, I): log N(x; mu(v), sigma(v)) + log N(v) - log q(v | x), term by term."""
    model = scattered(vectors(3, 3))
    first, second = model.joint.levels[0][1:]
    for parameter in first.conditioner.parameters():
        parameter.data.zero_()  # v is kept
    x, eps = torch.randn(7, 3, 1, 1, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    bound = flow_log_prob(model(x, noise=eps))
    mean, raw = model.auxiliary.network(x, None).chunk(2, 1)
    q = Normal(mean, (raw / (1 + raw.abs() / math.log(1000))).exp())
    v = mean + q.scale * eps.view_as(x)
    shift, raw = second.conditioner(v, None).unflatten(1, (3, 2)).unbind(2)  # z = exp(a) x + b
    scale = (-raw / (1 + raw.abs() / math.log(1000))).exp()
    p = Normal(-shift * scale, scale)
    expected = p.log_prob(x) + Normal(0.0, 1.0).log_prob(v) - q.log_prob(v)
    torch.testing.assert_close(bound, expected.flatten(1).sum(1))


def test_a_linear_flow_with_the_exact_posterior_has_the_exact_density_of_factor_analysis():
    """x = w v + s z is N(0, w^2 + s^2), and q(v | x) = N(w x / (w^2 + s^2), s^2 / (w^2 + s^2)) is exact."""
    w, s = 1.5, 0.5
    model = scattered(vectors(1, 1))

    class Linear(nn.Module):
        sample_shape = (2, 1, 1)

        def forward(self, x, labels):
            z = torch.stack([(x[:, 0] - w * x[:, 1]) / s, x[:, 1]], 1)
            output = type("Output", (), {"latents": z, "log_det": x.new_full((len(x),), -math.log(s))})
            return output

    class Posterior(nn.Module):
        def forward(self, x, labels, eps):
            q = Normal(w * x / (w**2 + s**2), torch.tensor(s / (w**2 + s**2) ** 0.5, dtype=x.dtype))
            v = q.loc + q.scale * eps
            return v, q.log_prob(v).flatten(1).sum(1)

    model.joint, model.auxiliary = Linear(), Posterior()
    x, eps = 2 * torch.randn(6, 1, 1, 1, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    expected = Normal(0.0, (w**2 + s**2) ** 0.5).log_prob(x).flatten()
    torch.testing.assert_close(flow_log_prob(model(x, noise=eps)), expected)


@pytest.mark.parametrize("name", FLOWS)
def test_inverses_and_determinants_with_the_noise(name):
    """log|det| of images and noise together, as autograd's Jacobian has it; latents give the images back."""
    inside = {"sample_size": 2, "in_channels": 2, **FLOWS[name]}
    model = scattered(hfgen.AugmentedFlowModel(name, inside, 1, True, 8, 1, 3))
    x, noise = torch.randn(2, 1, 2, 2, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    assert model.bound_noise_shape == model.noise_shape == (8,)
    output = model(x, labels, noise, bin_width=0.5)

    def jacobian(i):
        def latents(v):
            eps = torch.cat([v[4:], noise[i, 4:]])[None]
            return model(v[:4].view(1, 1, 2, 2), labels[i : i + 1], eps).latents.flatten()

        at = torch.cat([x[i].flatten(), noise[i, :4]])
        return torch.linalg.slogdet(torch.autograd.functional.jacobian(latents, at))[1]

    plain = model(x, labels, noise)
    expected = torch.stack([jacobian(i) for i in range(2)]) - standard_normal_log_prob(noise[:, :4])
    torch.testing.assert_close(plain.log_det, expected)
    with torch.no_grad():
        torch.testing.assert_close(model.inverse(plain.latents, labels), x)
        inside_bins = model.inverse(output.latents, labels) - x
    assert 0 < float(inside_bins.abs().max()) < 0.25
    assert not torch.allclose(model(x, labels.flip(0), noise).latents, plain.latents)


def test_the_mean_of_densities_over_the_noise_is_the_density():
    """p(x) is the integral of p(x, v) over v, by quadrature, and P(level) that over the bin, too."""
    model = scattered(vectors(2, 1, 3, dequantise=True), 0.2)
    x, count = torch.tensor([[0.3, -0.4]], dtype=torch.float64).view(1, 2, 1, 1), 40_000
    side, part = torch.linspace(-9, 9, 3001, dtype=torch.float64), torch.linspace(-0.5, 0.5, 21, dtype=torch.float64)
    with torch.no_grad():

        def density(at):
            whole = torch.cat([at.expand(len(side), -1, -1, -1), side.view(-1, 1, 1, 1)], 1)
            return flow_log_prob(model.joint(whole)).exp().sum() * (side[1] - side[0])

        eps = torch.randn(count, 3, dtype=torch.float64)
        ratios = flow_log_prob(model(x.expand(count, -1, -1, -1), noise=eps)).exp()
        assert abs(ratios.mean() - density(x)) < 4 * ratios.std() / count**0.5 < 0.05 * ratios.mean()
        width = 0.8
        mids = (part[1:] + part[:-1]) / 2 * width
        grid = [density(x + torch.stack([a, b]).view(1, 2, 1, 1)) for a in mids for b in mids]
        filled = flow_log_prob(model(x.expand(count, -1, -1, -1), noise=eps, bin_width=width)).exp()
        assert abs(filled.mean() - sum(grid) / len(grid)) < 4 * filled.std() / count**0.5 < 0.05 * filled.mean()


def test_noise_in_new_bins_is_nearly_uniform():
    model = vectors(2, 0, dequantise=True)
    noise = torch.randn(20_000, 2)
    y = model.inverse(model(torch.zeros(20_000, 2, 1, 1), noise=noise, bin_width=2.0).latents)
    assert float(y.detach().abs().max()) < 1 + 1e-4
    assert (torch.histc(y, 8) / 40_000 - 1 / 8).abs().max() < 0.02


def test_training_with_a_residual_flow_takes_the_noise_of_both():
    inside = {"sample_size": 2, "in_channels": 2, **FLOWS["ResidualFlowModel"], "log_det": "estimate"}
    model = hfgen.AugmentedFlowModel("ResidualFlowModel", inside, 1)
    assert model.bound_noise_shape == (4,) and model.noise_shape == (4 + 2 * 9,)
    x, noise = torch.randn(3, 1, 2, 2), torch.randn(3, 22)
    exact, estimate = model(x, noise=noise[:, :4]), model(x, noise=noise)
    torch.testing.assert_close(exact.latents, estimate.latents)
    assert not torch.allclose(exact.log_det, estimate.log_det)


def test_the_objective_tells_the_network_the_width_of_the_bins():
    seen = {}

    def network(x, **kwargs):
        seen.update(kwargs, x=x)
        return type("Output", (), {"latents": x, "log_det": x.new_zeros(len(x))})

    batch = {"x": torch.zeros(4, 1, 2, 2)}
    objective = hfgen.MaximumLikelihood("variational", noise_shape=(6,))
    loss = objective.loss("flow", {"flow": network}, batch, hfgen.objectives.base.Step(0))
    assert seen["bin_width"] == 2 * HALF_LEVEL and seen["noise"].shape == (4, 6) and torch.equal(seen["x"], batch["x"])
    log_prob = 4 * Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    torch.testing.assert_close(loss.logs["bits_per_dim"], -(log_prob / 4 + math.log(2 / 255)) / math.log(2))
    with pytest.raises(ValueError, match=r"give noise_shape=flow\.noise_shape"):
        hfgen.MaximumLikelihood("variational")


@pytest.mark.parametrize("extra, variational", [(1, False), (0, True), (1, True)])
def test_pipelines_measure_bounds_and_decode_latents(extra, variational):
    torch.manual_seed(0)
    model = hfgen.build_flow("glow", "xs", 4, 1, extra_channels=extra, dequantise=variational)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    pipeline = hfgen.NormalizingFlowPipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=3, generator=torch.Generator().manual_seed(0), output_type="pt").images
    x = (images * 255).round() / 127.5 - 1
    assert pipeline.latent_shape == (1 + extra, 4, 4)
    torch.testing.assert_close(pipeline.decode(pipeline.encode(x)), x, atol=1e-5, rtol=0)
    seeded = [torch.Generator().manual_seed(seed) for seed in range(3)]
    bits = pipeline.bits_per_dim(x, generator=seeded)
    alone = pipeline.bits_per_dim(x[1:2], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(bits[1:2], alone, atol=1e-4, rtol=0)
    one, many = (pipeline.bits_per_dim(x, num_samples=k, generator=torch.Generator().manual_seed(0)) for k in (1, 20))
    assert many.mean() < one.mean()
    few, more = (pipeline.log_likelihood(x, num_samples=k, generator=torch.Generator()) for k in (1, 30))
    assert few.dtype == torch.float64 and (not extra or more.mean() > few.mean())


def test_samples_of_an_exact_density_are_refused():
    pipeline = hfgen.NormalizingFlowPipeline(hfgen.build_flow("glow", "xs", 4, 1))
    with pytest.raises(ValueError, match="density of this flow is exact"):
        pipeline.log_likelihood(torch.zeros(1, 1, 4, 4), num_samples=2)


def test_impossible_flows_and_noise_are_refused():
    for options, words in (
        ({"flow": "GlowModel"}, "flow='GlowModel' is not known"),
        ({"flow_config": {"in_channels": 2}, "extra_channels": 2}, "extra_channels=2 must be from 0 to below"),
    ):
        with pytest.raises(ValueError, match=words):
            hfgen.AugmentedFlowModel(**options)
    model, x = vectors(2, 1), torch.zeros(2, 2, 1, 1)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 2\); this flow takes \(2, 1\)"):
        model(x, noise=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="needs a model with dequantise=True"):
        model(x, bin_width=0.1)
    with pytest.raises(ValueError, match="no gradient_checkpointing"):
        hfgen.build_flow("glow", "xs", 4, 1, gradient_checkpointing=True, extra_channels=1)

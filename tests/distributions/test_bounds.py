"""Bounds against torch's distributions and against integrals: KL, log ratios, and estimates with K samples."""

import math

import numpy as np
import pytest
import torch
from hfgen.pipelines.vae import CHUNK
from scipy import integrate, stats
from torch.testing import assert_close

from hfgen.distributions.bounds import kl_to_standard_normal, log_mean_exp, log_ratio, log_weights
from hfgen.distributions.likelihoods import build_likelihood
from tests.pipelines.test_vae import LinearGaussian, images, toy

SIGMA = 0.4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 0.3), (-0.7, 2.5)])
def test_kl_to_a_standard_normal_is_its_integral(mean, deviation):
    q, p = stats.norm(mean, deviation), stats.norm()
    expected, _ = integrate.quad(
        lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mean - 12 * deviation, mean + 12 * deviation
    )
    moments = torch.tensor([mean], dtype=torch.float64), torch.tensor([2 * math.log(deviation)], dtype=torch.float64)
    assert kl_to_standard_normal(*moments).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("latent", [(3,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize("prior", ["standard normal", "other"])
def test_log_ratios_are_differences_of_torchs_log_densities(latent, prior):
    z, mean, log_variance = normal(4, 5, *latent), normal(4, *latent, seed=1), normal(4, *latent, seed=2)
    q = torch.distributions.Normal(mean.unsqueeze(1), log_variance.unsqueeze(1).exp().sqrt())
    p = torch.distributions.Normal(0.0, 1.0) if prior == "standard normal" else torch.distributions.Laplace(0.2, 1.5)
    log_prior = p.log_prob(z).flatten(2).sum(2)
    expected = log_prior - q.log_prob(z).flatten(2).sum(2)
    given = None if prior == "standard normal" else log_prior
    assert_close(log_ratio(z, mean, log_variance, given), expected)


def test_weights_are_likelihoods_times_ratios():
    likelihood = build_likelihood("gaussian", 0.3)
    x, decoded, z = normal(4, 2, 3), normal(4, 5, 2, 3, seed=1), normal(4, 5, 2, seed=2)
    mean, log_variance = normal(4, 2, seed=3), normal(4, 2, seed=4)
    fit = torch.distributions.Normal(decoded, 0.3).log_prob(x.unsqueeze(1)).flatten(2).sum(2)
    q = torch.distributions.Normal(mean.unsqueeze(1), log_variance.unsqueeze(1).exp().sqrt())
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    expected = fit + (prior - q.log_prob(z)).sum(2)
    assert_close(log_weights(likelihood, x, decoded, z, mean, log_variance), expected)


@pytest.mark.parametrize(
    ("latents", "moments", "prior", "message"),
    [
        ((4, 5, 2), ((4, 2), (4, 3)), None, r"mean \(4, 2\) and log_variance \(4, 3\) differ"),
        ((4, 5, 3), ((4, 2), (4, 2)), None, r"latents \(4, 5, 3\) and moments \(4, 2\) do not fit"),
        ((3, 5, 2), ((4, 2), (4, 2)), None, r"latents \(3, 5, 2\) and moments \(4, 2\) do not fit"),
        ((4, 5), ((4,), (4,)), None, r"latents \(4, 5\) and moments \(4,\) do not fit"),
        ((4, 2), ((4, 2), (4, 2)), None, r"latents \(4, 2\) and moments \(4, 2\) do not fit"),
        ((4, 5, 2), ((4, 2), (4, 2)), (4,), r"log_prior \(4,\) must be \(B, K\) = \(4, 5\)"),
        ((4, 5, 2), ((4, 2), (4, 2)), (5, 4), r"log_prior \(5, 4\) must be"),
        ((4, 5, 2), ((4, 2), (4, 2)), (4, 1), r"log_prior \(4, 1\) must be"),
    ],
)
def test_latents_moments_and_priors_of_other_shapes_are_refused(latents, moments, prior, message):
    mean, log_variance = (torch.zeros(shape) for shape in moments)
    with pytest.raises(ValueError, match=message):
        log_ratio(torch.zeros(latents), mean, log_variance, None if prior is None else torch.zeros(prior))
    if len(set(moments)) > 1:
        with pytest.raises(ValueError, match=message):
            kl_to_standard_normal(mean, log_variance)


def test_log_mean_exp_is_numpys_and_does_not_overflow():
    w = normal(6, 7) * 3
    assert_close(log_mean_exp(w).numpy(), np.log(np.exp(w.numpy()).mean(1)))
    assert_close(log_mean_exp(w + 5000), log_mean_exp(w) + 5000)


def expected_bound(network, x, samples):
    """E log (1/K sum w_k) of one image (4,) for K of 1 or 2, by Gauss-Hermite quadrature over all K latents."""
    weight, bias = network.weight.detach().double().numpy(), network.bias.detach().double().numpy()
    precision = np.eye(2) + weight.T @ weight / SIGMA**2
    mean = np.linalg.solve(precision, weight.T @ (x - bias) / SIGMA**2)
    deviation = 1 / np.sqrt(np.diag(precision))
    nodes, masses = np.polynomial.hermite_e.hermegauss(16)
    masses = masses / masses.sum()
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    mass = np.outer(masses, masses).reshape(-1)
    z = mean + deviation * grid
    log_w = stats.norm(z @ weight.T + bias, SIGMA).logpdf(x).sum(1)
    log_w += stats.norm.logpdf(z).sum(1) - stats.norm(mean, deviation).logpdf(z).sum(1)
    if samples == 1:
        return float(mass @ log_w)
    return float(mass @ (np.logaddexp(log_w[:, None], log_w[None]) - math.log(2)) @ mass)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_bound_of_few_samples_is_as_loose_as_its_integral(samples):
    """With K = 2 the expected bound lies between the ELBO and log p(x), and more samples than K would be nearer."""
    pipeline, exact = toy(slant=0.5)
    x = images(1).double()
    expected = expected_bound(LinearGaussian(0.5), x.flatten().numpy(), samples)
    values = pipeline.log_likelihood(
        x.expand(20_000, -1, -1, -1), samples, torch.Generator().manual_seed(0), batch_size=40_000
    )
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - expected) < 4 * error
    assert exact(x).item() - expected > 8 * error


@pytest.mark.parametrize("samples", [1, 2, CHUNK, CHUNK + 3])
def test_as_many_latents_are_decoded_as_were_asked_for(samples, monkeypatch):
    pipeline, _ = toy(slant=0.5)
    decoded = []
    decode = LinearGaussian.decode
    monkeypatch.setattr(LinearGaussian, "decode", lambda self, z: decoded.append(len(z)) or decode(self, z))
    for measure in (pipeline.log_likelihood, pipeline.elbo, pipeline.bits_per_dim):
        decoded.clear()
        measure(images(3).double(), samples, torch.Generator().manual_seed(0))
        assert sum(decoded) == 3 * samples


def test_bounds_of_half_precision_moments_are_computed_in_float32():
    mean, log_variance, z = (normal(*shape).bfloat16() for shape in ((3, 2), (3, 2), (3, 5, 2)))
    for value, exact in (
        (kl_to_standard_normal(mean, log_variance), kl_to_standard_normal(mean.double(), log_variance.double())),
        (log_ratio(z, mean, log_variance, None), log_ratio(z.double(), mean.double(), log_variance.double(), None)),
    ):
        assert value.dtype == torch.float32
        assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)

"""Pipelines of latents, beside closed forms of a linear autoencoder of Gaussian data."""

import math

import diffusers
import pytest
import torch

import hfgen
from hfgen.families.few_steps import samples_of
from hfgen.registry import PATHS
from tests.helpers.gaussian import Gaussian, IdealDenoiser

SIGMA, MEAN, DEVIATION = 0.1, (0.5, -1.0), (2.0, 0.5)
"""Of p(x | z), and of the prior of z in each channel."""


def linear(path="straight", kind="flow_prediction", **options):
    """A pipeline whose parts are exact: z ~ N(MEAN, DEVIATION^2), x = W z + b + SIGMA noise of 2 x 2 pixels, and
    q(z | x) is the posterior itself, which has a diagonal covariance as the columns of W are orthogonal."""
    vae = hfgen.MLPAutoencoderModel(2, 1, 1, hidden_dims=(), latent_channels=2)
    weight = torch.tensor([[0.05, 0.1], [0.05, -0.1], [0.05, 0.1], [0.05, -0.1]])
    bias = torch.tensor([0.1, -0.2, 0.0, 0.3])
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    precision = weight.square().sum(0) / SIGMA**2 + deviation**-2
    with torch.no_grad():
        (encoder,), (decoder,) = vae.encoder, vae.decoder
        decoder.weight.copy_(weight)
        decoder.bias.copy_(bias)
        gain = weight.T / SIGMA**2 / precision[:, None]
        encoder.weight.copy_(torch.cat([gain, torch.zeros(2, 4)]))
        encoder.bias.copy_(torch.cat([mean / deviation**2 / precision - gain @ bias, -precision.log()]))
    hfgen.state_scale(vae, hfgen.LatentScale(MEAN, DEVIATION))
    denoiser = IdealDenoiser(2, 1).configure([Gaussian(0.0, 1.0)], path, kind)
    scheduler = hfgen.RectifiedFlowScheduler.from_config({**PATHS[path], "prediction_type": kind})
    options = {"likelihood": "gaussian", "likelihood_sigma": SIGMA, **options}
    pipeline = hfgen.LatentPipeline(denoiser, scheduler, vae, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, weight.double(), bias.double()


@pytest.mark.parametrize(
    ("path", "kind", "scheduler"),
    [
        ("straight", "flow_prediction", None),
        ("straight", "flow_prediction", "heun"),
        ("vp", "epsilon", "ddim"),
        ("vp", "v_prediction", "dpmsolver++"),
    ],
)
def test_samples_have_the_moments_of_the_data(path, kind, scheduler):
    """The flow of N(0, 1) leaves noise as it is. So sigma points of noise have images whose mean and covariance are
    exactly those of W z + b."""
    pipeline, weight, bias = linear(path, kind)
    points = math.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)])[:, :, None, None]
    images = pipeline(4, latents=points, num_inference_steps=100, scheduler=scheduler, output_type="pt").images
    x = 2 * images.double().flatten(1) - 1
    torch.testing.assert_close(x.mean(0), weight @ torch.tensor(MEAN).double() + bias, atol=2e-3, rtol=0)
    expected = weight @ torch.diag(torch.tensor(DEVIATION).double() ** 2) @ weight.T
    torch.testing.assert_close(x.T @ x / 4 - x.mean(0)[:, None] * x.mean(0), expected, atol=2e-3, rtol=0)


def test_schedulers_of_diffusers_draw_the_same():
    pipeline, _, _ = linear()
    noise = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    ours = pipeline(3, latents=noise, num_inference_steps=50, output_type="latent").images
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    drawn = pipeline(3, latents=noise, num_inference_steps=50, scheduler=theirs, output_type="latent").images
    torch.testing.assert_close(drawn, ours, atol=0.08, rtol=0)
    torch.testing.assert_close(ours, noise, atol=1e-3, rtol=0)


def test_the_bound_of_exact_parts_is_the_likelihood():
    """With the posterior for q(z | x) every draw gives log p(x), that of N(W m + b, W S W^T + sigma^2)."""
    pipeline, weight, bias = linear()
    images = 0.3 * torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1)) / 3
    covariance = weight @ torch.diag(torch.tensor(DEVIATION).double() ** 2) @ weight.T + SIGMA**2 * torch.eye(4)
    law = torch.distributions.MultivariateNormal(weight @ torch.tensor(MEAN).double() + bias, covariance)
    expected = law.log_prob(images.double().flatten(1))
    got = pipeline.log_likelihood(images, num_inference_steps=40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)
    levels = ((images + 1) * 127.5).round() / 127.5 - 1
    bits = pipeline.bits_per_dim(levels, num_inference_steps=40, generator=torch.Generator().manual_seed(2))
    density = -law.log_prob(levels.double().flatten(1)) / (4 * math.log(2)) + math.log2(127.5)
    torch.testing.assert_close(bits, density, atol=0.02, rtol=0)


def test_the_round_trip_is_that_of_the_autoencoder():
    pipeline, _, _ = linear()
    images = torch.rand(3, 1, 2, 2) / 2
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mean
        expected = pipeline.vae.decode(latents).sample
    torch.testing.assert_close(pipeline.reconstruct(images), expected)
    items = (latents - torch.tensor(MEAN).view(1, 2, 1, 1)) / torch.tensor(DEVIATION).view(1, 2, 1, 1)
    torch.testing.assert_close(pipeline.encode(images), items)
    torch.testing.assert_close(pipeline.decode(items), expected)
    assert pipeline.sample_shape == (1, 2, 2) and pipeline.latent_shape == pipeline.item_shape == (2, 1, 1)


def test_inversion_leads_to_noise_that_draws_the_reconstruction():
    pipeline, _, _ = linear()
    images = torch.rand(2, 1, 2, 2) / 2
    noise = pipeline.invert(images, num_inference_steps=80)
    torch.testing.assert_close(noise, pipeline.encode(images), atol=2e-3, rtol=0)
    drawn = 2 * pipeline(2, latents=noise, output_type="pt").images - 1
    torch.testing.assert_close(drawn, pipeline.reconstruct(images), atol=2e-3, rtol=0)
    way = pipeline.interpolate(images[:1], images[1:], 3)
    assert way.shape == (3, 1, 1, 2, 2)
    torch.testing.assert_close(way[[0, 2], 0], pipeline.reconstruct(images), atol=2e-3, rtol=0)
    assert pipeline.between(3, 8, 2).shape == (2, 1, 1, 2, 2)


def test_latents_are_what_the_call_returns_as_latents():
    pipeline, _, _ = linear()
    output = pipeline(2, generator=torch.Generator().manual_seed(0), output_type="latent", return_trajectory=True)
    images = pipeline(2, generator=torch.Generator().manual_seed(0), output_type="pt").images
    torch.testing.assert_close((pipeline.decode(output.images) + 1) / 2, images)
    assert torch.equal(output.trajectory[-1], output.images)
    assert pipeline(generator=torch.Generator().manual_seed(0)).images[0].size == (2, 2)
    drawn = next(samples_of(pipeline, 2, None, 2))
    assert drawn.shape == (2, 1, 2, 2) and float(drawn.abs().max()) <= 1


def test_latents_are_measured_and_calibrated():
    pipeline, weight, bias = linear("vp", "epsilon")
    z = torch.tensor(MEAN) + torch.tensor(DEVIATION) * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    images = (z @ weight.T.float() + bias.float()).view(-1, 1, 2, 2)
    table = pipeline.calibrate(images, num_levels=4, generator=torch.Generator().manual_seed(0))
    ratio = table[1][0] / (1 - table[1][0])  # of noise to signal; of z ~ N(0, 1) the rest has variance r^2 / (1 + r^2)
    assert len(table) == 4 and 0.5 < table[1][1] / (ratio**2 / (1 + ratio**2)) < 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": None}, r"no bound on log p\(x\) holds.*states no p\(x \| z\)"),
        ({"variational": False}, r"no bound on log p\(x\) holds.*trained without q"),
    ],
)
def test_bounds_that_do_not_hold_are_refused(options, message):
    pipeline, _, _ = linear(**options)
    with pytest.raises(ValueError, match=message):
        pipeline.bits_per_dim(torch.zeros(1, 1, 2, 2) + 1 / 255)
    with pytest.raises(ValueError, match=message):
        pipeline.log_likelihood(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="variational_bound is one of pixels"):
        pipeline.variational_bound(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.decode(torch.zeros(1, 2, 2, 2)), "latents have shape"),
        (lambda p: p.encode(torch.zeros(1, 1, 3, 3)), "images have shape"),
        (lambda p: p.invert(torch.zeros(1, 2, 1, 1)), "images have shape"),
        (lambda p: p(2, latents=torch.zeros(2, 1, 2, 2)), "latents have shape"),
        (lambda p: hfgen.LatentPipeline(IdealDenoiser(3, 1), p.scheduler, p.vae), "latents with 3 channels"),
        (lambda p: hfgen.LatentPipeline(p.denoiser, p.scheduler, p.denoiser), "has no encode"),
        (lambda p: hfgen.LatentPipeline(p.denoiser, p.scheduler, p.vae, likelihood="x"), "likelihood='x'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    pipeline, _, _ = linear()
    with pytest.raises(ValueError, match=message):
        call(pipeline)


def test_a_pipeline_like_this_one_keeps_its_autoencoder():
    pipeline, _, _ = linear()
    scheduler = hfgen.RectifiedFlowScheduler(solver="euler")
    other = pipeline.with_denoiser(pipeline.denoiser, scheduler)
    assert type(other) is hfgen.LatentPipeline and other.vae is pipeline.vae and other.scheduler is scheduler
    assert other.config.likelihood == "gaussian" and other.config.likelihood_sigma == SIGMA


def test_codes_are_quantised_before_they_are_decoded():
    torch.manual_seed(0)
    vae = hfgen.build_autoencoder("vq", "s", 8, 1, 1, 4)
    hfgen.state_scale(vae, hfgen.LatentScale((0.0,) * 4, (2.0,) * 4))
    denoiser = hfgen.build_denoiser("dit", "xs", 2, 4)
    pipeline = hfgen.LatentPipeline(denoiser, hfgen.RectifiedFlowScheduler(), vae, variational=False)
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        expected = vae.decode(vae.encode(images).latents).sample.clamp(-1, 1)
    torch.testing.assert_close(pipeline.reconstruct(images), expected)

"""Pipelines of normalizing flows: samples, exact latents, exact densities, classes and guidance."""

import math

import pytest
import torch
from hfgen.pipelines.normalizing_flow import denoised
from torch import nn

import hfgen
from hfgen.utils.seeds import sample_generators

LEVELS = torch.arange(4 * 16).view(4, 1, 4, 4).remainder(256) / 127.5 - 1


def flow(kind="transformer", classes=None, std=0.1):
    torch.manual_seed(0)
    if kind == "transformer":
        sizes = {"num_blocks": 2, "layers_per_block": 1, "hidden_size": 32, "num_attention_heads": 2, "head_size": 16}
        network = hfgen.TransformerFlowModel(4, 1, elementwise="logistic_mixture", num_class_embeds=classes, **sizes)
    else:
        sizes = {"layers_per_level": 2, "hidden_channels": 8, "network_depth": 1}
        network = hfgen.CouplingFlowModel(4, 1, mixing="convolution", num_class_embeds=classes, **sizes)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return network


def pipeline(kind="transformer", classes=None, null=True, noise_level=0.0):
    embeds = None if classes is None else classes + null
    made = hfgen.NormalizingFlowPipeline(flow(kind, embeds), classes, noise_level=noise_level)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(params=("transformer", "coupling"))
def plain(request):
    return pipeline(request.param)


def test_a_sample_is_the_same_alone_and_in_a_batch(plain):
    batch = plain(batch_size=3, generator=sample_generators(0, range(3)), output_type="latent").images
    alone = plain(generator=sample_generators(1, range(1)), output_type="latent").images
    torch.testing.assert_close(alone, batch[1:2])
    assert plain(batch_size=2).images[0].size == (4, 4)


def test_latents_are_exact_both_ways(plain):
    images = torch.rand(3, 1, 4, 4) * 2 - 1
    z = plain.encode(images)
    torch.testing.assert_close(plain.decode(z), images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain(latents=z, output_type="latent").images, images, atol=1e-5, rtol=1e-5)
    path = plain.interpolate(images[:1], images[1:2], 3)
    torch.testing.assert_close(path[[0, -1], 0], images[:2], atol=1e-5, rtol=1e-5)


def test_temperature_scales_latents(plain):
    z = torch.randn(2, 1, 4, 4)
    cool = plain(latents=z, temperature=0.5, output_type="latent").images
    torch.testing.assert_close(cool, plain.decode(z / 2))
    for temperature in (-1.0, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            plain(temperature=temperature)


def test_densities_are_those_of_the_flow_in_any_batch(plain):
    x = torch.randn(5, 1, 4, 4)
    with torch.no_grad():
        z, log_det = plain.flow(x, return_dict=False)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3)) + log_det
    torch.testing.assert_close(plain.log_likelihood(x), expected.double(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(plain.log_likelihood(x, batch_size=2), expected.double(), atol=1e-4, rtol=1e-5)


def test_bits_of_a_standard_normal_flow():
    """The identity is the flow of N(0, 1): -log2 of the density times the bin's width, by hand."""
    made = hfgen.NormalizingFlowPipeline(hfgen.CouplingFlowModel(4, 1, num_levels=1, hidden_channels=8))
    made.set_progress_bar_config(disable=True)
    bits = made.bits_per_dim(LEVELS, num_samples=16, generator=torch.Generator().manual_seed(0))
    mass = torch.special.ndtr(LEVELS.double() + 1 / 255) - torch.special.ndtr(LEVELS.double() - 1 / 255)
    torch.testing.assert_close(bits, -mass.log2().mean((1, 2, 3)), atol=2e-4, rtol=0)


def test_more_draws_tighten_the_bound(plain):
    one, many = (plain.bits_per_dim(LEVELS, num_samples=k, generator=torch.Generator().manual_seed(0)) for k in (1, 50))
    assert many.mean() <= one.mean() + 1e-3
    with pytest.raises(ValueError, match="num_samples=0"):
        plain.bits_per_dim(LEVELS, num_samples=0)
    with pytest.raises(ValueError, match="256 levels"):
        plain.bits_per_dim(LEVELS + 0.002)


def test_noise_is_removed_by_tweedies_formula():
    """Where y is N(0, 1), the mean of x given y = x + sigma eps is (1 - sigma^2) y."""
    network, y = hfgen.CouplingFlowModel(4, 1, num_levels=1, hidden_channels=8), torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(denoised(network, y, 0.3, {}), 0.91 * y)
    made = pipeline(noise_level=0.3)
    z = torch.randn(2, 1, 4, 4)
    noisy, clean = (made(latents=z, denoise=value, output_type="latent").images for value in (False, None))
    torch.testing.assert_close(clean, denoised(made.flow, noisy, 0.3, {}))
    torch.testing.assert_close(made.decode(z), noisy)
    with pytest.raises(ValueError, match="noise_level=0"):
        pipeline()(denoise=True)


@pytest.mark.parametrize("kind", ("transformer", "coupling"))
def test_classes_are_told_and_none_is_the_null_label(kind):
    made, x = pipeline(kind, classes=3), torch.rand(2, 1, 4, 4) * 2 - 1
    first, second = made.encode(x, [0, 1]), made.encode(x, [1, 0])
    assert not torch.allclose(first, second)
    torch.testing.assert_close(made.decode(first, [0, 1]), x, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        expected = made.flow(x, torch.tensor([3, 3])).latents
        assert made.encode(x).dtype == torch.float64  # rounding errors of sequential flows grow
        torch.testing.assert_close(made.encode(x).float(), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(made.log_likelihood(x, 0), made.log_likelihood(x, 1))


def test_guidance_needs_a_transformer_classes_and_a_null_label():
    made, z = pipeline(classes=3), torch.randn(2, 1, 4, 4)
    plain, guided = (made(class_labels=1, latents=z, guidance_scale=s, output_type="latent").images for s in (1.0, 2.0))
    assert not torch.allclose(plain, guided)
    for other, options, words in (
        (made, {}, "class_labels are needed"),
        (pipeline(classes=3, null=False), {"class_labels": 1}, "without label dropout"),
        (
            pipeline("coupling", classes=3),
            {"class_labels": 1},
            "^guidance_scale=2.0: a coupling flow",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            other(guidance_scale=2.0, **options)
    with pytest.raises(ValueError, match="needs class_labels"):
        pipeline(classes=3, null=False).encode(z.clamp(-1, 1))


def test_iterations_of_segments_come_near_the_exact_samples():
    made, z = pipeline(), torch.randn(2, 1, 4, 4)
    exact = made(latents=z, output_type="latent").images
    parts = made(latents=z, num_segments=2, output_type="latent").images
    torch.testing.assert_close(parts, exact, atol=1e-4, rtol=1e-4)
    rough = made(latents=z, num_segments=1, num_inference_steps=1, output_type="latent").images
    assert not torch.allclose(rough, exact, atol=1e-3)
    for name in ("coupling", "transformer"):
        with pytest.raises(ValueError, match=r"num_inference_steps=3 .* one pass"):
            pipeline(name)(num_inference_steps=3)


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
@pytest.mark.parametrize("name", ["num_inference_steps", "num_segments"])
def test_iterations_and_segments_that_are_no_counts_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        pipeline()(**{"num_segments": 2, name: value})


def test_a_saved_pipeline_is_the_same(tmp_path, plain):
    plain.save_pretrained(tmp_path)
    loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded, hfgen.NormalizingFlowPipeline)
    z = torch.randn(2, 1, 4, 4)
    assert torch.equal(loaded(latents=z, output_type="latent").images, plain(latents=z, output_type="latent").images)


@pytest.mark.parametrize("kind", ["coupling", "residual"])
def test_broken_weights_are_named(kind):
    """Also where a fixed point, which never settles, would be searched with them."""
    made = pipeline("coupling")
    if kind == "residual":
        network = hfgen.ResidualFlowModel(4, 1, 1, "implicit", hidden_channels=8)
        made = hfgen.NormalizingFlowPipeline(network)
    with torch.no_grad():
        next(made.flow.parameters()).fill_(math.nan)
    for call in (made, lambda: made.log_likelihood(LEVELS), lambda: made.encode(LEVELS)):
        with pytest.raises(ValueError, match="The flow has"):
            call()


def test_impossible_noise_levels_are_refused():
    for level in (-0.1, math.inf):
        with pytest.raises(ValueError, match="noise_level"):
            hfgen.NormalizingFlowPipeline(flow(), noise_level=level)

"""Pipelines of autoregressive models: samples, completions, exact likelihoods, classes and guidance."""

import itertools
import math

import pytest
import torch
from torch import nn

import hfgen
from hfgen.utils.seeds import sample_generators

LEVELS = torch.arange(4 * 16).mul(37).view(4, 1, 4, 4).remainder(256) / 127.5 - 1


def made(architecture="transformer", levels=256, classes=None, null=True, side=4, patch_size=None, **options):
    torch.manual_seed(0)
    patch = {"patch_size": patch_size} if architecture == "transformer" else {}
    network = hfgen.build_autoregressive(architecture, "xs", side, 1, levels, classes, null, **patch, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    pipeline = hfgen.ARPipeline(network, classes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


KINDS = [("transformer", 256), ("transformer", 2), ("made", 2), ("nade", None), ("fvsbn", 256)]


@pytest.mark.parametrize(("architecture", "levels"), KINDS)
def test_a_sample_is_the_same_alone_and_in_a_batch(architecture, levels):
    pipeline = made(architecture, levels)
    batch = pipeline(batch_size=3, generator=sample_generators(0, range(3)), output_type="latent").images
    alone = pipeline(generator=sample_generators(1, range(1)), output_type="latent").images
    torch.testing.assert_close(alone, batch[1:2])
    assert pipeline(batch_size=2).images[0].size == (4, 4)
    if levels:
        assert batch.min() >= -1 and batch.max() <= 1
        symbols = (batch + 1) * (levels - 1) / 2
        torch.testing.assert_close(symbols, symbols.round(), atol=1e-4, rtol=0)


def test_bits_of_a_model_that_guesses_are_eight():
    pipeline = made()
    for parameter in pipeline.model.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(pipeline.bits_per_dim(LEVELS), torch.full((4,), 8.0, dtype=torch.float64))
    nats = torch.full((4,), -16 * math.log(256), dtype=torch.float64)
    torch.testing.assert_close(pipeline.log_likelihood(LEVELS), nats, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("architecture", "levels"), [("transformer", 256), ("fvsbn", 256), ("nade", None)])
def test_likelihoods_are_those_of_the_network_in_any_batch(architecture, levels):
    pipeline = made(architecture, levels)
    with torch.no_grad():
        expected = pipeline.model(LEVELS).log_prob.double()
    torch.testing.assert_close(pipeline.log_likelihood(LEVELS), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(pipeline.log_likelihood(LEVELS, batch_size=3), expected, atol=1e-4, rtol=1e-5)
    if levels:
        bits = -expected / (16 * math.log(2))
        torch.testing.assert_close(pipeline.bits_per_dim(LEVELS), bits, atol=1e-5, rtol=1e-5)


def test_bits_of_real_numbers_bound_those_of_the_levels():
    """One pixel: the mass of a level is the integral of the density over its bin, which the bound is below."""
    pipeline = made("nade", None, side=2)
    x = torch.zeros(1, 1, 2, 2) + 1 / 255
    draws = torch.stack([pipeline.bits_per_dim(x, generator=torch.Generator().manual_seed(n)) for n in range(200)])
    grid = torch.linspace(-1 + 1 / 20, 1 - 1 / 20, 10, dtype=torch.float64) / 255
    points = torch.tensor(list(itertools.product(grid.tolist(), repeat=4))).view(-1, 1, 2, 2) + 1 / 255
    density = pipeline.log_likelihood(points).exp().mean()
    exact = -(density.log2() + 4 * math.log2(2 / 255)) / 4
    assert draws.mean() >= exact - 1e-4
    assert draws.mean().item() == pytest.approx(exact.item(), abs=0.02)


def test_grey_images_are_binarised_by_the_generator():
    pipeline = made("made", 2)
    grey = torch.zeros(2, 1, 4, 4) + 1e-3 * torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    first, again, other = (pipeline.log_likelihood(grey, generator=torch.Generator().manual_seed(n)) for n in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    alone = pipeline.log_likelihood(grey[1:], generator=sample_generators(8, range(1)))
    both = pipeline.log_likelihood(grey, generator=sample_generators(7, range(2)))
    torch.testing.assert_close(alone, both[1:])
    with pytest.raises(ValueError, match="2 values of a pixel, not the 256 levels"):
        pipeline.bits_per_dim(LEVELS)


@pytest.mark.parametrize(
    ("architecture", "levels", "patch"), [("transformer", 2, 2), ("transformer", 256, 1), ("nade", 2, None)]
)
def test_completions_keep_the_rows_above(architecture, levels, patch):
    pipeline = made(architecture, levels, patch_size=patch)
    given = pipeline(batch_size=4, generator=sample_generators(5, range(4)), output_type="latent").images
    completed = pipeline.complete(given, generator=sample_generators(9, range(4)), output_type="latent").images
    torch.testing.assert_close(completed[:, :, :2], given[:, :, :2])
    assert not torch.equal(completed, given)
    whole = pipeline.complete(given, 4, output_type="latent").images
    torch.testing.assert_close(whole, given)
    free = pipeline.complete(given, 0, generator=sample_generators(5, range(4)), output_type="latent").images
    torch.testing.assert_close(free, given)
    if patch == 2:
        with pytest.raises(ValueError, match="3 rows"):
            pipeline.complete(given, 3)
    with pytest.raises(ValueError, match="rows=5"):
        pipeline.complete(given, 5)


def test_completions_have_the_conditional_distribution():
    """The lower pixel of two, given the upper one, by the probabilities of the four images."""
    torch.manual_seed(1)
    network = hfgen.MaskedAutoregressiveModel("nade", (1, 2, 1), hidden_size=5)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    pipeline = hfgen.ARPipeline(network)
    pipeline.set_progress_bar_config(disable=True)
    pairs = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).view(2, 1, 2, 1)
    log_prob = pipeline.log_likelihood(pairs)
    white = (log_prob[1] - torch.logsumexp(log_prob, 0)).exp()
    given = pairs[:1].expand(4000, -1, -1, -1)
    drawn = pipeline.complete(given, 1, generator=torch.Generator().manual_seed(2), output_type="latent").images
    share = (drawn[:, 0, 1, 0] > 0).double().mean()
    assert abs(share - white) < 4 * (white * (1 - white) / 4000).sqrt()


@pytest.mark.parametrize("architecture", ["transformer", "made"])
def test_classes_and_guidance(architecture):
    pipeline = made(architecture, 2, classes=3)
    generators = [sample_generators(0, range(3)) for _ in range(3)]
    options = {"class_labels": [0, 1, 2], "output_type": "latent"}
    plain = pipeline(**options, generator=generators[0]).images
    one = pipeline(**options, generator=generators[1], guidance_scale=1.0).images
    assert torch.equal(plain, one)
    sharper = pipeline(**options, generator=generators[2], guidance_scale=30.0).images
    assert not torch.equal(plain, sharper)
    given, free = pipeline.log_likelihood(plain, [0, 1, 2]), pipeline.log_likelihood(plain)
    assert (given != free).all()
    without_null = made(architecture, 2, classes=3, null=False)
    with pytest.raises(ValueError, match="needs class_labels"):
        without_null.log_likelihood(LEVELS)
    with pytest.raises(ValueError, match="guidance_scale=2"):
        without_null(class_labels=1, guidance_scale=2.0)


def test_temperature_zero_draws_the_most_likely_pixels():
    pipeline = made("nade", 2)
    first, second = (
        pipeline(temperature=0, generator=torch.Generator().manual_seed(n), output_type="latent").images for n in (0, 1)
    )
    assert torch.equal(first, second)
    greedy = pipeline.model(first).params[0, :, 0, 0] > 0
    assert torch.equal(greedy, (first > 0).flatten())
    for temperature in (-1.0, math.inf, math.nan, True):
        with pytest.raises(ValueError, match="temperature"):
            pipeline(temperature=temperature)


def test_weights_that_are_not_finite_are_named():
    pipeline = made("nade", None)
    nn.init.constant_(pipeline.model.network.bias, math.nan)
    with pytest.raises(ValueError, match="not finite"):
        pipeline()
    with pytest.raises(ValueError, match="not finite"):
        made_with_nan = made("transformer", 2)
        nn.init.constant_(made_with_nan.model.output.bias, math.nan)
        made_with_nan()


def test_images_that_do_not_fit_are_refused():
    pipeline = made()
    with pytest.raises(ValueError, match="256 levels"):
        pipeline.log_likelihood(torch.full((1, 1, 4, 4), -0.9975))
    with pytest.raises(ValueError, match="shape"):
        pipeline.log_likelihood(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match="num_classes=7"):
        hfgen.ARPipeline(pipeline.model.__class__(4, num_class_embeds=3, hidden_size=32, num_attention_heads=1), 7)

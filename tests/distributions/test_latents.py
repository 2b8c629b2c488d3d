"""Scales of latents: against NumPy, diffusers' own factors, and the determinant of a change of variables."""

import math
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hfgen.distributions.latents import (
    Coded,
    LatentScale,
    coded,
    image_shape_of,
    latent_shape_of,
    measured_scale,
    scale_of,
    state_scale,
    stated_scale,
)

SCALE = LatentScale((0.5, -2.0, 0.0), (2.0, 0.25, 1.0), 7)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_kl(**options):
    sizes = {"block_out_channels": (4,), "norm_num_groups": 2, "latent_channels": 3, "sample_size": 8}
    return diffusers.AutoencoderKL(1, 1, **sizes, **options)


@pytest.mark.parametrize("item", [(), (5,), (2, 3)])
def test_normalised_latents_are_numpys_and_come_back(item):
    z = normal(4, 3, *item)
    mean, deviation = (np.reshape(values, (3, *[1] * len(item))) for values in (SCALE.mean, SCALE.deviation))
    x = SCALE.normalise(z)
    np.testing.assert_allclose(x.numpy(), (z.numpy() - mean) / deviation)
    assert_close(SCALE.restore(x), z)
    assert SCALE.normalise(z.float()).dtype == torch.float32


def test_the_volume_is_the_log_determinant_of_coming_back():
    jacobian = torch.autograd.functional.jacobian(lambda x: SCALE.restore(x[None])[0], normal(3, 2, 2)).view(12, 12)
    assert SCALE.log_volume((3, 2, 2)) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet))
    assert SCALE.log_volume((3,)) == pytest.approx(math.log(2 * 0.25))


def test_one_number_is_the_scale_of_all_channels_and_three_are_not_that_of_two():
    one, z = LatentScale((0.5,), (2.0,)), normal(2, 4, 3)
    assert_close(one.normalise(z), (z - 0.5) / 2)
    for channels in (2, 4):
        with pytest.raises(ValueError, match=rf"latents have {channels} channels, .* states the scale of 3"):
            SCALE.normalise(z[:, :1].expand(-1, channels, -1))
    assert SCALE.normalise(z[:, :1]).shape == (2, 3, 3)  # one channel is repeated, as an argument of diffusers is


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [((0.0,), (0.0,)), ((0.0,), (-1.0,)), ((math.nan,), (1.0,)), ((0.0,), (math.inf,)), ((0.0, 1.0), (1.0,))],
)
def test_what_is_no_scale_is_refused(mean, deviation):
    with pytest.raises(ValueError, match="must be finite numbers, one of each for a channel, and deviations above 0"):
        LatentScale(mean, deviation)


def test_a_measured_scale_is_that_of_the_draws():
    """The two numbers mu - sigma and mu + sigma have the mean and the deviation of N(mu, sigma^2)."""
    mean, deviation = 3 + 2 * normal(9, 2, 3, 4), normal(9, 2, 3, 4, seed=1).abs()
    scale = measured_scale(Coded(*part) for part in zip(mean.split(4), deviation.split(4), strict=True))
    ends = np.concatenate([(mean - deviation).numpy(), (mean + deviation).numpy()])
    assert scale.images == 9
    assert scale.mean == pytest.approx(ends.mean((0, 2, 3)).tolist())
    assert scale.deviation == pytest.approx(ends.std((0, 2, 3)).tolist())


def test_constant_channels_and_no_latents_have_no_scale():
    still = torch.stack([normal(5), torch.full((5,), 3.0, dtype=torch.float64)], 1)
    with pytest.raises(ValueError, match="Channel 1 of the latents is constant"):
        measured_scale([Coded(still, torch.zeros_like(still))])
    faint = still + torch.tensor([[0.0, 1.0]]) * torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])[:, None] * 1e-5
    assert measured_scale([Coded(faint, torch.zeros_like(still))]).deviation[1] == pytest.approx(
        math.sqrt(0.8) * 1e-5, rel=1e-3
    )
    with pytest.raises(ValueError, match="no latents to measure"):
        measured_scale([])


class Encoder(nn.Module):
    """An autoencoder whose encoder returns what it was given, in half precision."""

    def __init__(self, output, config=None):
        super().__init__()
        self.weight, self.output, self.config = nn.Parameter(torch.zeros(1).half()), output, config or {}

    def encode(self, x):
        assert x.dtype == torch.float16
        return self.output


def test_what_an_encoder_says_are_moments_or_latents_without_deviation():
    mean, deviation = normal(2, 3, 1, 1).half(), normal(2, 3, 1, 1, seed=1).half().abs()
    moments = SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=deviation))
    images = torch.zeros(2, 1, 8, 8)
    for output, variational, expected in (
        (moments, True, deviation),
        (moments, False, torch.zeros_like(mean)),
        (SimpleNamespace(latents=mean), True, torch.zeros_like(mean)),
        (SimpleNamespace(latent=mean), True, torch.zeros_like(mean)),
    ):
        found = coded(Encoder(output), images, variational)
        assert found.mean.dtype == found.deviation.dtype == torch.float32
        assert torch.equal(found.mean, mean.float()) and torch.equal(found.deviation, expected.float())
    with pytest.raises(ValueError, match=r"Encoder\.encode returns no latents"):
        coded(Encoder(SimpleNamespace(code=mean)), images)


def test_shapes_are_those_of_the_configuration_or_of_an_encoded_image():
    latents = SimpleNamespace(latents=torch.zeros(1, 3, 2, 4))
    assert latent_shape_of(Encoder(latents), (1, 8, 16)) == (3, 2, 4)
    assert latent_shape_of(Encoder(latents, {"in_channels": 1, "sample_size": 8})) == (3, 2, 4)
    assert image_shape_of(Encoder(latents, {"in_channels": 1, "sample_size": 8})) == (1, 8, 8)
    assert image_shape_of(Encoder(latents, {"in_channels": 4, "sample_size": [8, 6]})) == (4, 8, 6)
    for config in ({"in_channels": 1}, {"sample_size": 8}):
        with pytest.raises(ValueError, match="says no in_channels and sample_size"):
            image_shape_of(Encoder(latents, config))
    known = Encoder(latents)
    known.sample_shape = [2, 5, 5]
    assert image_shape_of(known) == (2, 5, 5)


def test_factors_of_diffusers_are_scales():
    """diffusers gives its networks (z - shift) factor, and the inverse to its decoder."""
    z = normal(2, 3, 2, 2)
    assert stated_scale(small_kl()) is None  # its default of the class
    assert stated_scale(small_kl(scaling_factor=1.0)) is None
    found = stated_scale(small_kl(scaling_factor=0.5))
    assert found == LatentScale((0.0,) * 3, (2.0,) * 3)
    found = stated_scale(small_kl(scaling_factor=0.4, shift_factor=0.3))
    assert_close(found.normalise(z), (z - 0.3) * 0.4)
    found = stated_scale(small_kl(shift_factor=0.3))  # beside a shift the default is a statement, too
    assert_close(found.normalise(z), (z - 0.3) * 0.18215)
    own = {"latents_mean": (0.5, -2.0, 0.0), "latents_std": (2.0, 0.25, 1.0)}
    assert stated_scale(small_kl(**own)) == LatentScale(*own.values())
    found = stated_scale(small_kl(**own, scaling_factor=0.5))
    assert_close(found.normalise(z), SCALE.normalise(z) * 0.5)
    for factor in (0.0, -1.0):
        with pytest.raises(ValueError, match=rf"scaling_factor={factor} .* must be above 0"):
            stated_scale(small_kl(scaling_factor=factor))
    one = SimpleNamespace(config={"scaling_factor": 0.5})  # without a number of channels: one for all
    assert stated_scale(one) == LatentScale((0.0,), (2.0,))


def test_a_scale_that_was_stated_is_read_again():
    network = small_kl(scaling_factor=0.5)
    state_scale(network, SCALE)
    assert stated_scale(network) == scale_of(network) == SCALE
    assert network.config.scaling_factor == 1 and network.config._latents_images == 7
    with pytest.raises(ValueError, match=r"The vae \(AutoencoderKL\) states no statistics of its latents"):
        scale_of(small_kl(), "The vae")

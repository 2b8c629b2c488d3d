"""Laws of networks of flow maps: derivatives in forward mode, and a second time that changes nothing at first."""

import math

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models import embeddings
from torch.testing import assert_close

from hfgen.models.build_denoiser import build_denoiser
from hfgen.models.flow_map_network import with_two_times
from tests.models.test_denoisers import ARCHITECTURES, images, perturb, small

LABELS = torch.tensor([0, 3, 4])
TIMES = torch.tensor([3.0, 500.0, 1000.0])


def exact_embedding(timesteps, channels, flip_sin_to_cos, downscale_freq_shift, scale=1, **_):
    """diffusers' embedding of time in float64: theirs is computed in float32, too coarse for a difference quotient."""
    half = channels // 2
    powers = torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
    angles = scale * timesteps.double()[:, None] * torch.exp(-math.log(10000) * powers)
    parts = [angles.sin(), angles.cos()]
    return torch.cat(parts[::-1] if flip_sin_to_cos else parts, -1)


def flow_map(architecture, side=8):
    return perturb(with_two_times(small(architecture, side)))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_mode_is_the_central_difference(architecture, channels_last, monkeypatch):
    monkeypatch.setattr(embeddings, "get_timestep_embedding", exact_embedding)
    network = perturb(flow_map(architecture, 16), 0.1 if architecture == "uvit" else 0.0).double()
    if channels_last:
        network.to(memory_format=torch.channels_last)
    x, direction = images(height=16).double(), images(height=16, seed=2).double()
    t, r = TIMES.double(), TIMES.double() / 3

    def output(x, t, r):
        return network(x, t, LABELS, r_timestep=r).sample

    for tangents in ((direction, 0, 0), (direction, 1, 0), (0 * direction, 0, 1)):
        dx, dt, dr = tangents[0], *(torch.full_like(t, value) for value in tangents[1:])
        value, derivative = torch.func.jvp(output, (x, t, r), (dx, dt, dr))
        h = 1e-5
        ahead, behind = (output(x + k * dx, t + k * dt, r + k * dr) for k in (h, -h))
        assert_close(value, output(x, t, r), rtol=1e-10, atol=1e-10)
        assert_close(derivative, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)
        assert derivative.norm() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("classes", [None, 4])
def test_a_new_second_time_changes_no_bit(architecture, classes):
    torch.manual_seed(0)
    flow = perturb(build_denoiser(architecture, "xs", 8, 3, classes))
    network = with_two_times(flow)
    labels = None if classes is None else LABELS
    before = flow(images(), TIMES, labels).sample
    for r in (None, TIMES, 0.0, TIMES / 2):
        assert torch.equal(network(images(), TIMES, labels, r_timestep=r).sample, before)
    assert with_two_times(network) is network
    assert sum(p.requires_grad for p in network.parameters()) == len(list(network.parameters()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trained_second_time_counts_by_the_length_of_the_interval(architecture):
    network = flow_map(architecture)
    flow = network(images(), TIMES, LABELS).sample
    assert torch.equal(network(images(), TIMES, LABELS, r_timestep=TIMES).sample, flow)
    one = network(images(), 500, LABELS, r_timestep=100).sample
    assert not torch.equal(one, network(images(), 500, LABELS).sample)
    assert torch.equal(network(images(), 500, LABELS, r_timestep=torch.full((3,), 100.0)).sample, one)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_second_time_learns_at_once(architecture):
    network = with_two_times(small(architecture))
    network(images(), TIMES, LABELS, r_timestep=0).sample.square().mean().backward()
    assert network.interval_embedding.embedding.linear_2.weight.grad.norm() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_with_one_time_refuses_a_second(architecture):
    network = small(architecture)
    if architecture == "unet":
        assert isinstance(network, UNet2DModel) and "r_timestep" not in UNet2DModel.forward.__code__.co_varnames
        return
    with pytest.raises(ValueError, match="r_timestep was passed to a network with one time"):
        network(images(), TIMES, LABELS, r_timestep=0)


def test_the_factory_builds_flow_maps_and_folders_keep_them(tmp_path):
    for architecture in ARCHITECTURES:
        network = perturb(build_denoiser(architecture, "xs", 8, 3, 4, two_times=True))
        network.save_pretrained(tmp_path / architecture)
        loaded = type(network).from_pretrained(tmp_path / architecture)
        call = (images(), TIMES, LABELS)
        assert torch.equal(loaded(*call, r_timestep=0).sample, network(*call, r_timestep=0).sample)


def test_networks_that_can_not_have_a_second_time_are_named():
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    with pytest.raises(ValueError, match="time_embedding_type=fourier"):
        with_two_times(UNet2DModel(8, 3, 3, time_embedding_type="fourier", **blocks))
    with pytest.raises(ValueError, match="Linear has no second time"):
        with_two_times(torch.nn.Linear(2, 2))
    with_two_times(UNet2DModel(8, 3, 3, **blocks))

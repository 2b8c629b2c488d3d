"""Laws of objectives on latents: what is drawn, and where the autoencoder computes."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

import hfgen
from hfgen.objectives.base import Loss, Objective, Step


class Items(Objective):
    """An objective that remembers its items; its loss is their mean."""

    players, call = ("denoiser",), None

    def loss(self, player, networks, batch, step):
        self.seen = SimpleNamespace(**batch)
        return Loss(batch["x"].mean(), {})


def autoencoder():
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    channels = {"in_channels": 1, "out_channels": 1, "latent_channels": 2, "block_out_channels": [8, 8]}
    network = AutoencoderKL(**channels, **blocks, norm_num_groups=2)
    hfgen.state_scale(network, hfgen.LatentScale((1.0, -2.0), (2.0, 4.0)))
    return network


def test_latents_are_drawn_from_the_posterior_that_the_autoencoder_states():
    torch.manual_seed(0)
    network, inner = autoencoder(), Items()
    with torch.no_grad():
        posterior = network.encode(torch.zeros(1, 1, 8, 8)).latent_dist
    labels = torch.arange(4000)
    hfgen.Encoded(inner, network).loss("denoiser", {}, {"x": torch.zeros(4000, 1, 8, 8), "labels": labels}, Step(0))
    scale, shift = torch.tensor([2.0, 4.0]).view(2, 1, 1), torch.tensor([1.0, -2.0]).view(2, 1, 1)
    drawn = inner.seen.x * scale + shift
    deviation = posterior.std[0]
    assert ((drawn.mean(0) - posterior.mean[0]).abs() < 6 * deviation / 4000**0.5).all()
    assert (drawn.std(0) / deviation - 1).abs().max() < 0.08
    assert torch.equal(inner.seen.labels, labels)


def test_the_autoencoder_goes_to_the_device_of_the_images(monkeypatch):
    network, places = autoencoder(), []
    monkeypatch.setattr(type(network), "to", lambda self, device: places.append((self, device)) or self)
    images = torch.zeros(3, 1, 8, 8)
    hfgen.Encoded(Items(), network, variational=False).loss("denoiser", {}, {"x": images}, Step(0))
    assert places == [(network, images.device)]


def test_an_autoencoder_without_a_scale_is_refused():
    with pytest.raises(ValueError, match="states no statistics of its latents"):
        hfgen.Encoded(Items(), nn.Identity())

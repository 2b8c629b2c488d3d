"""Laws of the autoencoders: diffusers' calls, images of any size, codes that follow the encoder, exact saving."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from torch import nn
from torch.testing import assert_close

from hfgen.models.autoencoder import ConvAutoencoderModel, MLPAutoencoderModel
from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior, latent_shape
from hfgen.models.build_autoencoder import SIZES, build_autoencoder
from hfgen.models.conv_layers import ResidualBlock
from hfgen.models.priors import GaussianMixturePriorModel, VampPriorModel
from hfgen.models.vq import Codebook, VQAutoencoderModel
from tests.helpers.processes import run_in_two_processes

SMALL = {
    "mlp": lambda size, c, out: MLPAutoencoderModel(size, c, out, (16, 8), 5),
    "conv": lambda size, c, out: ConvAutoencoderModel(size, c, out, (8, 16), 1, 5),
    "vq": lambda size, c, out: VQAutoencoderModel(size, c, out, (8, 16), 1, 5, 12),
    "kl": lambda size, c, out: AutoencoderKL(
        c, out, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), norm_num_groups=4, sample_size=size
    ),
}
VECTORS, GAUSSIAN = ("mlp", "conv"), ("mlp", "conv", "kl")


def small(architecture, size=8, channels=2, out_channels=3):
    torch.manual_seed(0)
    network = SMALL[architecture](size, channels, out_channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # no parameter stays zero
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def images(batch=3, channels=2, height=8, width=None, seed=2):
    return torch.randn(batch, channels, height, width or height, generator=torch.Generator().manual_seed(seed))


# --- shapes and calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (28, 28), (7, 16)], ids=str)
@pytest.mark.parametrize("architecture", ["mlp", "conv", "vq"])
def test_any_size_and_number_of_channels_fits(architecture, size):
    for channels, out_channels in ((1, 4), (5, 5)):
        network = small(architecture, size, channels, out_channels).eval()
        x = images(2, channels, *size)
        assert network(x).sample.shape == (2, out_channels, *size)
        if architecture in VECTORS:
            assert network.encode(x).latent_dist.mean.shape == (2, 5, 1, 1)
        else:
            assert network.encode(x).latents.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))


@pytest.mark.parametrize("architecture", VECTORS)
def test_calls_and_what_they_return_are_those_of_autoencoder_kl(architecture):
    ours, theirs, x = small(architecture), small("kl"), images()
    for network in (ours, theirs):
        q, z = network.encode(x).latent_dist, network.encode(x, return_dict=False)[0].mean
        assert torch.equal(q.mode(), z) and q.mean.shape == q.logvar.shape
        assert torch.equal(network(x).sample, network.decode(z, return_dict=False)[0])
        assert torch.equal(network(x, return_dict=False)[0], network.decode(z).sample)
        draws = [network(x, True, generator=torch.Generator().manual_seed(0)).sample for _ in range(2)]
        noisy = network.decode(q.sample(torch.Generator().manual_seed(0))).sample
        assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], noisy)
    outputs = [(network.encode(x), network.decode(network.encode(x).latent_dist.mean)) for network in (ours, theirs)]
    assert [type(part) for part in outputs[0]] == [type(part) for part in outputs[1]]


@pytest.mark.parametrize("architecture", VECTORS)
def test_images_of_another_shape_are_refused(architecture):
    with pytest.raises(ValueError, match=r"shape \(3, 1, 8, 8\); this network takes \(B, 2, 8, 8\)"):
        small(architecture).encode(images(channels=1))


def test_an_mlp_is_its_layers():
    network, x = small("mlp").double(), images().double()
    one, two, three = (layer for layer in network.encoder if isinstance(layer, nn.Linear))
    expected = three(two(one(x.reshape(3, -1)).relu()).relu())
    q = network.encode(x).latent_dist
    assert_close(torch.cat([q.mean, q.logvar], 1).flatten(1), expected)
    assert [layer.out_features for layer in network.decoder if isinstance(layer, nn.Linear)] == [8, 16, 3 * 64]
    with pytest.raises(ValueError, match="activation='mish'"):
        MLPAutoencoderModel(activation="mish")


def test_a_residual_block_is_the_identity_at_the_start():
    x = images(channels=4)
    assert torch.equal(ResidualBlock(4)(x), x)


@pytest.mark.parametrize("architecture", GAUSSIAN)
def test_everything_learns(architecture):
    """DistributedDataParallel waits for the gradient of every parameter."""
    network = AutoencoderWithPrior(small(architecture), VampPriorModel(8, 2, 4))
    coded = network(images(), torch.randn(3, 2, *network.latent_shape))
    (coded.decoded.square().mean() + coded.log_prior.mean() + coded.log_variance.mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


# --- encoder, decoder and prior in one --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", GAUSSIAN)
def test_latents_are_mean_plus_noise_and_each_is_decoded_by_itself(architecture):
    autoencoder = small(architecture).double()
    prior = GaussianMixturePriorModel(latent_shape(autoencoder)).double()
    network, x = AutoencoderWithPrior(autoencoder, prior), images().double()
    noise = torch.randn(3, 4, *network.latent_shape, dtype=torch.float64)
    coded, q = network(x, noise), autoencoder.encode(x).latent_dist
    assert_close(coded.latents, q.mean.unsqueeze(1) + (q.logvar / 2).exp().unsqueeze(1) * noise)
    assert torch.equal(coded.mean, q.mean) and torch.equal(coded.log_variance, q.logvar)
    for k in range(4):
        assert_close(coded.decoded[:, k], autoencoder.decode(coded.latents[:, k]).sample)
        assert_close(coded.log_prior[:, k], prior.log_prob(coded.latents[:, k]))
    other = torch.randn(2, *network.latent_shape, dtype=torch.float64)
    assert coded.other_decoded is None
    assert_close(network(x, noise, other).other_decoded, autoencoder.decode(other).sample)
    plain = AutoencoderWithPrior(autoencoder)(x)
    assert plain.log_prior is None and torch.equal(plain.latents, q.mean.unsqueeze(1))
    assert_close(plain.decoded.squeeze(1), autoencoder.decode(q.mean).sample)


# --- codes ------------------------------------------------------------------------------------------------------------


def vectors(count, dimension=3, seed=0):
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_nearest_code_is_the_nearest():
    book, z = Codebook(7, 3, 0.9, 0.1).double(), vectors(50)
    assert torch.equal(book.nearest(z), (z.unsqueeze(1) - book.codes).square().sum(2).argmin(1))


@pytest.mark.parametrize(("count", "decay", "revival"), [(40, 0.9, 0.0), (6, 0.8, 0.6), (40, 0.5, 0.5)])
def test_the_codebook_is_its_moving_average_in_numpy(count, decay, revival):
    torch.manual_seed(0)
    book = Codebook(count, 3, decay, revival).double()
    usage, sums, codes = np.zeros(count), np.zeros((count, 3)), book.codes.numpy().copy()
    revived = 0
    for step in range(12):
        z = vectors(30, seed=step)
        distance, nearest = np.square(z.numpy()[:, None] - codes).sum(2), book.nearest(z).numpy()
        assert_close(distance[np.arange(30), nearest], distance.min(1), rtol=0, atol=1e-12)  # two codes may be equal
        book.update(z, torch.from_numpy(nearest))
        for code in range(count):
            mine = z.numpy()[nearest == code]
            usage[code] = decay * usage[code] + (1 - decay) * len(mine)
            sums[code] = decay * sums[code] + (1 - decay) * mine.sum(0)
        mean = usage.mean()
        for code in np.flatnonzero(usage <= revival * mean):
            start = ((code + count * step) * 2654435769 % 2**32 * 30) >> 32
            usage[code], sums[code] = mean, mean * z.numpy()[start]
            revived += step > 0
        codes = sums / usage[:, None]
        assert_close(book.codes.numpy(), codes, rtol=1e-12, atol=1e-12)
        assert_close(book.usage.numpy(), usage, rtol=1e-12, atol=1e-12)
    assert book.updates == 12 and (revived > 0) == (revival > 0)


def test_every_code_of_a_new_codebook_becomes_a_vector_of_the_first_batch_or_a_mean_of_some():
    book, z = Codebook(20, 3, 0.99, 0.1).double(), vectors(200)
    book.codes += 100  # far from all vectors
    book.update(z, book.nearest(z))
    distance = torch.cdist(book.codes, z).min(1).values
    assert (distance < 1e-6).sum() >= 19  # all but the one that was nearest
    assert len(book.codes.unique(dim=0)) == 20


def test_dead_codes_come_back_the_same_way_each_time():
    books = []
    for _ in range(2):
        torch.manual_seed(0)
        book = Codebook(8, 3, 0.5, 0.3).double()
        for step in range(10):
            torch.rand(3)  # the global generator has no effect
            z = vectors(40, seed=step) + (100 if step > 5 else 0)  # codes in use are not used any more
            book.update(z, book.nearest(z))
        books.append(book)
    assert torch.equal(books[0].codes, books[1].codes)
    assert (books[0].codes.mean(1) > 50).all()


def test_quantisation_passes_gradients_straight_through():
    network = small("vq").double()
    h = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    coded, slope = network.quantize(h), torch.randn(2, 5, 2, 2, dtype=torch.float64)
    (coded.quantized * slope).sum().backward()
    assert torch.equal(h.grad, slope)
    codes = network.codebook.codes[coded.indices].permute(0, 3, 1, 2)
    assert_close(coded.quantized, codes)
    h.grad = None
    coded.commit_loss.backward()
    assert_close(coded.commit_loss, (h - codes).square().mean())
    assert_close(h.grad, 2 * (h - codes).detach() / h.numel())


def test_perplexity_counts_the_codes_in_use():
    network = small("vq").double()

    def of(indices):
        h = network.codebook.codes[torch.tensor(indices)].view(1, -1, 1, 5).permute(0, 3, 1, 2)
        return network.quantize(h).perplexity.item()

    assert of([3] * 8) == pytest.approx(1)
    assert of([0, 1, 2, 3] * 2) == pytest.approx(4)
    share = np.array([0.5, 0.25, 0.25])
    assert of([7, 7, 1, 2]) == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_forward_is_encode_quantise_decode_and_moves_the_codebook_only_in_training():
    network, x = small("vq").eval(), images()
    before = network.codebook.codes.clone()
    output = network(x)
    assert torch.equal(network.codebook.codes, before) and network.codebook.updates == 0
    assert torch.equal(output.latents, network.encode(x).latents)
    assert torch.equal(output.sample, network.decode(output.latents).sample)
    assert torch.equal(output.indices, network.quantize(output.latents).indices)
    assert_close(output.sample, network.decode_indices(output.indices))
    assert_close(output.sample, network.decode(output.quantized, force_not_quantize=True).sample)
    assert_close(network.decode(output.quantized).sample, output.sample)  # codes are their own codes
    again = network.train()(x)
    assert torch.equal(again.sample, output.sample) and network.codebook.updates == 1
    assert not torch.equal(network.codebook.codes, before)
    assert torch.equal(network.encode(x, return_dict=False)[0], output.latents)
    assert len(network.eval()(x, return_dict=False)) == 6


def test_codes_are_found_in_float32_under_autocast():
    network, h = small("vq").eval(), torch.randn(4, 5, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.quantize(h).indices, network.quantize(h).indices)
        assert network(images()).sample.isfinite().all()
    assert_close(network.quantize(h).indices, torch.cdist(h.permute(0, 2, 3, 1), network.codebook.codes).argmin(3))


def test_impossible_codebooks_are_refused():
    for name, value in (("ema_decay", 1.0), ("revival", 1.0), ("num_vq_embeddings", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            VQAutoencoderModel(**{name: value})


TWO = """
import sys, torch
torch.distributed.init_process_group("gloo")
from hfgen.models.vq import Codebook
from tests.models.test_autoencoders import vectors
rank = torch.distributed.get_rank()
torch.manual_seed(0)
book = Codebook(10, 3, 0.7, 0.4).double()
for step in range(8):
    z = vectors(24, seed=step)[12 * rank : 12 * rank + 12]
    book.update(z, book.nearest(z))
torch.save(book.state_dict(), f"{sys.argv[1]}/{rank}.pt")
torch.distributed.barrier()  # no process closes its connections while the other still uses them
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_the_codebook_of_one(tmp_path):
    run_in_two_processes(TWO, tmp_path)
    torch.manual_seed(0)
    alone = Codebook(10, 3, 0.7, 0.4).double()
    for step in range(8):
        z = vectors(24, seed=step)
        alone.update(z, alone.nearest(z))
    for rank in (0, 1):
        assert_close(torch.load(tmp_path / f"{rank}.pt"), alone.state_dict(), rtol=1e-12, atol=1e-12)


# --- saved, and built -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mlp", "conv", "vq"])
def test_a_saved_network_is_the_same_bit_for_bit(tmp_path, architecture):
    network, x = small(architecture, (5, 7)), images(height=5, width=7)
    network.train()(x)
    network.eval().save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path)
    assert again.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())
    assert torch.equal(again(x).sample, network(x).sample)


def test_presets_are_the_sizes_of_the_texts():
    network = build_autoencoder("mlp", "s", 28, 1, 1)
    widths = (784, 400, 40), (20, 400, 784)
    assert sum(p.numel() for p in network.parameters()) == sum(
        a * b + b for chain in widths for a, b in pairwise(chain)
    )
    assert build_autoencoder("mlp", "m", 28, 1, 1).config.hidden_dims == (512, 256)
    assert build_autoencoder("mlp", "m", 28, 1, 1, 7).config.latent_channels == 7


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture", ["mlp", "conv", "kl", "vq", "vqmodel"])
def test_what_is_built_takes_the_images(architecture, size):
    for resolution, channels in ((28, 1), ((16, 24), 3)):
        with torch.device("meta"):
            network = build_autoencoder(architecture, size, resolution, channels, 2 * channels).eval()
            height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
            x = torch.zeros(2, channels, height, width)
            if not architecture.startswith("vq"):  # choosing codes needs values
                assert network(x).sample.shape == (2, 2 * channels, height, width)
        assert network.config.sample_size == resolution and network.config.in_channels == channels


def test_diffusers_networks_are_used_as_they_are():
    x = images(2, 1, 8)
    kl, vq = (build_autoencoder(name, "s", 8, 1, 2, 3) for name in ("kl", "vqmodel"))
    assert type(kl) is AutoencoderKL and kl.encode(x).latent_dist.mean.shape == (2, 3, 2, 2)
    assert type(vq) is VQModel and vq(x).sample.shape == (2, 2, 8, 8)
    assert latent_shape(kl) == (3, 2, 2)


def test_what_can_not_be_built_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'rnn' is not known\. Choose one of: mlp, conv, kl, vq, vqmodel"):
        build_autoencoder("rnn", "s", 28, 1, 1)
    with pytest.raises(ValueError, match=r"size='xl' is not known\. Choose one of: s, m, l"):
        build_autoencoder("mlp", "xl", 28, 1, 1)
    with pytest.raises(ValueError, match=r"can't halve 30 x 28 images twice\. It can for 32 x 28"):
        build_autoencoder("kl", "s", (30, 28), 1, 1)
    with pytest.raises(ValueError, match="latent_channels=0"):
        build_autoencoder("mlp", "s", 28, 1, 1, 0)

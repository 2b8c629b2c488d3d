"""The constraints of a training hold for its averages and its saved networks: spectral norms and clipped weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.testing import assert_close

from hfgen import HFGenPipeline
from hfgen.distributions.likelihoods import build_likelihood
from hfgen.models.vq import Codebook
from hfgen.objectives.autoencoder_gan import AutoencoderGAN
from hfgen.objectives.autoencoding import VectorQuantized
from hfgen.objectives.penalties import WeightClipping
from hfgen.trainer.ema import EMA
from hfgen.training import train_gan
from tests.helpers.doors import run_door

FEW = ["--max_train_samples", "64", "--train_batch_size", "16", "--max_train_steps", "30", "--report_to", "none"]
FEW += ["--health_steps", "0", "--sample_steps", "0", "--checkpointing_steps", "0", "--eval_batch_size", "4"]
FEW += ["--learning_rate", "0.01", "--lr_scheduler", "constant", "--lr_warmup_steps", "0"]


def norms(network):
    """The largest singular value of each weight as it is used, by NumPy."""
    layers = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear | nn.Embedding)]
    matrices = [layer.weight.detach().flatten(1).double().numpy() for layer in layers]
    return [np.linalg.svd(matrix, compute_uv=False)[0] for matrix in matrices]


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, spectral_norm], ids=["parametrization", "hook"])
def test_the_average_of_a_spectrally_normalised_network_has_norm_one(norm):
    torch.manual_seed(0)
    network = nn.Sequential(norm(nn.Conv2d(2, 6, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(6 * 16, 1)))
    ema, generator = EMA(network, 0.9), torch.Generator().manual_seed(1)
    weights = [p for p in network.parameters() if p.ndim > 1]
    for _ in range(20):
        network(torch.randn(4, 2, 6, 6, generator=generator))  # power iteration
        with torch.no_grad():
            for p in weights:
                p.add_(torch.randn(p.shape, generator=generator))
        ema.update(network)
    ema.constrain()
    ema.module.eval()(torch.zeros(1, 2, 6, 6))  # a hook computes its weight in the forward pass
    assert norms(ema.module) == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("first", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_spectral_norm_of_another_parametrization_is_one(first):
    """The norm is of what the parametrization before it returns, and that may keep two tensors."""
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(first(nn.Linear(6, 4)))
    ema = EMA(layer, 0.9)
    for _ in range(5):
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(torch.randn(p.shape))
        ema.update(layer)
    ema.constrain()
    assert norms(ema.module) == pytest.approx([1.0], abs=1e-5)


@pytest.mark.parametrize("model", ["dcgan", "resnet", "mlp"])
def test_a_saved_discriminator_has_the_spectral_norms_of_the_training(tmp_path, capsys, model):
    words = ["--model", model, "--model_size", "xs", "--loss", "hinge", "--spectral_norm", "--output_dir", tmp_path]
    status, _, message = run_door(train_gan.main, capsys, *FEW, *words)
    assert status == 0, message
    discriminator = HFGenPipeline.from_pretrained(tmp_path, discriminator=True).discriminator
    measured = norms(discriminator)
    assert len(measured) >= 3 and max(measured) <= 1 + 1e-4 and min(measured) > 0.999


def test_a_saved_critic_has_the_clipped_weights_of_the_training(tmp_path, capsys):
    words = ["--model", "mlp", "--model_size", "xs", "--loss", "wasserstein", "--weight_clip", "0.01"]
    status, _, message = run_door(train_gan.main, capsys, *FEW, *words, "--output_dir", tmp_path)
    assert status == 0, message
    discriminator = HFGenPipeline.from_pretrained(tmp_path, discriminator=True).discriminator
    largest = max(p.abs().max().item() for p in discriminator.parameters())
    assert 0.009 < largest <= 0.01


# --- what has an average, and what has none ---------------------------------------------------------------------------


class Buffers(nn.Module):
    """A layer with a mask, a table of phases, a running maximum and complex weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("causal", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("phases", torch.polar(torch.ones(4), torch.linspace(0, 3, 4)))
        self.register_buffer("largest", torch.tensor(-torch.inf))
        self.register_buffer("seen", torch.tensor(False))
        self.spectrum = nn.Parameter(torch.ones(2, dtype=torch.complex64))


def test_masks_are_copied_and_complex_weights_averaged():
    network = Buffers()
    ema = EMA(network, 0.5)
    for number in (1.0, 2.0):
        network.largest.fill_(number), network.seen.fill_(True)
        network.spectrum.data.fill_(1 + number * 1j)
        ema.update(network)
    averaged = ema.module
    assert torch.equal(averaged.causal, torch.full((3, 3), -torch.inf).triu(1))
    assert torch.equal(averaged.phases, network.phases)
    assert averaged.largest == 2 and averaged.seen
    first = 1 - 2**-0.75  # the decay of the first update
    assert_close(averaged.spectrum, torch.full((2,), complex(1, 0.5 * (1 - first) + 0.5 * 2)))


@pytest.mark.parametrize("kind", ["cayley", "householder", "matrix_exp"])
@pytest.mark.parametrize("trivial", [True, False])
def test_the_average_of_an_orthogonal_layer_is_orthogonal(kind, trivial):
    torch.manual_seed(0)
    layer = parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map=kind, use_trivialization=trivial)
    ema = EMA(layer, 0.9)
    for _ in range(5):
        with torch.no_grad():
            for p in (p for p in layer.parameters() if p.ndim == 2):
                p.add_(torch.randn(p.shape).tril(-1))  # what has a gradient in all three maps
        ema.update(layer)
    assert_close(ema.module.weight @ ema.module.weight.T, torch.eye(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm])
def test_the_rows_of_an_averaged_weight_norm_have_the_averaged_lengths(norm):
    torch.manual_seed(0)
    layer = norm(nn.Linear(5, 3))
    layer(torch.ones(1, 5)).sum().backward()  # a network that was used before, as in a notebook
    ema = EMA(layer, 0.9)
    for p in layer.parameters():
        p.data.add_(torch.randn(p.shape))
    ema.update(layer)
    ema.module(torch.ones(1, 5))
    lengths = next(p for name, p in ema.module.named_parameters() if name.endswith(("weight_g", "original0")))
    assert_close(ema.module.weight.norm(dim=1, keepdim=True), lengths.abs())


def test_a_codebook_of_averages_is_that_of_its_statistics():
    """A code that is reset moves far: the average of codes lies between two meanings, that of statistics does not."""
    torch.manual_seed(0)
    book = Codebook(8, 2, decay=0.9, revival=0.05)
    ema = EMA(book, 0.9)
    for _ in range(30):
        z = torch.randn(64, 2)
        book.update(z, book.nearest(z))
        ema.update(book)
    before = book.codes.clone()
    ema.constrain()
    averaged = ema.module
    expected = averaged.sums.double().numpy() / averaged.usage.double().numpy()[:, None]
    np.testing.assert_allclose(averaged.codes.numpy(), expected, rtol=1e-5)
    assert torch.equal(book.codes, before) and not torch.equal(averaged.codes, before)
    fresh = EMA(Codebook(8, 2, 0.9, 0.05))  # without statistics the codes stay
    codes = fresh.module.codes.clone()
    fresh.constrain()
    assert torch.equal(fresh.module.codes, codes)


# --- the saved network of a training without averages, and of autoencoders with a discriminator -----------------------


def test_a_discriminator_without_averages_is_saved_with_its_spectral_norms(tmp_path, capsys):
    words = ["--model", "mlp", "--model_size", "xs", "--loss", "hinge", "--spectral_norm", "--no_use_ema"]
    status, _, message = run_door(train_gan.main, capsys, *FEW, *words, "--output_dir", tmp_path)
    assert status == 0, message
    discriminator = HFGenPipeline.from_pretrained(tmp_path, discriminator=True).discriminator
    assert norms(discriminator) == pytest.approx([1.0] * len(norms(discriminator)), abs=1e-4)


def test_an_autoencoder_gan_clips_its_critic_and_hands_constraints_to_its_inner_objective():
    class Positive(VectorQuantized):
        def project(self, player, network):
            for p in network.parameters():
                p.abs_()

    objective = AutoencoderGAN(Positive(build_likelihood("gaussian")), penalties=[WeightClipping(0.02)])
    networks = {name: nn.Linear(9, 9) for name in objective.players}
    with torch.no_grad():
        for name, network in networks.items():
            objective.project(name, network)
    assert all((p >= 0).all() for p in networks["autoencoder"].parameters())
    assert max(p.abs().max().item() for p in networks["discriminator"].parameters()) == pytest.approx(0.02)
    assert not objective.penalties

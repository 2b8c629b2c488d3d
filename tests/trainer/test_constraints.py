"""The constraints of a training hold for its averages and its saved networks: spectral norms and clipped weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from hfgen import HFGenPipeline
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

"""Laws of the orthogonality of a generator's matrices, against NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

import hfgen
from hfgen.objectives.base import Step
from hfgen.objectives.regularizers import GeneratorTurn
from tests.helpers.toys import run


class Several(nn.Module):
    """Layers of all kinds; two of them share a weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm = nn.Embedding(5, 7), nn.BatchNorm2d(3)
        self.wide, self.tall = nn.Linear(6, 4), nn.Linear(3, 9, bias=False)
        self.kernel, self.up = nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(4, 2, 3)
        self.again = nn.Linear(6, 4)
        self.again.weight = self.wide.weight


def value_of(network):
    fake = torch.zeros(2, 1)
    return hfgen.Orthogonal().value(GeneratorTurn(None, fake, Step(0), network))


def test_it_is_the_sum_of_squared_products_of_different_rows():
    network = Several()
    up = network.up.weight.detach().transpose(0, 1)  # a row for each output channel
    expected = 0.0
    for weight in (network.wide.weight, network.tall.weight, network.kernel.weight, up):
        rows = weight.detach().double().reshape(len(weight), -1).numpy()
        for i, a in enumerate(rows):
            expected += sum(float(np.dot(a, b)) ** 2 for j, b in enumerate(rows) if i != j)
    assert float(value_of(network).detach()) == pytest.approx(expected, rel=1e-5)


def test_orthogonal_rows_of_any_length_cost_nothing():
    network = nn.Linear(8, 5)
    nn.init.orthogonal_(network.weight)
    with torch.no_grad():
        network.weight *= torch.tensor([0.1, 3.0, 1.0, 2.0, 7.0])[:, None]
    assert float(value_of(network).detach()) == pytest.approx(0, abs=1e-2)  # of 2,500: 7^4 and others
    with torch.no_grad():
        network.weight[0] = network.weight[1]
    assert float(value_of(network).detach()) == pytest.approx(2 * 9.0**2, rel=1e-4)  # both orders of the pair


def test_autocast_does_not_touch_it():
    network = Several()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_of(network)
    assert torch.equal(inside, value_of(network))


def test_training_makes_rows_orthogonal(tmp_path):
    """The same run with and without the term; the weight is far above BigGAN's, so that 20 steps show it."""
    values = []
    for name, terms in (("without", []), ("with", [hfgen.Orthogonal(weight=0.1)])):
        torch.manual_seed(1)
        generator, discriminator = hfgen.build_gan("mlp", "xs", 8, 1, latent_channels=6)
        for parameter in generator.parameters():
            nn.init.normal_(parameter, std=0.1)
        objective = hfgen.Adversarial("non_saturating", 6, regularizers=terms)
        networks = {"generator": generator, "discriminator": discriminator}
        options = {"max_train_steps": 20, "learning_rate": 1e-2, "use_ema": False}
        run(tmp_path / name, "", objective, networks, **options)
        values.append(float(value_of(generator).detach()))
    assert values[1] < 0.5 * values[0]

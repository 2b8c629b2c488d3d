"""Maximum likelihood: closed forms, dequantisation that fills bins, and classes."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hfgen
from hfgen.distributions.densities import dequantised, flow_log_prob, level_bits, standard_normal_log_prob
from hfgen.objectives.base import Step


class Scaling(nn.Module):
    """z = x / s, the flow of N(0, s^2)."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x, class_labels=None):
        self.seen = x, class_labels
        log_det = torch.full((len(x),), -x[0].numel() * math.log(self.scale))
        return SimpleNamespace(latents=x / self.scale, log_det=log_det)


def test_log_probabilities_are_those_of_torch():
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    for scale in (1.0, 0.3):
        expected = torch.distributions.Normal(0.0, scale).log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(flow_log_prob(Scaling(scale)(x)), expected)
    assert standard_normal_log_prob(x.bfloat16()).dtype == torch.float32


def test_the_loss_is_minus_the_mean_log_density_per_dimension():
    x = torch.randn(6, 1, 3, 3)
    loss = hfgen.MaximumLikelihood("none").loss("flow", {"flow": Scaling(2.0)}, {"x": x}, Step(0))
    expected = -torch.distributions.Normal(0.0, 2.0).log_prob(x).mean()
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.logs["log_prob"], -9 * expected)
    assert "bits_per_dim" not in loss.logs


def test_a_uniform_density_has_eight_bits():
    """All 256 bins together are 256 * 2 / 255 wide."""
    log_prob = torch.full((3,), -10 * math.log(512 / 255), dtype=torch.float64)
    torch.testing.assert_close(level_bits(log_prob, 10), torch.full((3,), 8.0, dtype=torch.float64))
    objective = hfgen.MaximumLikelihood(log_prob=lambda output: output)
    density = lambda x: torch.full((len(x),), -x[0].numel() * math.log(512 / 255))  # noqa: E731
    logs = objective.loss("flow", {"flow": density}, {"x": torch.zeros(2, 1, 4, 4)}, Step(0)).logs
    torch.testing.assert_close(logs["bits_per_dim"], torch.tensor(8.0))


def test_uniform_noise_fills_the_bin_of_each_level():
    levels = torch.arange(256.0) / 127.5 - 1
    low, high = dequantised(levels, torch.zeros(256)), dequantised(levels, torch.ones(256))
    torch.testing.assert_close(low[1:], high[:-1])
    torch.testing.assert_close(high - low, torch.full((256,), 2 / 255))
    objective, x = hfgen.MaximumLikelihood(), torch.zeros(4000, 1, 1, 1)
    y = objective.with_noise(x, Step(3))
    assert -1 / 255 <= float(y.min()) < -0.98 / 255 and 0.98 / 255 < float(y.max()) < 1 / 255
    assert torch.equal(y, objective.with_noise(x, Step(3))) and not torch.equal(y, objective.with_noise(x, Step(4)))


def test_gaussian_noise_has_its_level():
    objective = hfgen.MaximumLikelihood("gaussian", 0.2)
    y = objective.with_noise(torch.zeros(10_000, 1, 1, 1), Step(0))
    assert abs(float(y.std()) - 0.2) < 0.01
    logs = objective.loss("flow", {"flow": Scaling()}, {"x": torch.zeros(2, 1, 1, 1)}, Step(0)).logs
    assert "bits_per_dim" not in logs


def test_classes_are_given_and_dropped():
    flow, batch = Scaling(), {"x": torch.zeros(400, 1, 1, 1), "labels": torch.arange(400) % 3}
    hfgen.MaximumLikelihood(num_classes=3).loss("flow", {"flow": flow}, batch, Step(0))
    assert torch.equal(flow.seen[1], batch["labels"])
    hfgen.MaximumLikelihood(num_classes=3, label_dropout=0.25).loss("flow", {"flow": flow}, batch, Step(0))
    assert 60 < int((flow.seen[1] == 3).sum()) < 140
    with pytest.raises(ValueError, match="no labels"):
        hfgen.MaximumLikelihood(num_classes=3).loss("flow", {"flow": flow}, {"x": batch["x"]}, Step(0))


def test_a_network_that_estimates_its_density_gets_noise_of_its_shape():
    class Estimating(Scaling):
        def forward(self, x, noise):
            self.noise = noise
            return super().forward(x)

    flow, batch = Estimating(), {"x": torch.zeros(500, 1, 2, 2)}
    objective = hfgen.MaximumLikelihood(noise_shape=(3, 5))
    objective.loss("flow", {"flow": flow}, batch, Step(0))
    assert flow.noise.shape == (500, 3, 5) and abs(float(flow.noise.std()) - 1) < 0.05
    first = flow.noise
    objective.loss("flow", {"flow": flow}, batch, Step(1))
    assert not torch.equal(first, flow.noise)
    objective.loss("flow", {"flow": flow}, {"x": torch.zeros(250, 1, 2, 2)}, Step(0, shard=1, shards=2))
    assert torch.equal(first[250:], flow.noise)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"dequantisation": "box"}, "dequantisation='box' is not known"),
        ({"noise_level": 0.0}, "noise_level"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"num_classes": 2, "condition": hfgen.ClassCondition(2)}, "Give one of the two"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        hfgen.MaximumLikelihood(**options)


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="density is one of real numbers"):
        hfgen.MaximumLikelihood().loss("flow", {"flow": Scaling()}, {"x": torch.zeros(1, 1, dtype=torch.long)}, Step(0))


def test_bits_of_data_that_are_no_levels_are_warned_of_once(caplog):
    for x, said in ((torch.tensor([[[[-1.0, 1.0]]]]), False), (torch.tensor([[[[-3.0, 1.0]]]]), True)):
        for number in range(3):
            hfgen.MaximumLikelihood().loss("flow", {"flow": Scaling()}, {"x": x}, Step(number))
        hfgen.MaximumLikelihood("none").loss("flow", {"flow": Scaling()}, {"x": x}, Step(0))
        assert len(caplog.records) == said
    assert "x has values from -3 to 1. dequantisation='uniform' adds the noise of 8-bit levels" in caplog.text


def test_the_default_noise_is_that_of_tarflow():
    assert hfgen.MaximumLikelihood("gaussian").noise_level == 0.05

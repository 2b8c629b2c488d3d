"""The loss with two clocks: against its formula in NumPy, independent times, ends that give and that hide."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.objectives.unidiffusion import UniDiffusion
from hfgen.paths import StraightPath, path_from_config
from hfgen.registry import PATHS


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Recorder(torch.nn.Module):
    """Predicts fixed tensors, and keeps what it is called with."""

    def __init__(self, sample, text):
        super().__init__()
        self.sample, self.text, self.calls = sample, text, []

    def forward(self, *inputs):
        self.calls.append(inputs)
        return SimpleNamespace(sample=self.sample, text=self.text)


def draw(count=8, step=None, path=None, texts=None, x=None, **options):
    """Return the loss, its network and what it was computed from, with a text for each item."""
    path = StraightPath() if path is None else path
    x = normal(count, 1, 2, 2) if x is None else x
    texts = normal(count, 2, 3, seed=1) if texts is None else texts
    network = Recorder(normal(count, 1, 2, 2, seed=2).requires_grad_(), normal(count, 2, 3, seed=3).requires_grad_())
    objective = UniDiffusion(Denoising(path), texts, **options)
    batch = {"x": x, "captions": torch.arange(count)}
    return objective.loss("denoiser", {"denoiser": network}, batch, step or Step(3)), network, x, texts


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_is_that_of_both_kinds(weight):
    loss, network, x, z = draw(text_weight=weight, end_share=0.0)
    x_t, t, z_s, s = (value.detach().numpy() for value in network.calls[0])
    expected = {}
    for name, clean, noisy, time, output in (("image", x, x_t, t, network.sample), ("text", z, z_s, s, network.text)):
        time = (time.astype(float) / 1000).reshape(-1, *[1] * (clean.ndim - 1))
        noise = (noisy - (1 - time) * clean.numpy()) / time
        error = (output.detach().numpy() - (noise - clean.numpy())) ** 2
        expected[name] = error.reshape(len(clean), -1).mean()
        assert abs(noise.mean()) < 0.6 and 0.6 < noise.std() < 1.4
        assert float(loss.logs[name]) == pytest.approx(expected[name], rel=1e-3)  # time steps are float32
    assert float(loss.value.detach()) == pytest.approx(expected["image"] + weight * expected["text"], rel=1e-3)


def times(count=2000, **options):
    network = draw(count, **options)[1]
    return [network.calls[0][place].double().numpy() / 1000 for place in (1, 3)]


def test_both_times_are_independent():
    t, s = times(end_share=0.0)
    assert abs(np.corrcoef(t, s)[0, 1]) < 0.1
    for each in (t, s):
        assert np.abs(np.sort(each) - np.linspace(0, 1, len(each))).max() < 0.03  # uniform


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_of_the_items_has_a_time_at_an_end(share):
    t, s = times(end_share=share)
    for each in (t, s):
        assert np.mean(each <= 0.002) == pytest.approx(share / 4, abs=0.03)
        assert np.mean(each == 1) == pytest.approx(share / 4, abs=0.03)
    assert np.mean((t <= 0.002) & (s <= 0.002)) < 0.01  # at one end alone


def test_what_is_given_has_no_loss_and_what_is_hidden_has_one():
    loss, network, _, _ = draw(200, end_share=1.0)
    loss.value.backward()
    for output, time in ((network.sample, network.calls[0][1]), (network.text, network.calls[0][3])):
        moved = output.grad.flatten(1).abs().amax(1) > 0
        assert torch.equal(moved, time > 1.5)
        assert (time == 1000).any() and (time < 1.5).any()


def test_at_its_end_a_kind_tells_nothing_of_the_data():
    """On the straight path the input is the noise itself: the same bits whatever the data are."""
    first, second = (draw(100, texts=normal(100, 2, 3, seed=seed), end_share=1.0)[1].calls[0] for seed in (5, 6))
    hidden = first[3] == 1000
    assert hidden.any() and torch.equal(first[3], second[3])
    assert torch.equal(first[2][hidden], second[2][hidden])
    assert not torch.equal(first[2][~hidden], second[2][~hidden])


def test_draws_are_those_of_the_step_and_of_its_slices():
    first, again, later = (draw(step=step)[1].calls[0] for step in (Step(1), Step(1), Step(2)))
    for place in range(4):
        assert torch.equal(first[place], again[place]) and not torch.equal(first[place], later[place])
    x, z = normal(8, 1, 2, 2), normal(8, 2, 3, seed=1)
    parts = [
        draw(4, Step(1, shard=shard, shards=2), x=x[4 * shard : 4 * shard + 4], texts=z[4 * shard : 4 * shard + 4])[1]
        for shard in (0, 1)
    ]
    for place in range(4):
        assert torch.equal(first[place], torch.cat([part.calls[0][place] for part in parts]))


def test_every_path_has_finite_losses_at_the_ends():
    for name in ("vp", "cosine", "straight", "cosine_vp"):
        kind = "flow_prediction" if name == "straight" else "epsilon"
        path = path_from_config(PATHS[name])
        objective = UniDiffusion(Denoising(path, kind), normal(50, 2, 3).float(), end_share=1.0)
        network = Recorder(torch.zeros(50, 1, 2, 2), torch.zeros(50, 2, 3))
        batch = {"x": normal(50, 1, 2, 2).float(), "captions": torch.arange(50)}
        assert objective.loss("denoiser", {"denoiser": network}, batch, Step(0)).value.isfinite()


def test_refusals():
    texts = torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match=r'no "captions", only x'):
        UniDiffusion(Denoising(StraightPath()), texts).loss("denoiser", {}, {"x": texts}, Step(0))
    with pytest.raises(ValueError, match="denoising has a condition"):
        UniDiffusion(Denoising(StraightPath(), num_classes=3), texts)
    with pytest.raises(ValueError, match=r"texts have shape \(2, 3\)"):
        UniDiffusion(Denoising(StraightPath()), texts[0])
    with pytest.raises(ValueError, match=r"end_share=2.0 must be from 0 to 1"):
        UniDiffusion(Denoising(StraightPath()), texts, end_share=2.0)

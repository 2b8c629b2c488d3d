"""The loss of masked autoencoders: on hidden patches alone, against NumPy; its masks, by step and slice."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hfgen.models.masked_autoencoder import MaskedAutoencoderModel
from hfgen.objectives.base import Step
from hfgen.objectives.masked_autoencoding import MaskedAutoencoding


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fixed(torch.nn.Module):
    """Predicts one batch, and keeps the numbers of the visible patches."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction, self.visible = prediction, []

    def forward(self, x, visible):
        self.visible.append(visible)
        return SimpleNamespace(sample=self.prediction)


def loss_of(network, x, step=None, **options):
    objective = MaskedAutoencoding(2, **options)
    return objective.loss("autoencoder", {"autoencoder": network}, {"x": x}, step or Step(3, seed=1))


def by_loops(x, prediction, visible, normalise):
    """The loss, patch by patch."""
    errors, side, columns = [], 2, x.shape[3] // 2
    for image, made, numbers in zip(x.numpy(), prediction.numpy(), visible.tolist(), strict=True):
        for number in range(columns * (x.shape[2] // side)):
            if number in numbers:
                continue
            top, left = side * (number // columns), side * (number % columns)
            where = np.s_[:, top : top + side, left : left + side]
            target = image[where]
            if normalise:
                target = (target - target.mean()) / np.sqrt(target.var() + 1e-6)
            errors.append(np.mean((made[where] - target) ** 2))
    return np.mean(errors)


@pytest.mark.parametrize("ratio", [0.25, 0.75])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_the_mean_error_of_hidden_patches(ratio, normalise):
    x, network = normal(3, 2, 4, 8), Fixed(normal(3, 2, 4, 8, seed=1))
    loss = loss_of(network, x, mask_ratio=ratio, normalised_targets=normalise)
    expected = by_loops(x, network.prediction, network.visible[0], normalise)
    assert float(loss.value) == pytest.approx(expected, rel=1e-12)
    assert network.visible[0].shape == (3, round(8 * (1 - ratio)))


def test_predictions_of_visible_patches_have_no_gradient():
    prediction = normal(3, 1, 8, 8, seed=1).requires_grad_()
    network = Fixed(prediction)
    loss_of(network, normal(3, 1, 8, 8)).value.backward()
    patches = torch.nn.functional.pixel_unshuffle(prediction.grad, 2).flatten(2)  # (B, 4, N)
    for gradient, numbers in zip(patches, network.visible[0], strict=True):
        seen = torch.zeros(16, dtype=torch.bool).index_fill(0, numbers, True)
        assert (gradient[:, seen] == 0).all() and (gradient[:, ~seen] != 0).all()


def test_masks_are_those_of_the_step():
    network, x = Fixed(torch.zeros(4, 1, 8, 8).double()), normal(4, 1, 8, 8)
    for step in (Step(0), Step(0), Step(1), Step(0, seed=1)):
        loss_of(network, x, step)
    first, again, later, other = network.visible
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) > 1  # each image has its own


def test_slices_of_a_batch_have_the_masks_of_the_whole():
    whole, part = Fixed(torch.zeros(4, 1, 8, 8).double()), Fixed(torch.zeros(2, 1, 8, 8).double())
    x = normal(4, 1, 8, 8)
    loss = loss_of(whole, x, Step(2)).value
    parts = [loss_of(part, x[2 * shard : 2 * shard + 2], Step(2, shard=shard, shards=2)).value for shard in (0, 1)]
    assert torch.equal(whole.visible[0], torch.cat(part.visible))
    assert_close(sum(parts) / 2, loss)


def test_a_network_learns_what_neighbours_tell():
    """Images of one colour: a hidden patch is what any visible one is, and its best prediction is that."""
    torch.manual_seed(0)
    network = MaskedAutoencoderModel(8, 1, 2, 32, 2, 2, 16, 1, 2)
    optimizer, losses = torch.optim.AdamW(network.parameters(), 5e-3), []
    for number in range(150):
        x = (2 * torch.rand(32, 1, 1, 1, generator=torch.Generator().manual_seed(number)) - 1).expand(-1, -1, 8, 8)
        loss = loss_of(network, x, Step(number)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[:3]) > 0.2 and np.mean(losses[-20:]) < 0.01  # the variance of the colours is 1/3


def test_bfloat16_predictions_have_a_float32_loss():
    network = Fixed(torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16))
    assert loss_of(network, normal(2, 1, 8, 8).bfloat16()).value.dtype == torch.float32


def test_refusals():
    network = Fixed(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"mask_ratio=1.0 must be above 0 and below 1"):
        MaskedAutoencoding(2, mask_ratio=1.0)
    with pytest.raises(ValueError, match="patch_size=0 must be at least 1"):
        MaskedAutoencoding(0)
    with pytest.raises(ValueError, match="are not tiled by patch_size=3"):
        MaskedAutoencoding(3).loss("autoencoder", {"autoencoder": network}, {"x": torch.zeros(2, 1, 8, 8)}, Step(0))
    with pytest.raises(ValueError, match="normalised_targets needs patches of several numbers"):
        objective = MaskedAutoencoding(1, normalised_targets=True)
        objective.loss("autoencoder", {"autoencoder": network}, {"x": torch.zeros(2, 1, 8, 8)}, Step(0))

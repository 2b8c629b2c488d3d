"""Prior preservation: the loss of new items and of the model's own samples, with random numbers of their own."""

import dataclasses

import pytest
import torch
from torch import nn

import hfgen
from hfgen.families.preservation import PreservingBatches
from hfgen.objectives.base import Step
from hfgen.objectives.prior_preservation import PriorPreservation
from hfgen.paths import StraightPath


class Linear(nn.Module):
    """A denoiser that looks at each item alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x, timestep, class_labels=None):
        shift = 0 if class_labels is None else class_labels[:, None].float()
        return self.layer(x) + shift


def batch(seed, labels=None):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    return {"x": x} | ({} if labels is None else {"labels": torch.tensor(labels)})


def both(labels=None, others=None):
    return {**batch(0, labels), **{f"prior_{name}": value for name, value in batch(1, others).items()}}


def test_it_is_the_sum_with_its_weight_and_each_part_draws_for_itself():
    denoising = hfgen.Denoising(StraightPath(), num_classes=2)
    objective, networks, step = PriorPreservation(denoising, 0.25), {"denoiser": Linear()}, Step(3, 5)
    found = objective.loss("denoiser", networks, both([0, 1, 0, 1], [1, 1, 0, 0]), step)
    new = denoising.loss("denoiser", networks, batch(0, [0, 1, 0, 1]), step)
    old = denoising.loss("denoiser", networks, batch(1, [1, 1, 0, 0]), dataclasses.replace(step, turn=1))
    torch.testing.assert_close(found.value, new.value + 0.25 * old.value)
    assert found.logs["loss"] == new.logs["loss"] and found.logs["prior_loss"] == old.value
    same = denoising.loss("denoiser", networks, batch(1, [1, 1, 0, 0]), step)
    assert same.value != old.value


def test_it_stands_for_its_objective():
    denoising = hfgen.Denoising(StraightPath(), num_classes=2, label_dropout=0.3)
    objective = PriorPreservation(denoising)
    assert objective.players == ("denoiser",) and objective.call == ("timestep",) and objective.label_dropout == 0.3
    assert objective.condition is denoising.condition and objective.turns(0) == ("denoiser",)
    learned = hfgen.LearnedRange(hfgen.Denoising(hfgen.DDPMScheduler().path, "epsilon", num_classes=2))
    assert PriorPreservation(learned).condition is learned.denoising.condition


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_above_0(weight):
    with pytest.raises(ValueError, match="prior_weight"):
        PriorPreservation(hfgen.Denoising(StraightPath()), weight)


def test_a_batch_without_samples_is_refused():
    with pytest.raises(ValueError, match="The batch has no prior_x"):
        PriorPreservation(hfgen.Denoising(StraightPath())).loss("denoiser", {"denoiser": Linear()}, batch(0), Step(0))


def test_batches_go_on_together_from_anywhere():
    class Numbers:
        batch_size, unit, fingerprint = 1, "items", "x"

        def __init__(self, start, *names):
            self.start, self.names = start, names

        def iterate(self, start):
            number = start
            while True:
                yield {name: torch.tensor([self.start + number]) for name in self.names}
                number += 1

    mixed = PreservingBatches(Numbers(0, "x"), Numbers(100, "x", "noise", "labels"))
    assert (mixed.batch_size, mixed.unit, mixed.fingerprint) == (1, "items", "x")
    stream = mixed.iterate(7)
    assert [{name: int(value) for name, value in next(stream).items()} for _ in range(2)] == [
        {"x": 7, "prior_x": 107},
        {"x": 8, "prior_x": 108},
    ]

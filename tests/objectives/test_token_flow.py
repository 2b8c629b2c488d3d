"""Laws of the flow of single tokens: its loss, its times, its orders, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hfgen.objectives.base import Step
from hfgen.objectives.token_flow import TokenFlow

TOKENS = 6


class Recorder(nn.Module):
    """A network of items (B, 2, 3, 1): remembers what it is called with. Its velocity is `gain`, the target 1."""

    def __init__(self, gain=3.0):
        super().__init__()
        self.gain, self.calls = nn.Parameter(torch.tensor(gain)), []

    def forward(self, x, noise, time, order=None, **kwargs):
        self.calls.append(SimpleNamespace(x=x, noise=noise, time=time, order=order, **kwargs))
        return SimpleNamespace(sample=self.gain * torch.ones_like(x), target=torch.ones_like(x))


def calls(step=0, count=500, **options):
    network = Recorder()
    items = torch.zeros(count, 2, 3, 1)
    labels = torch.arange(count) % 4
    loss = TokenFlow(TOKENS, **options).loss("model", {"model": network}, {"x": items, "labels": labels}, Step(step))
    assert float(loss.value.detach()) == 4.0 and loss.value.requires_grad  # (3 - 1)^2
    return network.calls[0]


def test_each_token_has_a_uniform_time_and_normal_noise():
    call = calls()
    assert call.order is None and call.time.shape == (500, TOKENS) and call.noise.shape == call.x.shape
    assert call.time.min() >= 0 and call.time.max() < 1
    assert float(call.time.mean()) == pytest.approx(1 / 2, abs=0.03)  # six deviations of a mean of 3,000
    assert float(call.time.var()) == pytest.approx(1 / 12, abs=0.01)
    assert float(call.time.std(1).mean()) > 0.2  # tokens of one item have times of their own
    assert float(call.noise.mean()) == pytest.approx(0, abs=0.1)
    assert float(call.noise.std()) == pytest.approx(1, abs=0.1)


def test_random_orders_are_permutations_that_are_equally_likely():
    call, later = calls(random_order=True), calls(step=1, random_order=True)
    assert torch.equal(call.order.sort(1).values, torch.arange(TOKENS).expand(500, -1))
    assert not torch.equal(call.order, later.order) and len(call.order.unique(dim=0)) > 200
    shares = torch.nn.functional.one_hot(call.order, TOKENS).double().mean(0)  # place x token
    assert (shares - 1 / TOKENS).abs().max() < 0.085  # five deviations
    assert not torch.equal(call.order, call.time.argsort(1))  # a stream of their own


def test_labels_are_dropped_at_their_rate():
    classes = calls(count=2000, num_classes=4, label_dropout=0.25).class_labels
    assert float((classes == 4).double().mean()) == pytest.approx(0.25, abs=0.05)  # 4 is the null class
    assert set(classes.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens"),
        ({"num_tokens": 6, "label_dropout": 1.5}, "label_dropout"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        TokenFlow(**options)

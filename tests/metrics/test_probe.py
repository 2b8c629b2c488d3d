"""Linear probes: against a minimum that SciPy finds, invariances, and what they refuse."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from hfgen.metrics.probe import STRENGTHS, linear_probe


def problem(count=120, classes=3, dimension=4, seed=0, spread=1.5):
    """Normal features around a mean for each class, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    means = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(77))
    return means[labels] + spread * torch.randn(count, dimension, generator=generator), labels


def minimum(z, y, test, strength):
    """The classes that the minimum of the loss names, found from the formula alone."""
    mean, deviation = z.mean(0), z.std(0)
    z, test, hot = (z - mean) / deviation, (test - mean) / deviation, np.eye(y.max() + 1)[y]
    shape = hot.shape[1], z.shape[1] + 1

    def loss(flat):
        weight = flat.reshape(shape)
        scores = z @ weight[:, :-1].T + weight[:, -1]
        return -(hot * (scores - logsumexp(scores, axis=1, keepdims=True))).sum() + (weight[:, :-1] ** 2).sum() / (
            2 * strength
        )

    weight = minimize(loss, np.zeros(shape).ravel(), method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14}).x
    weight = weight.reshape(shape)
    return (test @ weight[:, :-1].T + weight[:, -1]).argmax(1)


@pytest.mark.parametrize("strength", [0.003, 0.1, 10.0])
def test_the_classes_are_those_of_the_minimum(strength):
    (z, y), (test, test_y) = problem(), problem(400, seed=1)
    expected = minimum(z.double().numpy(), y.numpy(), test.double().numpy(), strength) == test_y.numpy()
    result = linear_probe(z, y, test, test_y, (strength,))
    assert (result.right.numpy() == expected).mean() > 0.995  # points at the border may differ by rounding
    assert result.accuracy == result.right.double().mean() and 0.4 < result.accuracy < 0.95
    assert result.strength == strength


def test_units_and_shapes_of_features_do_not_matter():
    (z, y), (test, test_y) = problem(), problem(400, seed=1)
    plain = linear_probe(z, y, test, test_y)
    scale = torch.tensor([1e-6, 1.0, 50.0, 1e4])
    moved = linear_probe(z.double() * scale + 7, y, test.double() * scale + 7, test_y)
    assert (plain.right == moved.right).double().mean() > 0.99 and plain.strength == moved.strength
    square = linear_probe(z.view(-1, 1, 2, 2), y, test.view(-1, 1, 2, 2), test_y)
    assert torch.equal(plain.right, square.right)
    constant = torch.ones(len(z), 3), torch.ones(len(test), 3)
    with_more = linear_probe(torch.cat([z, constant[0]], 1), y, torch.cat([test, constant[1]], 1), test_y)
    assert torch.equal(plain.right, with_more.right)


def test_classes_that_are_apart_are_all_told_and_chance_is_chance():
    (z, y), (test, test_y) = problem(spread=0.01), problem(400, seed=1, spread=0.01)
    assert linear_probe(z, y, test, test_y).accuracy == 1
    noise = torch.randn(900, 4, generator=torch.Generator().manual_seed(3))
    y = torch.randint(3, (900,), generator=torch.Generator().manual_seed(4))
    assert abs(linear_probe(noise[:300], y[:300], noise[300:], y[300:]).accuracy - 1 / 3) < 0.08


def test_much_noise_is_met_with_much_regularisation():
    """100 useless numbers beside 4: strong regularisation is best on items that were held out, and on others."""
    (z, y), (test, test_y) = problem(300, spread=1.0), problem(2000, seed=1, spread=1.0)
    noise = [torch.randn(len(x), 100, generator=torch.Generator().manual_seed(len(x))) for x in (z, test)]
    data = torch.cat([z, noise[0]], 1), y, torch.cat([test, noise[1]], 1), test_y
    chosen = linear_probe(*data)
    each = {strength: linear_probe(*data, (strength,)).accuracy for strength in STRENGTHS}
    assert chosen.strength <= 0.1 and chosen.accuracy == each[chosen.strength] > each[10.0] + 0.03


def test_two_classes():
    (z, y), (test, test_y) = problem(classes=2), problem(400, 2, seed=1)
    assert linear_probe(z, y, test, test_y).accuracy > 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(120)}, r"training features \(120,\) and labels \(120,\)"),
        ({1: torch.zeros(119, dtype=torch.long)}, r"training features \(120, 4\) and labels \(119,\)"),
        ({1: torch.zeros(120)}, r"torch.float32: give \(N, ...\) numbers and \(N,\) whole numbers"),
        ({1: torch.zeros(120, dtype=torch.long)}, r"4 strengths, 1 classes: give one and two at least"),
        ({0: torch.full((120, 4), torch.nan)}, "480 of 480 values are not finite"),
        ({2: torch.zeros(400, 5)}, r"training items \(4,\) and of test items \(5,\) have other shapes"),
        ({4: ()}, "0 strengths, 3 classes"),
        ({4: (0.0,)}, "strengths=0.0 must be above 0"),
    ],
)
def test_refusals(change, message):
    arguments = dict(enumerate((*problem(), *problem(400, seed=1), STRENGTHS)))
    with pytest.raises(ValueError, match=message):
        linear_probe(*(arguments | change).values())


def test_too_few_items_to_choose_are_refused():
    z, y = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match="3 training items are too few to choose a strength"):
        linear_probe(z, y, z, y)
    assert linear_probe(z, y, z, y, (10.0,)).accuracy == 1

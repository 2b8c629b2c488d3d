"""Metrics where one number decides: one large feature, one image, one direction."""

import numpy as np
import pytest
import torch

from hfgen.metrics import distances, measures
from hfgen.metrics.feature_network import FeatureNetwork
from hfgen.metrics.perceptual import PerceptualDistance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_feature_that_overflows_a_kernel_is_found_in_either_set():
    small = torch.zeros(4, 3)
    for value in (2 * distances.LARGEST_IN_KERNEL, -2 * distances.LARGEST_IN_KERNEL):
        large = small.double().clone()
        large[2, 1] = value
        for pair in ((small, large), (large, small)):
            with pytest.raises(ValueError, match="the third power of their products overflows"):
                distances.kernel_distance(*pair, subsets=1, subset_size=2)


def test_a_perceptual_distance_is_one_of_directions():
    """|a - b|^2 of unit vectors is 2 - 2 cos, whatever the contrast of the two images is."""
    features = FeatureNetwork("flat", "0" * 12, torch.nn.Flatten(), 12, 3, 2)
    x, y = 100 * normal(5, 3, 2, 2), 100 * normal(5, 3, 2, 2, seed=1)  # far above the floor of the norm
    a, b = (value.flatten(1).double().numpy() for value in (x, y))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    distance = PerceptualDistance(features)
    np.testing.assert_allclose(distance(x, y).numpy(), 2 - 2 * cosine, rtol=1e-4)
    np.testing.assert_allclose(distance(3 * x, 0.5 * y).numpy(), 2 - 2 * cosine, rtol=1e-4)
    np.testing.assert_allclose(distance(x, 2 * x).numpy(), np.zeros(5), atol=1e-6)
    zero = torch.zeros(1, 3, 2, 2)
    assert distance(zero, zero).item() == 0  # a map without any feature has no direction


def test_one_value_is_its_own_mean_without_an_interval():
    found = measures.mean_measurement("error", torch.tensor([2.5]), "lower")
    assert found == measures.Measurement("error", 2.5, "lower", None, None)
    two = measures.mean_measurement("error", torch.tensor([1.0, 3.0]), "higher")  # error of the mean: sqrt(2) / sqrt(2)
    assert (two.metric, two.value, two.better) == ("error", 2, "higher")
    assert two.interval == pytest.approx((2 - 1.96, 2 + 1.96))


def test_sets_of_very_different_sizes_have_a_distance():
    """Beside features of 1e100, those of 1e-120 are a point at 0: its distance is the mean square of the others."""
    large, tiny = 1e100 * normal(60, 3).double(), 1e-120 * normal(60, 3, seed=1).double()
    mean, covariance = (large / 1e100).numpy().mean(0), np.cov((large / 1e100).numpy().T)
    expected = (mean @ mean + np.trace(covariance)) * 1e200
    for pair in ((large, tiny), (tiny, large)):
        assert distances.common_scale(*pair) == 2.0 ** np.ceil(np.log2(float(large.abs().max())))
        assert distances.frechet_distance(*pair) == pytest.approx(expected, rel=1e-9)

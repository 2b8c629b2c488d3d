"""Laws of 8-bit images: levels and [-1, 1] are one-to-one, evenly spaced, and what lies between goes to the nearest."""

import numpy as np
import torch

from hfgen.utils.pixels import from_levels, to_levels

LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def test_levels_are_evenly_spaced_from_minus_one_to_one():
    x = from_levels(LEVELS)
    assert x.dtype == torch.float32 and x.shape == LEVELS.shape
    np.testing.assert_allclose(x.flatten().numpy(), np.linspace(-1, 1, 256), rtol=0, atol=1e-7)
    assert (x.min(), x.max()) == (-1, 1)


def test_levels_survive_the_way_there_and_back():
    assert torch.equal(to_levels(from_levels(LEVELS)), LEVELS)


def test_levels_that_are_floats_stay_as_they_are():
    levels = LEVELS.float()
    assert torch.equal(from_levels(levels), from_levels(LEVELS))
    assert torch.equal(levels, LEVELS.float())


def test_numbers_go_to_the_nearest_level_and_never_round_the_corner():
    x = from_levels(LEVELS)
    for shift in (-0.49, 0.49):
        assert torch.equal(to_levels(x + shift / 127.5), LEVELS)
    assert to_levels(torch.tensor([-9.0, -1.1, 1.1, 9.0])).tolist() == [0, 0, 255, 255]

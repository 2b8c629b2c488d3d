"""Calibration: p-values counted one by one, thresholds that give the promised rate, and bounds by search."""

import math

import pytest
import torch

from hfgen.models.calibration import CalibrationModel, max_alarms, min_calibration_images, refuse_nan


def calibrated(scores):
    model = CalibrationModel(len(scores))
    model.scores.copy_(torch.tensor(sorted(scores)))
    return model


@pytest.mark.parametrize("scores", [[0.0], [3.0, -1.0, 2.0, 2.0], [1.0] * 5, [-math.inf, 0.5, math.inf]])
def test_p_values_are_counted_one_by_one(scores):
    new = [*scores, -2.0, 0.0, 0.25, 1.5, 2.5, math.inf]
    values = calibrated(scores)(torch.tensor(new))
    assert values.dtype == torch.float64
    assert values.tolist() == [(1 + sum(s >= score for s in scores)) / (len(scores) + 1) for score in new]


@pytest.mark.parametrize("count", [1, 9, 10, 19, 99, 128, 999])
def test_the_most_alarms_at_a_rate_are_found_by_search(count):
    rates = [i / (count + 1) for i in range(1, min(count, 30) + 1)] + [i / 7 for i in range(1, 7)] + [0.05, 0.3, 0.999]
    for rate in rates:
        most = max(m for m in range(count + 2) if m / (count + 1) <= rate)
        if most:
            assert max_alarms(count, rate) == most, rate
        else:
            with pytest.raises(ValueError, match=f"needs at least {min_calibration_images(rate)} normal images"):
                max_alarms(count, rate)


def test_the_least_number_of_images_is_found_by_search():
    for rate in (0.999, 0.7, 0.5, 0.1, 0.3, 0.05, 1 / 3, 1 / 49, 1 / 98, 0.001, 0.0007):
        assert min_calibration_images(rate) == next(n for n in range(1, 5000) if 1 / (n + 1) <= rate), rate
    assert min_calibration_images(1e-300) <= 2**53


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_rate_is_between_0_and_1(rate):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        max_alarms(100, rate)


def test_scores_above_the_threshold_and_no_others_are_alarms():
    """With distinct scores the threshold is the largest number at which the p-value is still above the rate."""
    scores = [float(i) ** 2 for i in range(40)]
    model = calibrated(scores)
    for rate in (0.025, 0.1, 0.26, 0.5, 0.97):
        bound = model.threshold(rate)
        assert bound in scores
        around = torch.tensor([bound - 1e-3, bound, bound + 1e-3])
        assert (model(around) <= rate).tolist() == [False, False, True], rate


def test_what_is_not_calibrated_or_not_a_number_is_refused():
    with pytest.raises(ValueError, match="is not calibrated"):
        CalibrationModel()(torch.zeros(2))
    with pytest.raises(ValueError, match="is not calibrated"):
        CalibrationModel().threshold(0.5)
    with pytest.raises(ValueError, match="2 of 3 anomaly scores are NaN, the first of image 1"):
        calibrated([1.0])(torch.tensor([0.0, math.nan, math.nan]))
    with pytest.raises(ValueError, match="1 of 2 anomaly scores are NaN"):
        calibrated([0.0, math.nan]).threshold(0.5)
    refuse_nan(torch.tensor([0.0, math.inf]))

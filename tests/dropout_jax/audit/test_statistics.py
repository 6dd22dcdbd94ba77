"""The interval of a share, and the probability that a threshold makes."""

import operator

import numpy as np
import pytest

from dropout_jax.audit._statistics import probability_of_true, share_interval

COMPARISONS = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}


@pytest.mark.parametrize("primitive", COMPARISONS)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.8984375, 1.0])
def test_probability_is_the_share_of_all_numbers(primitive, is_first, threshold):
    numbers = np.arange(128) / 128
    compare = COMPARISONS[primitive]
    is_true = compare(numbers, threshold) if is_first else compare(threshold, numbers)
    probability = probability_of_true(threshold, primitive, 7, is_first=is_first, is_float=True)
    assert probability == is_true.mean()


def test_interval_holds_the_share_and_narrows():
    for count, size in ((0, 10), (5, 10), (10, 10), (900, 1000)):
        low, high = share_interval(count, size)
        assert 0 <= low <= count / size <= high <= 1
    assert np.ptp(share_interval(9_000, 10_000)) < np.ptp(share_interval(90, 100)) / 5
    assert share_interval(0, 0) == (0.0, 1.0)


def test_interval_has_its_width_in_standard_deviations():
    low, high = share_interval(500_000, 1_000_000)
    assert high - low == pytest.approx(2 * 4.9 * 0.5 / 1000, rel=1e-3)

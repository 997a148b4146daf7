"""Intervals of known coverage and known values."""

import numpy as np
import pytest

from llm.intervals import difference_interval, interval, mean_interval, share_interval


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    """The ratio of means is 2; of 200 samples about 190 intervals must hold it (171 is 6 standard deviations low)."""
    random = np.random.default_rng(7)
    held = 0
    for trial in range(200):
        sizes = random.integers(50, 150, 80).astype(float)
        low, high = interval(sizes * 2 + random.normal(0, 30, 80), sizes, seed=trial, draws=200)
        held += low <= 2 <= high
    assert 171 <= held <= 200


def test_means_and_differences_have_the_widths_of_normal_theory() -> None:
    """1,600 values of standard deviation 1: ± 1.96 / 40; of two such means: √2 times as wide."""
    random = np.random.default_rng(3)
    left, right = random.normal(5, 1, 1600), random.normal(3, 1, 1600)
    low, high = mean_interval(left, seed=1)
    assert (high - low) / 2 == pytest.approx(1.96 / 40, rel=0.1)
    assert low < left.mean() < high
    ones = np.ones(1600)
    low, high = difference_interval((left, ones), (right, ones), seed=1)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(2) / 40, rel=0.1)
    assert low < left.mean() - right.mean() < high
    same = difference_interval((left, ones), (left, ones), seed=1)  # drawn apart, so not 0
    assert same[0] < 0 < same[1]


def test_wilson_interval_has_its_known_values() -> None:
    assert share_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert share_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)

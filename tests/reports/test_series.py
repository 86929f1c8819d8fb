"""Few points that say the same as many."""

from __future__ import annotations

import numpy as np
import pytest

from kvsim.reports.series import bucket_means, distribution, time_unit, total_over_replicas


def test_bucket_means_by_hand():
    # 2 from t=1 to 3, 4 from 3 to the end; buckets [0,2], [2,4], [4,6]
    means = bucket_means(np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.array([0.0, 2.0, 4.0, 6.0]))
    assert means.tolist() == [1.0, 3.0, 4.0]


def test_several_values_at_one_time_leave_the_last():
    means = bucket_means(np.array([0.0, 1.0, 1.0]), np.array([1.0, 9.0, 3.0]), np.array([0.0, 1.0, 2.0]))
    assert means.tolist() == [1.0, 3.0]


def test_replicas_add_up():
    t_s, replica = np.array([0.0, 0.0, 1.0]), np.array([1, 0, 1])
    total = total_over_replicas(t_s, replica, np.array([1.0, 5.0, 2.0]), np.array([0.0, 1.0, 2.0]))
    assert total.tolist() == [6.0, 7.0]


def test_distribution_keeps_the_tail():
    values = np.random.default_rng(0).exponential(size=100_000)
    x, share = distribution(values)
    assert len(x) <= 500 and share[-1] == 1 and x[-1] == values.max()
    for percent in (50, 90, 99, 99.95):
        assert np.interp(percent / 100, share, x) == pytest.approx(np.percentile(values, percent), rel=0.02)


def test_time_unit_suits_the_span():
    assert [time_unit(s)[1] for s in (60, 1000, 100_000)] == ["s", "min", "h"]

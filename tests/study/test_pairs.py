"""Differences of pairs: intervals hold known differences as often as they say, and no more is found than is there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from kvsim.study.pairs import Difference, batched_mean, batched_percentile, holm, paired

Floats = npt.NDArray[np.float64]


def times_in_system(gaps: Floats, services: Floats) -> Floats:
    """Of a queue with one server (Lindley's recursion)."""
    walk = np.concatenate([[0.0], np.cumsum(services[:-1] - gaps[1:])])
    return walk - np.minimum.accumulate(walk) + services


def same_requests(rng: np.random.Generator, requests: int = 40_000) -> tuple[Floats, Floats]:
    """Times in two M/M/1 queues, at utilisation 0.5 and 0.6, of the same requests; the first 2,000 left out."""
    gaps, services = rng.exponential(1.0, requests), rng.exponential(1.0, requests)
    first, second = (times_in_system(gaps, services * mean)[2_000:] for mean in (0.5, 0.6))
    return first, second


def covers(found: Difference, truth: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low <= truth <= found.high


def test_t_by_hand() -> None:
    """1, 2, 3: mean 2, standard error 1 / sqrt(3); t of 2 degrees of freedom is 4.3027 at 97.5 %."""
    found = paired(np.array([1.0, 2.0, 3.0]))
    assert found.mean == 2.0
    assert (found.low, found.high) == (
        pytest.approx(2 - 2.4841, abs=1e-4),
        pytest.approx(2 + 2.4841, abs=1e-4),
    )
    assert found.p == pytest.approx(0.0742, abs=1e-4)


def test_pairs_without_spread() -> None:
    assert paired(np.zeros(5)) == Difference(0.0, 0.0, 0.0, None)
    assert paired(np.full(5, 0.1)) == Difference(0.1, 0.1, 0.1, 1 / 16), "the sign test's p"


def test_common_random_numbers_narrow_the_interval() -> None:
    """Mean times of 30 pairs of runs: equal seeds say more of the difference than other seeds."""
    pairs = np.array(
        [[times.mean() for times in same_requests(np.random.default_rng(seed), 4_000)] for seed in range(30)]
    )
    same = paired(pairs[:, 1] - pairs[:, 0])
    other = paired(np.roll(pairs[:, 1], 1) - pairs[:, 0])
    assert covers(same, 0.5) and covers(other, 0.5)  # 0.6 / (1 - 0.6) - 0.5 / (1 - 0.5)
    assert same.high - same.low < 0.6 * (other.high - other.low)  # type: ignore[operator]


def test_intervals_over_seeds_hold_the_truth() -> None:
    """400 comparisons of 10 pairs whose difference is skewed (exponential, mean 1): at least 0.87 of 0.95 are right."""
    rng = np.random.default_rng(3)
    assert np.mean([covers(paired(rng.exponential(1.0, 10)), 1.0) for _ in range(400)]) >= 0.87
    assert 0.92 <= np.mean([covers(paired(rng.normal(1.0, 5, 10)), 1.0) for _ in range(1000)]) <= 0.98


def test_intervals_over_requests_hold_the_truth() -> None:
    """Mean and p95 of time in system of the same requests in two queues: exponential with rates 1 and 2/3.

    100 runs; fewer than 85 right would be 4.6 standard deviations below 95 %. Were requests independent pairs, the
    interval of the mean would be too narrow: that is shown, too.
    """
    means, percentiles, naive = 0, 0, 0
    for seed in range(100):
        first, second = same_requests(np.random.default_rng(seed))
        means += covers(batched_mean(second - first), 0.5)
        percentiles += covers(batched_percentile(first, second, 0.95), -np.log(0.05) * 0.5)
        naive += covers(paired(second - first), 0.5)
    assert means >= 85 and percentiles >= 85
    assert naive < 70


def test_too_few_requests_give_no_interval() -> None:
    rng = np.random.default_rng(0)
    assert (
        batched_mean(rng.normal(1, 1, 199)).low is None
        and batched_mean(rng.normal(1, 1, 200)).low is not None
    )
    first, second = rng.exponential(1, (2, 3_999))
    assert batched_percentile(first, second, 0.95).low is None
    assert batched_percentile(first, second, 0.95).mean == np.quantile(second, 0.95) - np.quantile(
        first, 0.95
    )
    assert batched_percentile(*rng.exponential(1, (2, 4_000)), 0.95).low is not None


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.9: times 4, 3, 2, 1, never falling."""
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_false_findings_rare() -> None:
    """Ten metrics that do not differ, 500 times: some finding in 5 %, without the correction in 40 %."""
    rng = np.random.default_rng(1)
    corrected = uncorrected = 0
    for _ in range(500):
        p = [paired(rng.normal(0, 1, 10)).p or 0.0 for _ in range(10)]
        corrected += min(holm(p)) < 0.05
        uncorrected += min(p) < 0.05
    assert corrected <= 40 and uncorrected >= 150

"""The two stores of a recorder: packed rows and the histogram of inter-token latencies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.results.histogram import DurationHistogram
from kvsim.results.rows import ROWS_PER_CHUNK, Rows


class Row(NamedTuple):
    a: int
    wide: tuple[int, ...]
    b: int


def test_rows_read_back_as_appended():
    rows = Rows(Row, wide="wide")
    written = [Row(i, (i * 2, -i), i * 3) for i in range(ROWS_PER_CHUNK + 5)]
    rows.extend(written)
    assert len(rows) == ROWS_PER_CHUNK + 5
    assert rows == written
    assert (
        rows[0] == written[0] and rows[-1] == written[-1] and rows[ROWS_PER_CHUNK - 1 : -2] == written[-6:-2]
    )
    assert rows.column("a").tolist() == list(range(len(rows)))
    assert rows.column("wide")[-1].tolist() == [2 * (len(rows) - 1), 1 - len(rows)]
    assert rows.column("b")[-1] == 3 * (len(rows) - 1)
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_rows_refuse_what_would_be_truncated():
    rows = Rows(Row, wide="wide")
    rows.append(Row(1, (2,), 0.5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float64"):
        rows.column("b")


def test_empty_rows():
    rows = Rows(Row, wide="wide")
    assert len(rows.column("a")) == 0 and len(rows.column("wide")) == 0 and rows == []


@given(
    st.lists(st.tuples(st.integers(0, 10**13), st.integers(1, 20)), min_size=1, max_size=60),
    st.sampled_from([0, 1, 50, 90, 95, 99, 100]),
)
def test_percentiles_are_numpys_within_a_thousandth(gaps, percent):
    histogram = DurationHistogram()
    for ns, count in gaps:
        histogram.add(ns, count)
    every = np.repeat(*np.array(gaps).T)
    assert histogram.total == len(every)
    assert histogram.mean_ns() == pytest.approx(every.mean(), rel=1e-12)
    assert histogram.percentile_ns(percent) == pytest.approx(np.percentile(every, percent), rel=1e-3)


def test_order_and_fusion_do_not_matter():
    one, other = DurationHistogram(), DurationHistogram()
    gaps = np.random.default_rng(0).integers(10**6, 10**8, 50_000)
    times = np.cumsum(gaps)
    one.add(gaps[0].item(), 3)
    one.add_between([times[:20_000]], [3])
    one.add_between([times[19_999:20_001].tolist()], [3])
    one.add_between([times[20_000:20_001].tolist()], [3])  # no gap
    one.add_between([times[20_000:].tolist()], [3])
    for ns in gaps[::-1].tolist():
        other.add(ns, 3)
    for a, b in zip(one.values(), other.values(), strict=True):
        assert np.array_equal(a, b)


def test_equal_gaps_are_exact_and_no_tokens_count_nothing():
    histogram = DurationHistogram()
    histogram.add(12_345_678, 10**9)
    histogram.add_between([[1, 3, 6]], [0])
    histogram.add(5, 0)
    assert histogram.percentile_ns(99) == 12_345_678
    assert DurationHistogram().mean_ns() is None and DurationHistogram().percentile_ns(50) is None

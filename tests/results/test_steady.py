"""When a run is steady, and how well it knows a percentile: against sequences whose truth is known."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt
import pytest

from kvsim.results import reading
from kvsim.results.columns import RequestColumns
from kvsim.results.recorder import RequestRow
from kvsim.results.rows import Rows
from kvsim.results.statistics import quantile, quantiles
from kvsim.results.steady import MIN_BEYOND, backlog, mser5, percentile_intervals, warm_up_ns
from kvsim.results.summary import summarise

Floats = npt.NDArray[np.float64]


def mm1(rng: np.random.Generator, requests: int, utilisation: float) -> tuple[Floats, Floats, Floats]:
    """Arrivals, waits (Lindley's recursion) and times in system; a service takes 1 s on average."""
    gaps, services = rng.exponential(1 / utilisation, requests), rng.exponential(1.0, requests)
    walk = np.concatenate([[0.0], np.cumsum(services[:-1] - gaps[1:])])
    waits = walk - np.minimum.accumulate(walk)
    return np.cumsum(gaps), waits, waits + services


def columns(arrival_s: Floats, queue_s: Floats) -> RequestColumns:
    empty = {field.name: np.zeros(len(arrival_s)) for field in fields(RequestColumns)}
    return RequestColumns(**{**empty, "arrival_s": arrival_s, "queue_s": queue_s})  # type: ignore[arg-type]


def share_unstable(utilisation: float, requests: int, runs: int = 60) -> float:
    rng = np.random.default_rng([int(100 * utilisation), requests])
    found = [backlog(columns(*mm1(rng, requests, utilisation)[:2]), 0.0) for _ in range(runs)]
    return sum(each is not None and bool(each["unstable"]) for each in found) / runs


@pytest.mark.parametrize("requests", [1_000, 5_000, 20_000])
@pytest.mark.parametrize("utilisation", [0.5, 0.8, 0.9, 0.95])
def test_a_stable_queue_is_not_flagged(utilisation: float, requests: int) -> None:
    assert share_unstable(utilisation, requests) <= 0.05


@pytest.mark.parametrize(("utilisation", "requests", "least"), [(1.1, 20_000, 0.95), (1.5, 1_000, 0.9)])
def test_a_growing_queue_is_flagged(utilisation: float, requests: int, least: float) -> None:
    assert share_unstable(utilisation, requests) >= least


def test_rates_of_a_growing_queue() -> None:
    """Two arrivals a second, one served a second."""
    arrivals = np.arange(0, 500, 0.5)
    found = backlog(columns(arrivals, arrivals), 0.0)
    assert found is not None and found["unstable"] is True
    assert found["arrivals_per_s"] == pytest.approx(2, rel=0.02)
    assert found["admissions_per_s"] == pytest.approx(1, rel=0.02)
    assert found["growth_per_s"] == pytest.approx(1, rel=0.02)


def test_no_verdict_without_a_trend_to_see() -> None:
    assert backlog(columns(np.zeros(1000), np.arange(1000.0)), 0.0) is None, "all at once"
    assert backlog(columns(np.arange(50.0), np.arange(50.0)), 0.0) is None, "too few"
    assert backlog(columns(np.zeros(0), np.zeros(0)), 0.0) is None


def test_a_queue_that_grew_at_first_is_stable_later() -> None:
    """Cold caches: 300 requests wait longer and longer, the others not at all."""
    arrivals = np.arange(1000.0)
    waits = np.where(arrivals < 300, arrivals, 0.0)
    found = backlog(columns(arrivals, waits), 0.0)
    assert found is not None and found["unstable"] is False


def test_mser5_cuts_a_known_transient() -> None:
    """A start at 10 that fades with a time of 50 observations into noise of 1: gone (below 0.2) after 200."""
    cuts = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 1, 2000)
        cuts.append(mser5(10 * np.exp(-np.arange(2000) / 50) + noise))
    found = [cut for cut in cuts if cut is not None]
    assert len(found) >= 39
    assert 100 <= np.median(found) <= 250, found


def test_mser5_cuts_a_step_exactly() -> None:
    assert mser5(np.repeat([5.0, 1.0], [100, 900])) == 100


def test_mser5_of_a_steady_sequence_cuts_little() -> None:
    cuts = [mser5(np.random.default_rng(seed).exponential(1, 2000)) for seed in range(40)]
    assert np.median([cut for cut in cuts if cut is not None]) <= 100
    assert mser5(np.full(1000, 0.1)) == 0


def test_mser5_finds_no_end_where_there_is_none() -> None:
    assert mser5(np.arange(1000.0)) is None, "it rises to the end"
    assert mser5(np.ones(40)) is None, "too few"


def test_the_warm_up_is_the_later_of_two() -> None:
    """TTFT settles after 100 requests, end-to-end times after 200; rows come in the order in which requests end."""
    rows: Rows[RequestRow] = Rows(RequestRow, wide="hits_by_tier")
    for i in reversed(range(1000)):
        queue_ns, e2e_ns = (10 if i < 100 else 1), (100 if i < 200 else 50)
        rows.append((i, i * 10**9, 1, 1, 0, 0, queue_ns, 0, 0, 0, e2e_ns, 0, 0, -1, -1, (0,)))
    assert warm_up_ns(rows) == 200 * 10**9


@pytest.mark.parametrize("utilisation", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("percent", ["p50", "p95"])
def test_intervals_of_percentiles_hold_the_truth(utilisation: float, percent: str) -> None:
    """Time in an M/M/1 system is exponential with rate 1 - rho; 0: independent. 95 % intervals, 100 runs.

    A run of 20,000 knows its p95 at rho 0.8 from 18 independent observations. Fewer than 85 of 100 would be
    4.6 standard deviations off.
    """
    rng = np.random.default_rng(int(utilisation * 10))
    truth = -np.log(1 - int(percent[1:]) / 100) / (1 - utilisation)
    covered, beyond = 0, []
    for _ in range(100):
        values = mm1(rng, 22_000, utilisation)[2][2_000:] if utilisation else rng.exponential(1.0, 20_000)
        found = percentile_intervals(values)[percent]
        beyond.append(found["beyond"])
        covered += (found["low"] or 0.0) <= truth <= (found["high"] or np.inf)
    assert covered >= 85
    if (
        not utilisation
    ):  # all count; a batch mean's spread is itself uncertain, and alike values only count less
        assert np.median(beyond) >= 0.9 * 20_000 * min(int(percent[1:]), 100 - int(percent[1:])) / 100


def test_alike_neighbours_count_once() -> None:
    """Blocks of 100 equal values: 40 draws are far from 4,000."""
    values = np.repeat(np.random.default_rng(2).exponential(1.0, 40), 100)
    found = percentile_intervals(values)
    assert found["p50"]["beyond"] is not None and found["p50"]["beyond"] < 60
    assert found["p95"]["beyond"] is not None and found["p95"]["beyond"] < MIN_BEYOND
    assert found["p95"]["high"] is None, "nothing bounds it"
    assert percentile_intervals(np.zeros(3))["p50"] == {"low": None, "high": None, "beyond": 0.0}


def test_an_unstable_run_shows_no_waits(small_outcome) -> None:  # type: ignore[no-untyped-def]
    summary = summarise(replace(small_outcome()))
    assert not reading.is_unstable(summary)
    summary["backlog"] = {
        "unstable": True, "from_s": 60.0, "arrivals_per_s": 12.0, "admissions_per_s": 10.0, "growth_per_s": 2.0,
    }  # fmt: skip
    (line,) = reading.steady_warnings(summary)
    assert line.startswith(
        "Unstable: 12 requests/s arrive after 60 s, 10/s are admitted, and the queue grows"
    )
    assert reading.ttft_sentence(summary).startswith("The queue grows by 2 requests a second")


def test_quantiles_are_numpys_bit_for_bit():
    rng = np.random.default_rng(7)
    for size in [1, 2, 3, *rng.integers(4, 400, 300).tolist()]:
        values = rng.exponential(size=size)
        for share in (0.5, 0.9, 0.95, 0.99, rng.random()):
            assert quantile(np.sort(values), share) == float(np.quantile(values, share))
        shares = [0.5, 0.9, 0.95, 0.99]
        assert quantiles(values, shares) == np.quantile(values, shares).tolist()

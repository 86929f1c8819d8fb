"""Requests that meet their SLOs, against counting them one by one."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from kvsim.errors import ScenarioError
from kvsim.results.columns import request_columns
from kvsim.study.slo import attainment, parse_slos

OUTCOMES = runpy.run_path(str(Path(__file__).parents[1] / "results" / "outcomes.py"))


def test_goodput_counts_requests_that_meet_all() -> None:
    outcome = OUTCOMES["random_outcome"]()
    columns = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    rows = list(
        zip(columns.ttft_s.tolist(), columns.tpot_s.tolist(), columns.output_tokens.tolist(), strict=True)
    )
    ttft_s = sorted(ttft for ttft, _, _ in rows)[len(rows) // 2]
    tpot_s = sorted(tpot for _, tpot, output in rows if output > 1)[len(rows) // 2]
    met = sum(ttft <= ttft_s and (output == 1 or tpot <= tpot_s) for ttft, tpot, output in rows)
    assert 0 < met < len(rows)
    found = attainment(outcome, columns, {"ttft_s": ttft_s, "tpot_s": tpot_s})
    assert found == {
        "slo_attained_ratio": met / outcome.requests_submitted,
        "goodput_requests_per_s": met / (outcome.makespan_ns / 1e9),
    }
    assert attainment(outcome, columns, {}) == {}


def test_what_came_in_a_warm_up_does_not_count() -> None:
    outcome = OUTCOMES["random_outcome"]()
    columns = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    middle_s = float(sorted(columns.arrival_s.tolist())[len(columns.arrival_s) // 2])
    late = dataclasses.replace(outcome, warm_up_ns=round(middle_s * 1e9))
    early = sum(arrival_s < middle_s for arrival_s in columns.arrival_s.tolist())
    met = sum(
        arrival_s >= middle_s and ttft_s <= 1
        for arrival_s, ttft_s in zip(columns.arrival_s.tolist(), columns.ttft_s.tolist(), strict=True)
    )
    assert early > 0
    assert attainment(late, columns, {"ttft_s": 1.0}) == {
        "slo_attained_ratio": met / (outcome.requests_submitted - early),
        "goodput_requests_per_s": met / ((outcome.makespan_ns - late.warm_up_ns) / 1e9),
    }


def test_times_with_units() -> None:
    assert parse_slos(["ttft=1s", "tpot=50 ms"]) == {"ttft_s": 1.0, "tpot_s": 0.05}


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["ttft"], "--slo ttft: expected METRIC=TIME, such as ttft=1s"),
        (["ttf=1s"], "--slo ttf: no such metric; did you mean 'ttft'?"),
        (["ttft=1"], "--slo ttft: 1 has no unit; write '1 s' or '1 ms'"),
        (["ttft=1s", "ttft=2s"], "--slo ttft: given twice"),
    ],
)
def test_what_is_no_slo(texts: list[str], line: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_slos(texts)
    assert str(error.value) == line


def test_what_was_lost_in_a_warm_up_does_not_count_either() -> None:
    """A request that is too long for the model is rejected; it arrives before the statistics begin, or after."""
    outcome = dataclasses.replace(OUTCOMES["random_outcome"](), warm_up_ns=1)
    columns = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    ratios = [
        attainment(dataclasses.replace(outcome, lost_in_warm_up=lost), columns, {"ttft_s": 1.0})[
            "slo_attained_ratio"
        ]
        for lost in (0, 1)
    ]
    submitted = outcome.requests_submitted - sum(columns.arrival_s < 1e-9)
    assert ratios[1] == pytest.approx(ratios[0] * submitted / (submitted - 1))

"""What an SLO means, by hand: percentiles over submitted requests, shares of requests, and the margin on both."""

from __future__ import annotations

import dataclasses
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml

from kvsim.errors import ScenarioError
from kvsim.results.columns import request_columns
from kvsim.study.plan.margin import FILE, margin_ratios, model_error
from kvsim.study.plan.requirements import figures, meets, over_limits, parse_requirements, percentile_s
from kvsim.study.plan.traffic import Headroom, headroom, parse_traffic

TESTS = Path(__file__).parents[1]
OUTCOMES = runpy.run_path(str(TESTS / "results" / "outcomes.py"))


def columns(ttft_s: list[float]):
    """As many requests with these times to first token and one output token, so without a TPOT."""
    outcome = OUTCOMES["random_outcome"]()
    known = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    rows = {f.name: getattr(known, f.name)[: len(ttft_s)] for f in dataclasses.fields(known)}
    rows |= {"ttft_s": np.array(ttft_s), "tpot_s": np.full(len(ttft_s), np.nan)}
    return type(known)(**rows)


def test_requests_that_never_end_lie_beyond_every_percentile() -> None:
    done = np.array([0.1, 0.2, 0.3, 0.4])
    assert percentile_s(done, 0, 50) == np.percentile(done, 50) == 0.25
    assert percentile_s(done, 1, 50) == pytest.approx(0.3)
    assert percentile_s(done, 1, 75) == pytest.approx(0.4)
    assert percentile_s(done, 1, 76) == math.inf


def test_a_share_is_of_the_submitted_requests() -> None:
    wanted = parse_requirements(["ttft=1s", "tpot=1ms"], 0.75)
    row = figures(columns([0.5, 0.9, 1.0, 1.1]), 0, wanted, {"ttft": 1.2}) | {"error": None}
    assert row["attained_ratio"] == 0.75 and row["attained_ratio_with_margin"] == 0.25
    assert meets(row, wanted, {}) and not meets(row, wanted, {"ttft": 1.2})
    row = figures(columns([0.5, 0.9, 1.0, 1.1]), 1, wanted, {}) | {"error": None}
    assert row["attained_ratio"] == 0.6 and not meets(row, wanted, {})


def test_percentiles_and_a_share_have_both_to_hold() -> None:
    """20 requests, one late: p90 holds, and so does 95 % within the limit; 96 % does not."""
    done = columns([0.5] * 19 + [3.0])
    for attain, good in ((None, True), (0.95, True), (0.96, False)):
        wanted = parse_requirements(["ttft_p90=1s"], attain)
        row = figures(done, 0, wanted, {}) | {"error": None}
        assert meets(row, wanted, {}) is good
    assert parse_requirements(["ttft_p90=1s", "tpot=50ms"], None).attain == 0.99
    assert parse_requirements(["ttft_p90=1s"], None).attain is None
    assert parse_requirements(["ttft_p90=1s", "ttft_p99=3s", "tpot_p50=9ms"], 0.9).request_limits == {
        "ttft": 1.0,
        "tpot": 0.009,
    }
    assert parse_requirements(["ttft=2s", "ttft_p99=1s"], None).request_limits == {"ttft": 2.0}


def test_the_margin_is_a_factor_on_times() -> None:
    wanted = parse_requirements(["ttft_p50=1s"], None)
    row = figures(columns([0.9, 0.9]), 0, wanted, {}) | {"error": None}
    assert over_limits(row, wanted, {}) == {"ttft_p50": 0.9}
    assert over_limits(row, wanted, {"ttft_p50": 1.2})["ttft_p50"] == pytest.approx(1.08)


def test_the_margin_is_what_validation_found() -> None:
    """The packaged quantiles belong to the runs of the validation set, and agree with the bounds that hold those."""
    data = yaml.safe_load(FILE.read_text())
    bounds = {
        name: run
        for folder in yaml.safe_load((TESTS / "validate" / "bounds.yaml").read_text()).values()
        for name, run in folder.items()
    }
    calm = [bounds[name] for name in data["runs"]]
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        for at in ("p50", "p95"):
            most = max(1 / (1 - run[f"metrics.{metric}.{at}"]) for run in calm)
            found = data["measured_over_predicted"][f"{metric}_{at}"]
            assert found["p50"] <= found["p90"] <= found["max"] <= most, f"{FILE}: make it anew, see its head"
    workloads = {name for name, run in bounds.items() if "identical_cached_tokens_ratio" in run}
    assert {*data["runs"], *data["saturated_runs"]} == workloads, f"{FILE}: make it anew, see its head"
    ratios = margin_ratios(parse_requirements(["ttft_p95=1s", "e2e=9s"], None))
    assert ratios["ttft_p95"] == model_error().ratios["ttft_s_p95"]["p90"] > 1
    assert ratios["e2e"] == model_error().ratios["e2e_s_p95"]["p90"]


def test_headroom_brackets_the_factor_that_breaks() -> None:
    asked: list[float] = []

    def succeeds(factors):
        asked.extend(factors)
        return [factor <= 3.1 for factor in factors]

    found = headroom(succeeds)
    assert found.holds <= 3.1 < found.breaks and found.breaks / found.holds <= 1.05
    assert len(asked) == len(set(asked)) <= 14
    below = headroom(lambda factors: [factor <= 0.3 for factor in factors])
    assert below.holds <= 0.3 < below.breaks
    assert headroom(lambda factors: [True] * len(factors)) == Headroom(64.0, None)
    assert headroom(lambda factors: [False] * len(factors)).holds is None


@pytest.mark.parametrize(
    ("slos", "attain", "line"),
    [
        ([], None, "--slo: none is given; give at least one, such as --slo ttft_p95=1s"),
        (["ttft_p95"], None, "--slo ttft_p95: expected METRIC=TIME"),
        (["ttf_p95=1s"], None, "--slo ttf_p95: no such metric; did you mean 'ttft_p95'?"),
        (["ttft_p100=1s"], None, "--slo ttft_p100: a percentile lies between 0 and 100"),
        (["ttft_p95=1"], None, "--slo ttft_p95: 1 has no unit; write '1 s' or '1 ms'"),
        (["ttft=0s"], None, "--slo ttft: the limit has to be above 0 s"),
        (["ttft=1s", "ttft=2s"], None, "--slo ttft: given twice"),
        (["ttft=1s"], 99.0, "--attain 99: is a share of the requests above 0 and up to 1"),
    ],
)
def test_what_is_no_requirement(slos: list[str], attain: float | None, line: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_requirements(slos, attain)
    assert str(error.value).startswith(line)


def test_traffic_is_a_factor() -> None:
    assert parse_traffic("2x") == parse_traffic("2.0") == 2
    for text in ("x", "0x", "-1", "2 times"):
        with pytest.raises(ScenarioError, match="expected a factor above 0"):
            parse_traffic(text)

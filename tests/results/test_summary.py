"""Every figure of summary.json, worked out by hand for the three requests of ``small_outcome``."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kvsim.results.recorder import Recorder
from kvsim.results.summary import summarise


@pytest.fixture
def summary(small_outcome):
    return summarise(small_outcome())


def test_requests_add_up(summary):
    counts = {key: value for key, value in summary.items() if key.startswith("requests_")}
    assert counts == {
        "requests_submitted": 5,
        "requests_completed": 3,
        "requests_rejected": 1,
        "requests_failed": 0,
        "requests_cancelled": 0,
        "requests_unfinished": 1,
    }
    assert summary["rejected_by_reason"] == {"prompt longer than the model's context": 1}


def test_reasons_that_differ_in_numbers_are_one(small_outcome):
    outcome = small_outcome()
    outcome.recorder.rejected[:] = [
        (3, "70,001 tokens exceed 65,536"),
        (4, "80000 tokens exceed 65,536"),
        (5, "2 bad"),
    ]
    summary = summarise(replace(outcome, requests_submitted=7))
    assert summary["rejected_by_reason"] == {"for example 70,001 tokens exceed 65,536": 2, "2 bad": 1}


def test_lost_request_is_our_bug(small_outcome):
    with pytest.raises(AssertionError, match="submitted 6"):
        summarise(replace(small_outcome(), requests_submitted=6))


def test_latencies(summary):
    # TTFT 160, 310, 910 ms: p90 = 310 + 0.8 * 600, p95 = 310 + 0.9 * 600, p99 = 310 + 0.98 * 600
    assert summary["ttft_s"] == pytest.approx(
        {"mean": 0.46, "p50": 0.31, "p90": 0.79, "p95": 0.85, "p99": 0.898}
    )
    # TPOT: (710 - 310) / 4 and (1210 - 910) / 3; the request with one output token has none
    assert summary["tpot_s"] == pytest.approx(dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), 0.1))
    # e2e 160, 710, 1210 ms
    assert summary["e2e_s"] == pytest.approx(
        {"mean": 2.08 / 3, "p50": 0.71, "p90": 0.71 + 0.4, "p95": 0.71 + 0.45, "p99": 0.71 + 0.49}
    )
    # gaps: 6 of 100 ms, 1 of 200 ms; p90 is at position 5.4, between the 6th and the 7th
    assert summary["itl_s"] == pytest.approx(
        {"mean": 0.8 / 7, "p50": 0.1, "p90": 0.14, "p95": 0.17, "p99": 0.194}
    )


def test_where_ttft_goes(summary):
    parts = summary["ttft_parts_s"]
    assert parts["mean"] == pytest.approx(
        {"queue_s": 0.2, "load_s": 0.05 / 3, "prefill_s": 0.7 / 3, "host_s": 0.01}
    )
    assert parts["slowest_5_percent"] == pytest.approx(
        {"queue_s": 0.5, "load_s": 0, "prefill_s": 0.4, "host_s": 0.01}
    )


def test_throughput_and_cost(summary):
    assert summary["makespan_s"] == 10
    assert summary["throughput"] == {
        "requests_per_s": 0.3,
        "output_tokens_per_s": 1.0,
        "input_tokens_per_s": 100.0,
    }
    # 8 GPUs for 10 s at 3.60 USD an hour; 10 output tokens
    assert summary["cost"] == pytest.approx(
        {
            "gpu_hours": 80 / 3600,
            "tiers_usd": 0.0,
            "usd": 0.08,
            "usd_per_million_output_tokens": 8000,
            "usd_per_gpu_hour": 3.6,
            "price_source": "list price, 2025-06",
        }
    )


def test_cache(summary):
    assert summary["cache"] == {
        "hit_token_ratio": 0.15,  # 150 of 1000 prompt tokens
        "prompts_name_content": True,
        "turns_follow_at_once": False,
        "approximate_token_ratio": 0.025,
        "published_quality": [],
        "hit_token_ratio_by_tier": {"hbm": 0.04, "ddr": 0.11},
        "layerwise_loads": None,
        "evicted_tokens": 300,
        "recomputed_tokens": 70,
    }
    assert summary["preemptions"] == 2
    assert [tier["peak_used_bytes_of_a_replica"] for tier in summary["tiers"]] == [8 * 10**9, 10**9]


def test_utilisation_and_provenance(summary):
    assert summary["utilisation"]["mean"] == 0.5
    assert summary["utilisation"]["replicas"] == [0.8, 0.2]
    assert [link["busy_ratio"] for link in summary["utilisation"]["links"]] == [0.1, 0.0]
    assert summary["time_ratio_by_provenance"] == {
        "measured": 0.6,
        "imported": 0.2,
        "derived": 0.1,
        "extrapolated": 0.1,
    }
    assert summary["extrapolated_time_ratio"] == 0.1
    assert [(row["kernel"], row["ratio"]) for row in summary["time_by_kernel"]] == [
        ("gemm", 0.7),
        ("decode_attention", 0.3),
    ]


def test_groups(summary):
    assert {name: group["requests"] for name, group in summary["by_tenant"].items()} == {
        "gold": 1,
        "silver": 1,
        "(none)": 1,
    }
    assert summary["by_tenant"]["silver"]["hit_token_ratio"] == 0.5
    assert summary["by_tenant"]["silver"]["tpot_s"]["mean"] is None
    assert [(row["requests"], row["busy_ratio"]) for row in summary["by_replica"]] == [(2, 0.8), (1, 0.2)]


def test_nothing_finished(small_outcome):
    summary = summarise(
        replace(small_outcome(), recorder=Recorder(), makespan_ns=0, requests_submitted=1, used_ns={})
    )
    assert set(summary["ttft_s"].values()) == set(summary["itl_s"].values()) == {None}
    assert summary["throughput"]["requests_per_s"] is None
    assert summary["cost"]["usd_per_million_output_tokens"] is None
    assert summary["extrapolated_time_ratio"] == 0
    json.dumps(summary, allow_nan=False)


def test_loads_that_steps_overlap(small_outcome):
    outcome = small_outcome()
    assert summarise(outcome)["cache"]["layerwise_loads"] is None
    # 8 bytes in 20 ns over a step of 40; 40 bytes in 100 ns over a step of 10, which they hold up by 92
    joins = ((8, 20, 40, 5), (40, 100, 10, 92))
    loads = summarise(replace(outcome, joins=joins))["cache"]["layerwise_loads"]
    assert loads["steps"] == 2 and loads["hidden_ratio"] == 0.5
    assert loads["added_s"] == pytest.approx(48.5e-9)
    assert loads["hidden_above_bytes_per_s"]["mean"] == pytest.approx((0.2e9 + 4e9) / 2)

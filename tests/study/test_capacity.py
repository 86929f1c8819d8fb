"""What each GB brings, and where the knee lies, from rows written by hand."""

import math

import pytest

from kvsim.study.capacity import (
    NO_KNEE_CONVEX,
    NO_KNEE_FEW,
    NO_KNEE_FLAT,
    capacity_curves,
    knee,
)

KEY = "cache.tiers.ddr.capacity"


def row(
    gb: float, hits: float, ttft_s: float, seed: int = 1, replicas: int = 2, **other: object
) -> dict[str, object]:
    return {
        KEY: f"{gb:g} GB",
        "seed": seed,
        "error": None,
        "total_bytes_ddr": int(gb * 1e9) * replicas,
        "capacity_bytes_ddr": int(gb * 1e9),
        "hit_token_ratio": hits,
        "hit_token_ratio_ddr": hits,
        "ttft_s_mean": ttft_s / 2,
        "ttft_s_p95": ttft_s,
        "usd_per_hour": 5.0 + 0.01 * gb * replicas,
        "usd_per_million_output_tokens": 1.0,
        **other,
    }


def test_changes_for_each_gb_of_all_replicas() -> None:
    rows = [row(10, 0.3, 1.0), row(0, 0.1, 2.0), row(30, 0.4, 0.6)]
    (curve,) = capacity_curves(rows, [KEY], {KEY: "ddr"})
    first, second = curve["marginal"]
    assert (first["from_capacity_gb"], first["to_capacity_gb"], first["extra_gb"]) == (0, 10, 20)
    assert first["hit_token_ratio_per_gb"] == pytest.approx(0.2 / 20)
    assert first["ttft_s_p95_per_gb"] == pytest.approx(-1.0 / 20)
    assert first["usd_per_month_per_gb"] == pytest.approx(0.01 * 730)
    assert first["goodput_requests_per_s_per_gb"] is None
    assert second["extra_gb"] == 40
    assert second["hit_token_ratio_per_gb"] == pytest.approx(0.1 / 40)


def test_an_hbm_gb_has_no_dollars() -> None:
    key = "engine.gpu_memory_utilization"
    rows = [
        {
            **row(gb, gb / 100, 1.0),
            key: gb,
            "capacity_bytes_hbm": int(gb * 1e9),
            "total_bytes_hbm": int(2e9 * gb),
        }
        for gb in (20, 40)
    ]
    (curve,) = capacity_curves(rows, [key], {key: "hbm"})
    assert curve["marginal"][0]["usd_per_month_per_gb"] is None
    assert curve["marginal"][0]["usd_per_hour_per_gb"] is None
    assert curve["marginal"][0]["hit_token_ratio_per_gb"] == pytest.approx(0.2 / 40)


def test_seeds_are_one_point_and_other_keys_are_curves_of_their_own() -> None:
    rows = [
        row(gb, hits, 1.0, seed, **{"cluster.router": router})
        for router in ("a", "b")
        for seed, hits in ((1, 0.2), (2, 0.4))
        for gb in (1, 2)
    ]
    rows[0]["error"] = "does not fit"
    curves = capacity_curves(rows, [KEY, "seed", "cluster.router"], {KEY: "ddr"})
    assert [curve["others"] for curve in curves] == [{"cluster.router": "a"}, {"cluster.router": "b"}]
    assert [point["runs"] for point in curves[0]["points"]] == [1, 2]
    assert curves[0]["points"][0]["hit_token_ratio"] == pytest.approx(0.4)
    assert curves[1]["points"][0]["hit_token_ratio"] == pytest.approx(0.3)
    assert curves[1]["points"][0]["hit_token_ratio_range"] == [0.2, 0.4]


def test_the_knee_is_farthest_above_the_chord_of_log_capacity() -> None:
    # doublings 16 to 256: chord 0, 1/4, 1/2, 3/4, 1; hits scaled 0, .5, .9, .95, 1 lie .25, .4, .2 above it
    hits = [0.10, 0.30, 0.46, 0.48, 0.50]
    assert knee([16, 32, 64, 128, 256], hits) == (2, "")
    # a capacity of 0 has no logarithm and moves nothing
    assert knee([0, 16, 32, 64, 128, 256], [0.0, *hits]) == (3, "")


@pytest.mark.parametrize(
    ("capacities", "hits", "why"),
    [
        ([0, 16, 32], [0.0, 0.2, 0.3], NO_KNEE_FEW),
        ([16, 32, 64], [0.300, 0.309, 0.309], NO_KNEE_FLAT),
        ([16, 32, 64], [0.5, 0.4, 0.3], NO_KNEE_FLAT),
        ([16, 32, 64], [0.1, 0.2, 0.5], NO_KNEE_CONVEX),
        ([1, 2, 4, 8], [math.log(c) / 10 for c in (1, 2, 4, 8)], NO_KNEE_CONVEX),
    ],
)
def test_no_knee_and_why(capacities: list[float], hits: list[float], why: str) -> None:
    assert knee(capacities, hits) == (None, why)

"""Lines over a numeric key and where they cross, from rows written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from kvsim.study.lines import line_charts, quantities

SHARE, METHOD = "cache.options.share", "method"


def rows(times: dict[str, dict[Any, float]], key: str = SHARE, **other: Any) -> list[dict[str, Any]]:
    return [
        {key: value, METHOD: method, "seed": 1, "error": None, "ttft_s_mean": ttft_s, **other}
        for method, line in times.items()
        for value, ttft_s in line.items()
    ]


def crossings(times: dict[str, dict[Any, float]], key: str = SHARE) -> list[dict[str, Any]]:
    (chart,) = line_charts(rows(times, key), [key, METHOD])
    found: list[dict[str, Any]] = chart["crossings"]
    return found


def test_lines_cross_where_straight_lines_between_points_do() -> None:
    (crossing,) = crossings({"none": {0.0: 4.0, 0.5: 4.0, 1.0: 4.0}, "blend": {0.0: 1.0, 0.5: 2.0, 1.0: 6.0}})
    assert crossing == {
        "figure": "ttft_s_mean",
        "lines": [0, 1],
        "first_is_lower_below": False,
        "value": pytest.approx(0.75),
        "at": pytest.approx(4.0),
        "between": [0.5, 1.0],
    }


def test_a_wide_span_is_logarithmic() -> None:
    times = {"none": {"1 GB/s": 4.0, "100 GB/s": 4.0}, "load": {"1 GB/s": 8.0, "100 GB/s": 0.0}}
    (crossing,) = crossings(times, "link.read")
    assert crossing["value"] == pytest.approx(10.0)  # the geometric middle
    assert crossing["first_is_lower_below"]


def test_touching_is_no_crossing() -> None:
    assert not crossings({"a": {0.0: 1.0, 0.5: 2.0, 1.0: 1.0}, "b": {0.0: 2.0, 0.5: 2.0, 1.0: 2.0}})
    assert not crossings({"a": {0.0: 1.0, 1.0: 2.0}, "b": {0.0: 2.0, 1.0: 2.0}})
    (crossing,) = crossings({"a": {0.0: 1.0, 0.5: 2.0, 1.0: 3.0}, "b": {0.0: 2.0, 0.5: 2.0, 1.0: 2.0}})
    assert (crossing["value"], crossing["at"], crossing["between"]) == (0.5, 2.0, [0.0, 1.0])


def test_only_lines_that_differ_in_one_key_and_points_that_ran() -> None:
    found = [
        *rows({"a": {0.0: 1.0, 1.0: 3.0}, "b": {0.0: 3.0, 1.0: 1.0}}, load="before"),
        *rows({"a": {0.0: 2.0, 1.0: 2.0}}, load="layerwise"),
        {SHARE: 0.5, METHOD: "a", "seed": 1, "load": "before", "error": "does not fit"},
    ]
    (chart,) = line_charts(found, [SHARE, METHOD, "load"])
    assert [point["value"] for point in chart["lines"][0]["points"]] == [0.0, 1.0]
    assert [crossing["lines"] for crossing in chart["crossings"]] == [[0, 1], [0, 2]]


def test_lines_that_differ_in_a_number_are_not_compared() -> None:
    found = [
        {**row, "rate": rate}
        for rate, a, b in ((1, 1.0, 3.0), (2, 3.0, 1.0))
        for row in rows({"a": {0.0: a, 1.0: b}})
    ]
    charts = line_charts(found, [SHARE, "rate"])
    assert [(chart["key"], len(chart["lines"]), chart["crossings"]) for chart in charts] == [
        (SHARE, 2, []), ("rate", 2, []),
    ]  # fmt: skip


def test_seeds_are_means_with_their_range() -> None:
    found = rows({"a": {0.0: 1.0, 1.0: 2.0}}) + rows({"a": {0.0: 3.0, 1.0: 4.0}}, seed=2)
    (chart,) = line_charts(found, [SHARE, "seed"])
    point = chart["lines"][0]["points"][0]
    assert (point["runs"], point["ttft_s_mean"], point["ttft_s_mean_range"]) == (2, 2.0, [1.0, 3.0])
    assert point["goodput_requests_per_s"] is None


def test_numbers_and_quantities_of_one_kind() -> None:
    assert quantities([0, 0.15]) == ({0: 0.0, 0.15: 0.15}, "")
    assert quantities(["1 GB/s", "500 MB/s"]) == ({"1 GB/s": 1.0, "500 MB/s": 0.5}, "GB/s")
    assert quantities(["1 ms", "2 s"]) == ({"1 ms": 0.001, "2 s": 2.0}, "s")
    assert quantities(["a", 1]) is None
    assert quantities([True, False]) is None
    assert quantities(["null", 1]) is None

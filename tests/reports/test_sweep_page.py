"""The page of ``kvsim sweep`` as a file. How it looks in a browser: tests/browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvsim.reports import sweep as sweep_page
from kvsim.study.capacity import capacity_curves
from kvsim.study.lines import line_charts

KEY = "cache.tiers.ddr.capacity"
ROUTER = "cluster.router"
HITS = {0: 0.1, 16: 0.10, 32: 0.30, 64: 0.46, 128: 0.48, 256: 0.50}


@pytest.fixture(autouse=True)
def short_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_page, "plotly_js", lambda: "/* plotly */")


def swept(routers: int = 1, seeds: int = 1) -> dict[str, Any]:
    """What a sweep of ``HITS`` would tell."""
    rows = [
        {
            KEY: f"{gb} GB",
            ROUTER: f"kind<{router}>",
            "seed": seed,
            "requests_submitted": 10,
            "requests_completed": 10,
            "capacity_bytes_ddr": gb * 10**9,
            "total_bytes_ddr": gb * 10**9,
            "hit_token_ratio": hits + 0.01 * seed,
            "hit_token_ratio_ddr": hits,
            **{f"ttft_s_{name}": 1 - hits for name in ("mean", "p50", "p95")},
            "tpot_s_p95": 0.02,
            "slo_attained_ratio": 1.0,
            "goodput_requests_per_s": 3.0,
            "usd_per_hour": 5.0,
            "usd_per_million_output_tokens": 1.0,
            "error": None,
        }
        for router in range(routers)
        for gb, hits in HITS.items()
        for seed in range(seeds)
    ]
    keys = [KEY, ROUTER, "seed"]
    return {
        "name": "<b>bold",
        "axes": [{"key": key, "values": sorted({str(row[key]) for row in rows})} for key in keys],
        "slos": {"ttft_s": 1.0},
        "points": rows,
        "curves": capacity_curves(rows, keys, {KEY: "ddr"}),
        "charts": line_charts(rows, keys),
        "assumptions": ["ddr: $2.87 a GB and month, assumed."],
    }


def page_of(told: dict[str, Any], tmp_path: Path) -> tuple[str, list[dict[str, Any]]]:
    sweep_page.write_page(tmp_path / "page.html", told)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>bold" not in text and "kind<" not in text
    return text, [
        json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text)
    ]


def test_the_knee_is_marked_on_the_hits(tmp_path: Path) -> None:
    text, figures = page_of(swept(), tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Capacity of ddr", "All points", "Assumptions"]
    assert len(figures) == 4
    line, knee = figures[0]["data"]
    assert line["y"] == list(HITS.values())
    assert line["x"] == [3, 4, 5, 6, 7, 8]  # log2 of GB; 0 stands one doubling left of 16
    assert (knee["x"], knee["y"], knee["text"]) == ([6], [0.46], ["64 GB"])
    assert figures[0]["layout"]["xaxis"]["ticktext"] == ["0", "16", "32", "64", "128", "256"]
    per_gb = figures[3]["data"][0]
    assert per_gb["y"][2] == pytest.approx(0.16 / 32)
    assert "knee: 64 GB, hits 46" in text.replace("\u00a0", " ")


def test_seeds_are_ranges_and_many_combinations_are_thinned_out(tmp_path: Path) -> None:
    text, figures = page_of(swept(routers=9, seeds=3), tmp_path)
    lines = [line for line in figures[0]["data"] if line["mode"] != "markers+text"]
    assert len(lines) == 6
    assert lines[0]["error_y"]["array"] == pytest.approx([0.01] * 6)
    assert "6 of 9 combinations are drawn" in text.replace("\u00a0", " ")
    assert text.count("knee: 64") == 9


def test_points_that_cannot_run_are_named(tmp_path: Path) -> None:
    told = swept()
    told["points"][0] = {KEY: "0 GB", ROUTER: "a", "seed": 0, "error": "does not fit"}
    text, _ = page_of(told, tmp_path)
    assert f"1 of {len(told['points'])} points cannot run, the first because: does not fit" in text.replace(
        "\u00a0", " "
    )
    assert "cannot run: does not fit" in text


def test_a_crossing_is_marked_where_two_lines_meet(tmp_path: Path) -> None:
    told, rate = swept(), "cache.tiers.ddr.link.read"
    rows = [
        {
            **told["points"][0],
            rate: f"{gb} GB/s",
            ROUTER: router,
            "ttft_s_mean": ttft_s,
            "approximate_token_ratio": 0.4 if router == "b" else 0.0,
        }
        for router, times in (("a", (0.07, 0.07)), ("b", (0.09, 0.03)))
        for gb, ttft_s in zip((1, 4), times, strict=True)
    ]
    told |= {"points": rows, "curves": [], "charts": line_charts(rows, [rate, ROUTER])}
    text, figures = page_of(told, tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["By link read", "All points", "Assumptions"]
    *lines, crossing = figures[0]["data"]
    assert [line["name"] for line in lines] == ["router a", "router b"]
    assert crossing["x"] == pytest.approx([2.0]) and crossing["y"] == pytest.approx([0.07])
    assert crossing["text"] == ["2.00 GB/s"]
    text = text.replace("\u00a0", " ")
    assert "Where lines over link read cross" in text
    assert "<td>router a</td><td>router b</td>" in text  # lower below, lower above
    assert '<th scope="col">approximate</th>' in text and "<td>40 %</td>" in text
    assert "responses" not in text


def test_lines_to_compare_share_a_chart_for_each_setting_of_numbers(tmp_path: Path) -> None:
    told, rate, share = swept(), "cache.tiers.ddr.link.read", "cache.options.share"
    rows = [
        {**told["points"][0], rate: f"{gb} GB/s", ROUTER: router, share: x, "ttft_s_mean": y}
        for x in (0, 0.2, 0.4, 0.6)
        for router, times in (("a", (1.0, 1.0)), ("b", (2.0 + x, 0.5)))
        for gb, y in zip((1, 8), times, strict=True)
    ]
    told |= {"points": rows, "curves": [], "charts": line_charts(rows, [rate, share, ROUTER])[:1]}
    text, figures = page_of(told, tmp_path)
    titles = ["TTFT mean · share 0", "TTFT mean · share 0.4", "TTFT mean · share 0.6"]
    found = re.findall(r"<figcaption><h3>(.*?)</h3>", text)
    assert [title for title in found if "mean" in title] == titles
    assert [[line["name"] for line in figure["data"]] for figure in figures[::3]] == [
        ["router a", "router b", "crossing"]
    ] * 3
    assert "6 of 8 lines are drawn" in text.replace("\u00a0", " ")

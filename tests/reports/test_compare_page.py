"""The page and the terminal's tables of ``kvsim compare``. How the page looks in a browser: tests/browser."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kvsim.reports import compare as compare_page
from kvsim.results.compare_table import print_comparison


@pytest.fixture(autouse=True)
def short_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_page, "plotly_js", lambda: "/* plotly */")


def metric(name: str, before: float, low: float, high: float, verdict: str) -> dict[str, Any]:
    middle = (low + high) / 2
    return {
        "metric": name, "baseline": before, "value": before + middle, "difference": middle, "low": low, "high": high,
        "p": 0.01, "p_holm": 0.02 if verdict != "same" else 0.4, "relative": middle / before, "grows": False,
        "verdict": verdict,
    }  # fmt: skip


def compared() -> dict[str, Any]:
    """What a comparison would tell."""
    metrics = [
        metric("ttft_s_p95", 0.2, -0.12, -0.08, "better"),
        metric("hit_token_ratio", 0.4, -0.06, -0.02, "worse"),
        metric("preemptions", 10.0, -3.0, 5.0, "same"),
        {**metric("usd_per_hour", 2.0, 0.0, 0.0, "equal"), "p": None, "p_holm": None},
        {**metric("e2e_s_mean", 4.0, 1.0, 3.0, "unknown"), "low": None, "high": None, "p_holm": None},
    ]
    return {
        "scenarios": [{"name": "<b>a", "file": "a.yaml"}, {"name": "c", "file": "c.yaml"}],
        "overrides": ["seed=3"],
        "seeds": [3, 4],
        "confidence": 0.95,
        "slos": {},
        "differences": [{"key": "cluster.router", "values": ["round_robin", "<i>"]}],
        "comparisons": [{"scenario": "c", "basis": "seeds", "same_requests": True, "metrics": metrics}],
        "points": [
            {"scenario": "c", "unstable": False, "too_short_for": "ttft_s_p99"},
            {"scenario": "a", "unstable": False, "too_short_for": None},
        ],
    }


def test_intervals_in_per_cent_of_the_baseline(tmp_path: Path) -> None:
    compare_page.write_page(tmp_path / "page.html", compared())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>a" not in text and "<i>" not in text
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "What differs in the scenarios", "c against &lt;b&gt;a", "How it was compared",
    ]  # fmt: skip
    (figure,) = (
        json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text)
    )
    # the first on top; what is equal, or has no interval, is not drawn
    assert [line["y"] for line in figure["data"]] == [["preemptions"], ["cache hits"], ["TTFT p95"]]
    ttft = figure["data"][-1]
    assert ttft["x"] == pytest.approx([-0.5])
    assert ttft["error_x"]["array"] == pytest.approx([0.1]) == ttft["error_x"]["arrayminus"]


def test_terminal() -> None:
    stream = io.StringIO()
    print_comparison(compared(), Console(file=stream, width=200))
    text = stream.getvalue()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "<b>a vs c: 2 runs of each under seeds 3 to 4"
    assert "TTFT p95 200 ms 100 ms −100 ms (−50.0 %) −120 ms to −80 ms 0.02 better" in lines
    assert "cache hits 40 % 36 % −4 points (−10.0 %) −6 points to −2 points 0.02 worse" in lines
    assert "preemptions 10 11 +1 (+10.0 %) −3 to +5 0.4 not significant" in lines
    assert "E2E mean 4 s 6 s +2 s (+50.0 %) – –" in lines
    assert "Better: TTFT p95; worse: cache hits. Equal in every run: $/hour." in lines
    assert "warning: 1 of 2 runs are short for a percentile (TTFT p99)" in text

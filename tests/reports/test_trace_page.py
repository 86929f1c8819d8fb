"""The page of ``kvsim trace stats`` as a file. How it looks in a browser: tests/browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvsim.reports import trace as trace_page
from kvsim.workloads import Trace, generate, read
from kvsim.workloads.analysis.stats import trace_stats
from kvsim.workloads.builder import TraceBuilder

DATA = Path(__file__).parents[2] / "scenarios" / "data"


@pytest.fixture(autouse=True)
def short_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_page, "plotly_js", lambda: "/* plotly */")


def page_of(trace: Trace, tmp_path: Path) -> tuple[str, list[dict[str, Any]]]:
    """The page's text and its figures."""
    trace_page.write_page(tmp_path / "page.html", {**trace_stats(trace), "kv_bytes_per_token": None})
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    return text, [
        json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text)
    ]


def test_one_figure_holds_lru_belady_and_unbounded(tmp_path: Path) -> None:
    trace = read(DATA / "ragpulse_days0-2.jsonl.gz")
    text, figures = page_of(trace, tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Capacity", "Requests", "Details"]
    assert len(figures) == 5
    hits = {line["name"]: line["y"] for line in figures[0]["data"]}
    assert list(hits) == ["unbounded", "Belady", "LRU"]
    assert hits["LRU"] == sorted(hits["LRU"]) and hits["LRU"][-1] == pytest.approx(hits["unbounded"][0])
    for figure in figures:
        assert all(len(line["x"]) == len(line["y"]) <= 1000 for line in figure["data"])


def test_a_trace_without_content_says_so(tmp_path: Path) -> None:
    text, figures = page_of(read(DATA / "azure2023_code.csv.gz"), tmp_path)
    assert "Prompts do not say what they contain" in text and len(figures) == 2


def test_few_requests_names_and_equal_times(tmp_path: Path) -> None:
    builder = TraceBuilder()
    for _ in range(2):
        builder.add(0, 32, 1, [builder.scope["a"]], [32], tenant="<b>bold")
    text, figures = page_of(builder.build("<script>alert(1)</script>", {}), tmp_path)
    assert "<b>bold" not in text and "<script>alert(1)" not in text
    assert len(figures) == 2  # neither a rate nor times between uses
    one = generate(
        "lengths",
        requests=1,
        input_tokens=1,
        output_tokens=1,
        arrivals={"process": "constant", "rate_per_s": 1},
    )
    assert len(page_of(one, tmp_path)[1]) == 1

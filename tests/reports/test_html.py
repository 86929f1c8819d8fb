"""The report as a file: complete, self-contained, escaped. How it looks in a browser: tests/browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kvsim.errors import KvsimError
from kvsim.reports import html, plotlyjs
from kvsim.reports.html import write_report
from kvsim.reports.markup import script_json
from kvsim.results.folder import write_results
from kvsim.results.recorder import Recorder

VOID = {"meta", "link", "br", "img", "input", "hr"}
SECTIONS = [
    "Latency",
    "Where the time to first token goes",
    "Load and KV memory over time",
    "KV cache",
    "Utilisation",
    "Tenants",
    "Cost",
    "What the timings stand on",
    "How to make this run again",
]


class Page(HTMLParser):
    """Checks that elements nest, and gathers what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(autouse=True)
def short_library(monkeypatch):
    """4 MB of plotly.js is not what these tests look at."""
    monkeypatch.setattr(html, "plotly_js", lambda: "/* plotly */")


def test_sections_and_charts(result_dir):
    path = write_report(result_dir)
    assert path == result_dir / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.texts["h2"] == SECTIONS
    figures = [json.loads(text) for text in page.texts["script"] if text.startswith('{"data"')]
    assert len(figures) == sum(attrs.get("class") == "chart" for _, attrs in page.elements) >= 9
    for figure in figures:
        assert all(len(trace["x"]) == len(trace["y"]) <= 10_000 for trace in figure["data"])
    assert sorted(os.listdir(result_dir)) == sorted({*os.listdir(result_dir), "report.html"})
    assert not [name for name in os.listdir(result_dir) if name.startswith(".")]


def test_loads_nothing(result_dir):
    page = Page(write_report(result_dir).read_text(encoding="utf-8"))
    for tag, attrs in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed"}
        assert not {"src", "href", "srcset"} & set(attrs)
    assert "@import" not in page.texts["style"][0] and "url(" not in page.texts["style"][0]


def test_names_from_the_trace_are_escaped(result_dir):
    text = write_report(result_dir).read_text(encoding="utf-8")
    assert "<script>alert(" not in text and "<b>bold" not in text
    if "random" in text:
        assert "&lt;script&gt;alert(" in text and "random &lt;b&gt;bold&lt;/b&gt;" in text


def test_json_cannot_leave_its_script_element():
    text = script_json({"name": "</script><script>alert(1)</script>\u2028"})
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"name": "</script><script>alert(1)</script>\u2028"}


def test_the_library_is_plotlys_own_and_stays_inside_its_element():
    text = plotlyjs.plotly_js()
    assert "plotly.js v" in text[:200] and len(text) > 1_000_000
    assert not re.search("</script", text, re.IGNORECASE)


def test_missing_plotly_is_one_line(monkeypatch):
    monkeypatch.setattr(plotlyjs, "find_spec", lambda _: None)
    with pytest.raises(KvsimError, match="plotly is not installed; pip install plotly"):
        plotlyjs.plotly_js()


def test_empty_run_still_has_a_report(outcomes, tmp_path):
    empty = replace(
        outcomes["small_outcome"](),
        recorder=Recorder(),
        makespan_ns=0,
        requests_submitted=1,
        used_ns={},
        links=(),
        tenant_names=(),
    )
    write_results(empty, tmp_path / "out", finish=write_report)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "No request finished: there are no latencies." in page.texts["li"]
    assert "Tenants" not in page.texts["h2"]


def test_report_imports_neither_plotly_nor_pandas(result_dir):
    code = f"""if True:
        import sys
        from kvsim.reports.html import write_report
        write_report({str(result_dir)!r})
        print([name for name in ("plotly", "pandas", "scipy") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_incomplete_folder_is_one_line(result_dir):
    (result_dir / "timeline.parquet").unlink()
    with pytest.raises(KvsimError, match=r"missing timeline\.parquet"):
        write_report(result_dir)


def test_approximate_reuse_has_the_published_quality_beside_it(tmp_path, outcomes):
    quality = {"metric": "F1", "value": "0.02 < lower", "context": "", "source": "its table 3"}
    method = {"name": "mine", "title": "Mine", "paper": "Mine", "overridden": [], "quality": [quality]}
    write_results(replace(outcomes["small_outcome"](), methods=(method,)), tmp_path / "out")
    write_report(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "published quality, not simulated" in text and "0.02 &lt; lower" in text and "its table 3" in text

"""The pages in a real browser: every chart is drawn, no script fails, nothing sticks out on a phone."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from kvsim.reports import compare as compare_page
from kvsim.reports import sweep as sweep_page
from kvsim.reports import trace as trace_page
from kvsim.reports.html import write_report
from kvsim.workloads import read
from kvsim.workloads.analysis.stats import trace_stats

SWEPT = runpy.run_path(str(Path(__file__).parents[1] / "reports" / "test_sweep_page.py"))
COMPARED = runpy.run_path(str(Path(__file__).parents[1] / "reports" / "test_compare_page.py"))
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="neither chromium nor chromium-browser is on PATH"),
]

# Placed into a copy of the report: tells the page around it what happened, once all is drawn.
PROBE = """<script>
const failures = [];
addEventListener("error", (event) => failures.push(event.message));
const tell = () => {
  const charts = [...document.querySelectorAll(".chart")];
  const drawn = charts.filter((box) => box.querySelector(".main-svg path")).length;
  const needed = document.documentElement.scrollWidth;
  parent.postMessage({ failures, width: innerWidth, needed, charts: charts.length, drawn }, "*");
};
addEventListener("load", () => setTimeout(tell, 500));
</script>"""

FRAME = """<!doctype html><iframe src="probed.html" style="width:{width}px;height:800px;border:0"></iframe>
<pre id="told">nothing</pre>
<script>addEventListener("message", (event) => told.textContent = JSON.stringify(event.data));</script>"""


def dump_dom(page: Path, profile: Path) -> str:
    """The document after its scripts ran."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("width", [360, 1280])
def test_report_is_drawn_and_fits(result_dir, tmp_path, width):
    assert_drawn_and_fits(write_report(result_dir), tmp_path, width, num_charts=9)


@pytest.mark.parametrize("width", [360, 1280])
def test_page_about_a_trace_is_drawn_and_fits(tmp_path, width):
    trace = read(Path(__file__).parents[2] / "scenarios" / "data" / "ragpulse_days0-2.jsonl.gz")
    trace_page.write_page(tmp_path / "page.html", {**trace_stats(trace), "kv_bytes_per_token": 131072})
    assert_drawn_and_fits(tmp_path / "page.html", tmp_path, width, num_charts=5)


@pytest.mark.parametrize("width", [360, 1280])
def test_page_about_a_sweep_is_drawn_and_fits(tmp_path, width):
    told = SWEPT["swept"](routers=4, seeds=3)
    sweep_page.write_page(tmp_path / "page.html", told)
    assert_drawn_and_fits(tmp_path / "page.html", tmp_path, width, num_charts=4)


@pytest.mark.parametrize("width", [360, 1280])
def test_page_about_a_plan_is_drawn_and_fits(planned, tmp_path, width):
    assert_drawn_and_fits(planned, tmp_path, width, num_charts=6)


@pytest.mark.parametrize("width", [360, 1280])
def test_page_about_method_cards_is_drawn_and_fits(carded, tmp_path, width):
    assert_drawn_and_fits(carded, tmp_path, width, num_charts=1)


@pytest.mark.parametrize("width", [360, 1280])
def test_page_about_a_comparison_is_drawn_and_fits(tmp_path, width):
    compare_page.write_page(tmp_path / "page.html", COMPARED["compared"]())
    assert_drawn_and_fits(tmp_path / "page.html", tmp_path, width, num_charts=1)


def assert_drawn_and_fits(page: Path, tmp_path: Path, width: int, num_charts: int) -> None:
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + PROBE, 1)
    (tmp_path / "probed.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    dom = dump_dom(tmp_path / "frame.html", tmp_path / "profile")
    told = re.search(r'<pre id="told">(.*?)</pre>', dom)
    assert told is not None, dom[-2000:]
    match = re.fullmatch(
        r'\{"failures":(.*),"width":(\d+),"needed":(\d+),"charts":(\d+),"drawn":(\d+)\}', told[1]
    )
    assert match is not None, told[1]
    failures, seen_width, needed, charts, drawn = match[1], *(int(text) for text in match.groups()[1:])
    assert failures == "[]"
    assert seen_width == width
    assert needed <= width, "the page scrolls sideways"
    assert charts == drawn >= num_charts


def test_charts_stand_in_the_page(result_dir, tmp_path):
    dom = dump_dom(write_report(result_dir), tmp_path / "profile")
    assert dom.count('class="main-svg"') >= 9

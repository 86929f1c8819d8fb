"""The report in a real browser: every chart is drawn, no script fails, nothing sticks out on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvsim.reports.html import write_report

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
    report = write_report(result_dir).read_text(encoding="utf-8")
    (tmp_path / "probed.html").write_text(report.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
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
    assert charts == drawn >= 9


def test_charts_stand_in_the_page(result_dir, tmp_path):
    dom = dump_dom(write_report(result_dir), tmp_path / "profile")
    assert dom.count('class="main-svg"') >= 9

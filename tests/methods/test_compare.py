"""``kvsim methods compare``: a scenario with each card, and the page about it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.cli.main import run_command
from kvsim.methods.load import card_names
from kvsim.reports import methods as methods_page
from kvsim.results.methods_table import loss_text, method_table, methods_warnings

SCENARIO = """\
name: <b>small
cache: {manager: paged}
workload:
  sources:
    - generator: lengths
      options: {requests: 8, input_tokens: 1000, output_tokens: 20, arrivals: {process: constant, rate_per_s: 9}}
"""
CARD = {
    "name": "mine",
    "paper": {"title": "Mine <i>"},
    "layers": ["quantization"],
    "overlay": {"cache": {"codec": {"keys": {"bits": 8, "group": 64}, "values": {"bits": 8, "group": 64}}}},
    "claims": [{"kind": "memory", "metric": "KV", "value": "< half"}],
    "modelled": ["something"],
    "approximated": ["something else"],
    "quality": [
        {"metric": "F1", "value": "3 % lower", "loss": 3, "source": "its table 3"},
        {"metric": "accuracy", "value": "1 % lower", "loss": 1, "source": "its table 4"},
    ],
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods_page, "plotly_js", lambda: "/* plotly */")
    Path("mine.yaml").write_text(yaml.safe_dump(CARD))
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO)
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code = run_command(["methods", "compare", *map(str, arguments), "--jobs", "1", "--out", "out", "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def row_of(told: dict[str, Any], method: str) -> dict[str, Any]:
    (row,) = (row for row in told["methods"] if row["method"] == method)
    return row


def test_bytes_are_those_of_the_parts_and_cards_that_do_not_fit_say_why(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = "kivi,streaming.yaml,mine.yaml,ragcache,cacheblend,vectorq"
    Path("streaming.yaml").write_text(
        yaml.safe_dump(
            {
                **CARD,
                "name": "streaming",
                "overlay": {"cache": {"tokens": {"score": "position", "budget": 250}}},
                "quality": [],
            }
        )
    )
    told = said(capsys, small, "--only", only, "--slo", "ttft=10s")
    assert told["goodput"] == "goodput_requests_per_s" and told["slos"] == {"ttft_s": 10.0}
    none = row_of(told, "none")
    assert told["methods"][0] == none and none["paper"] is None
    # 32 layers x 8 KV heads x 128 x 2 x 2 bytes; mine: 8 + 32 / 64 of 16 bits; kivi: 872 tokens in 3 bits, 128 in 16
    assert none["kv_bytes_per_token"] == 131072
    assert row_of(told, "mine")["kv_bytes_per_token"] == 131072 * 8.5 / 16
    assert row_of(told, "kivi")["kv_bytes_per_token"] == (872 * 131072 * 3 / 16 + 128 * 131072) / 1000
    assert row_of(told, "streaming")["kv_bytes_per_token"] == 131072 * 250 / 1000
    assert all(row["goodput_requests_per_s"] > 0 for row in told["methods"])
    assert row_of(told, "mine")["published_loss"] == 3  # the largest
    assert none["exact"] and not row_of(told, "kivi")["exact"]
    assert none["peak_held_bytes_of_a_replica"] > row_of(told, "kivi")["peak_held_bytes_of_a_replica"] > 0
    refused = {each["method"]: each["reason"] for each in told["refused"]}
    assert "similar_to" in refused["vectorq"] and "\n" not in refused["vectorq"]
    # no prompt says what it contains, so a tree of prefixes finds nothing
    assert row_of(told, "ragcache")["without_effect"] and not row_of(told, "mine")["without_effect"]
    assert not row_of(told, "none")["without_effect"]


def test_the_page(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, small, "--only", "mine.yaml,kivi,vectorq")
    text = Path("out/report.html").read_text(encoding="utf-8")
    assert "<b>small" not in text and "<i>" not in text
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Bytes against goodput", "All cards", "Cards that do not fit this scenario", "Sources, claims and limits",
    ]  # fmt: skip
    (figure,) = (
        json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text)
    )
    groups = {trace["name"]: trace for trace in figure["data"]}
    assert list(groups) == ["no card", "up to 5 %", "no figure"]
    (hover,) = groups["up to 5 %"]["customdata"]
    for part in (
        "<b>mine</b>",
        "Mine &lt;i&gt;",
        "KV &lt; half",
        "F1 3 % lower [its table 3]",
        "something else",
    ):
        assert part in hover.replace("<br>  ", " ")
    assert groups["no card"]["x"] == [131.072] and groups["no card"]["marker"]["symbol"] == "diamond-open"
    assert groups["no figure"]["marker"]["color"] != groups["up to 5 %"]["marker"]["color"]
    assert figure["layout"]["yaxis"]["title"] == "requests/s"
    assert loss_text(row_of(told, "mine")) == "3 %"
    header, rows = method_table(told)
    assert {row[0]: row[3] for row in rows}["mine"] == "0.53×" and len(rows[0]) == len(header)


def test_it_goes_on_where_it_was(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = said(capsys, small, "--only", "mine.yaml,kivi")
    gone = sorted(Path("out/points").iterdir())[0]
    gone.unlink()
    ran: list[str] = []
    from kvsim.study import execute

    real = execute.simulate
    monkeypatch.setattr(execute, "simulate", lambda *each: ran.append("") or real(*each))
    again = said(capsys, small, "--only", "mine.yaml,kivi")
    assert len(ran) == 1 and again == first
    assert run_command(["methods", "compare", str(small), "--only", "kivi", "--out", "out"]) == 2
    assert "another method-comparison" in capsys.readouterr().err


def test_more_memory_by_larger_blocks_is_told(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (small, "--only", "kivi,h2o", "--set", "engine.max_model_len=4000")
    told = said(capsys, *arguments, "--set", "cache.num_gpu_blocks=2000")
    (line,) = (line for line in methods_warnings(told) if "more HBM" in line)
    assert "than the 4.19 GB without a card: kivi 8.39 GB. cache.num_gpu_blocks counts" in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "kivy"], "--only: no method is called 'kivy'; did you mean 'kivi'?"),
        (["--only", "KIVI"], "--only: no method is called 'KIVI'; did you mean 'kivi'?"),
        (["--only", "zipvl"], "--only: 'zipvl' has no card: it needs"),
        (["--only", "kivi,kivi"], "--only kivi: named twice"),
        (["--only", ","], "--only: expected names of cards"),
        (["--only", "kivi", "--set", "method=h2o"], "--set method=h2o: cards are chosen by --only here"),
        (["--only", "kivi", "--set", "model=llama-3.1-70b"], "the scenario without a card cannot run"),
        (["--only", "kivi", "--slo", "tft=1s"], "--slo tft: no such metric"),
        (["--only", "gone.yaml"], "gone.yaml"),
    ],
)
def test_mistakes(small: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert run_command(["methods", "compare", str(small), "--jobs", "1", *arguments]) == 2
    err = capsys.readouterr().err
    assert line in err and len(err.strip().splitlines()) == 1


def test_all_cards_are_compared_by_default(small: Path) -> None:
    from kvsim.study.methods import chosen_names

    assert chosen_names([]) == card_names()
    assert chosen_names(["kivi, h2o", "mine.yaml"]) == ["kivi", "h2o", "mine.yaml"]

"""``kvsim methods`` and what a run says of the cards that it used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.cli.main import run_command
from kvsim.methods.load import shipped_cards

SCENARIO = """\
method: mine.yaml
cache: {num_gpu_blocks: 2000}
workload:
  sources:
    - generator: rag
      options: {requests: 20, corpus_chunks: 5, chunk_tokens: 200, chunks_per_query: 2, query_tokens: 20,
                output_tokens: 4, arrivals: {process: constant, rate_per_s: 9}}
"""
CARD: dict[str, Any] = {
    "name": "mine",
    "paper": {"title": "Mine", "where": "a shelf"},
    "layers": ["eviction-policy"],
    "overlay": {"cache": {"num_gpu_blocks": 3000, "eviction": "sieve"}},
    "modelled": ["something"],
    "quality": [{"metric": "F1", "value": "0.02 lower", "source": "its table 3"}],
}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(list(arguments)) == 0
    return capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(said(capsys, "methods", "list", "--json"))
    assert all(list(row) == ["name", "layers", "runnable", "reason", "paper"] for row in rows)
    assert {row["name"] for row in rows if row["runnable"]} >= set(shipped_cards())
    text = said(capsys, "methods", "list", "--runnable")
    assert "ragcache" in text and "triforce" not in text


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "methods", "show", "marconi")
    for part in ("arXiv:2411.19379", "flops_per_byte", "modelled", "out of reach", "claimed", "34.4x"):
        assert part in text
    assert json.loads(said(capsys, "methods", "show", "marconi", "--json"))["runnable"] is True
    text = said(capsys, "methods", "show", "triforce")
    assert "no card: it needs" in text and "2.31x" in text
    assert json.loads(said(capsys, "methods", "show", "triforce", "--json"))["runnable"] is False


def test_a_run_says_which_cards_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SCENARIO)
    Path("mine.yaml").write_text(yaml.safe_dump(CARD))
    summary = json.loads(said(capsys, "run", "s.yaml", "--no-report", "--json"))
    assert summary["methods"] == [
        {"name": "mine", "title": "Mine", "paper": "Mine (a shelf)", "overridden": ["cache.num_gpu_blocks"]}
    ]
    (quality,) = summary["cache"]["published_quality"]
    assert (quality["method"], quality["value"], quality["source"]) == ("mine", "0.02 lower", "its table 3")
    resolved = yaml.safe_load(Path("results/s/scenario.resolved.yaml").read_text())
    assert resolved["cache"]["eviction"] == "sieve" and resolved["cache"]["num_gpu_blocks"] == 2000
    assert resolved["methods"] == [str(tmp_path / "mine.yaml")]
    text = said(capsys, "run", "s.yaml", "--out", "again")
    assert "methods: mine" in text and "sets cache.num_gpu_blocks otherwise than the card of mine" in text


def test_methods_are_an_axis_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SCENARIO.replace("method: mine.yaml\n", ""))
    told = json.loads(
        said(capsys, "sweep", "s.yaml", "--set", "method=null,marconi", "--jobs", "1", "--json")
    )
    assert [point["method"] for point in told["points"]] == ["null", "marconi"]

"""What a run with a cache of responses and two models writes: the summary counts what the rows say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvsim.cli.main import run_command
from kvsim.results.units import number, percent

SCENARIO = """\
method: optimal-caching-multiplexing
seed: 2
cluster:
  response_cache: {hits: similarity, threshold: 0.8, source: drawn, responses: 20, lookup: 4 ms}
  small_model: {usd_per_hour: 3.0}
workload:
  sources:
    - generator: queries
      options:
        {requests: 400, queries: 40, input_tokens: 100, output_tokens: 20, paraphrase_ratio: 0.5, right_ratio: 0.6,
         similarity_right: {distribution: uniform, low: 0.7, high: 1},
         similarity_wrong: {distribution: uniform, low: 0.6, high: 0.9},
         arrivals: {process: poisson, rate_per_s: 10}}
"""


def test_summary_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario, out = tmp_path / "both.yaml", tmp_path / "out"
    scenario.write_text(SCENARIO)
    assert run_command(["run", str(scenario), "--out", str(out), "--check"]) == 0
    said = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    rows = pq.read_table(out / "requests.parquet").to_pylist()
    assert summary["requests_submitted"] == summary["requests_completed"] == len(rows) == 400

    by_response = {
        name: [row for row in rows if row["response"] == name] for name in ("miss", "hit", "wrong")
    }
    assert all(by_response.values()), "each happens"
    found = summary["responses"]
    wrong, hits = len(by_response["wrong"]), len(by_response["wrong"]) + len(by_response["hit"])
    assert (found["lookups"], found["hits"], found["wrong_hits"]) == (400, hits, wrong)
    assert (found["spared_input_tokens"], found["spared_output_tokens"]) == (100 * hits, 20 * hits)
    assert (found["hit_ratio"], found["wrong_response_ratio"]) == (hits / 400, wrong / 400)
    assert found["source"] == "drawn" and "wrong" in said and "[drawn]" in said
    assert all(row["lookup_s"] == 0.004 for row in rows) and found["entries"] == 20
    for row in by_response["hit"] + by_response["wrong"]:
        assert (row["replica"], row["model"], row["ttft_s"], row["e2e_s"]) == (-1, None, 0.004, 0.004)

    models = [row["model"] for row in by_response["miss"]]
    small = summary["small_model"]
    assert {name: small[name] for name in ("large", "small", "both")} == {
        name: models.count(name) for name in ("large", "small", "both")
    }
    assert all((row["replica"] == -1) == (row["model"] == "small") for row in by_response["miss"])
    assert small["spared_output_tokens"] == 20 * models.count("small")
    usd = summary["makespan_s"] / 3600 * 3
    assert small["usd"] == pytest.approx(usd)
    assert summary["cost"]["usd"] == pytest.approx(
        usd + summary["cost"]["gpu_hours"] * summary["cost"]["usd_per_gpu_hour"]
    )
    for row in rows:
        assert row["ttft_s"] == row["queue_s"] + row["load_s"] + row["prefill_s"] + row["host_s"]

    page = (out / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    section = re.search(r"<section><h2>In front of the replicas</h2>.*?</section>", page, re.DOTALL)
    assert section is not None
    text = section[0]
    assert (
        f"<b>{percent(len(by_response['hit']) / 400)}</b>" in text
        and f"<b>{percent(wrong / 400)}</b>" in text
    )
    assert f"<b>{percent(models.count('small') / 400)}</b>" in text
    assert f"<dd>{number(100 * hits + 100 * models.count('small'))} prompt tokens" in text
    assert "<dt>source of hits</dt><dd>drawn</dd>" in text

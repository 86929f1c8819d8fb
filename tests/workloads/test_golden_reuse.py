"""Reuse of the shipped traces through the readers, against a stand-alone script on the raw rows."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from kvsim.workloads import read
from kvsim.workloads.analysis.reuse import chunk_reuse, prefix_reuse
from kvsim.workloads.runs import join_runs

SCRIPT = Path(__file__).with_name("golden_reuse.py")
GOLDEN = json.loads(SCRIPT.with_suffix(".json").read_text())
ONE_BY_ONE = {"arrivals": {"process": "constant", "rate_per_s": 0.001}}


def test_the_written_figures_are_the_script_s():
    assert json.loads(json.dumps(runpy.run_path(str(SCRIPT))["figures"]())) == GOLDEN


@pytest.mark.parametrize(
    ("file", "options", "name"),
    [
        ("mooncake_conversation_1000.jsonl.gz", {}, "mooncake"),
        ("lmcache_miniswe.jsonl.gz", {}, "miniswe"),
        ("lmcache_miniswe.jsonl.gz", {"loop": "open"}, "miniswe"),
        ("taubench_gpt4o_airline.jsonl.gz", ONE_BY_ONE, "taubench_one_session_after_another"),
    ],
)
def test_block_ids(data, file, options, name):
    trace = read(data / file, **options)
    for version in (trace, join_runs(trace)):
        assert int(version.input_tokens.sum()) == GOLDEN[name]["input_tokens"]
        assert int(prefix_reuse(version).sum()) == GOLDEN[name]["prefix_tokens"]
        blocks = prefix_reuse(version, block_tokens=16, keep_last_token=True)
        assert int(blocks.sum()) == GOLDEN[name]["prefix_tokens_16_keep_last"]


def test_ragpulse(data):
    trace = read(data / "ragpulse_days0-2.jsonl.gz")
    assert int(prefix_reuse(trace).sum()) == GOLDEN["ragpulse"]["prefix_tokens"]
    assert list(chunk_reuse(trace)) == GOLDEN["ragpulse"]["passage_and_web_tokens"]

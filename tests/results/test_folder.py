"""The result folder: complete or absent, careful with what is there, the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from kvsim.errors import KvsimError, ScenarioError
from kvsim.results import folder
from kvsim.results.folder import check_output_folder, write_results
from kvsim.results.read import load_results

FILES = ["requests.parquet", "run.json", "scenario.resolved.yaml", "summary.json", "timeline.parquet"]


def test_files_and_columns(small_outcome, tmp_path):
    out = tmp_path / "runs" / "small"
    summary = write_results(small_outcome(), out)
    assert sorted(os.listdir(out)) == FILES
    assert os.listdir(out.parent) == ["small"]
    assert json.loads((out / "summary.json").read_text()) == summary
    scenario = yaml.safe_load((out / "scenario.resolved.yaml").read_text())
    assert scenario == {"name": "small", "engine": {"max_num_seqs": 8}, "traces": ["a.jsonl"]}
    rows = pq.read_table(out / "requests.parquet").to_pylist()
    assert rows[0] == pytest.approx(
        {
            "request": 0,
            "arrival_s": 0.0,
            "input_tokens": 100,
            "output_tokens": 5,
            "cached_tokens": 50,
            "ttft_s": 0.31,
            "e2e_s": 0.71,
            "tpot_s": 0.1,
            "queue_s": 0.1,
            "load_s": 0.0,
            "prefill_s": 0.2,
            "host_s": 0.01,
            "replica": 0,
            "preemptions": 0,
            "session": "chat-1",
            "tenant": "gold",
            "approximate_tokens": 0,
            "hit_tokens_hbm": 40,
            "hit_tokens_ddr": 10,
        }
    )
    assert [row["request"] for row in rows] == [0, 1, 2]
    assert [row["tpot_s"] is None for row in rows] == [False, True, False]
    assert [row["session"] for row in rows] == ["chat-1", None, "chat-1"]
    assert [row["tenant"] for row in rows] == ["gold", "silver", None]
    timeline = pq.read_table(out / "timeline.parquet").to_pylist()
    assert timeline[-1] == {
        "t_s": 5.0,
        "replica": 0,
        "running": 3,
        "waiting": 2,
        "step_tokens": 64,
        "held_bytes": 4 * 10**9,
        "used_bytes_hbm": 8 * 10**9,
        "used_bytes_ddr": 10**9,
    }


def test_parts_add_up_exactly(random_outcome, tmp_path):
    write_results(random_outcome(2000), tmp_path / "out")
    table = load_results(tmp_path / "out").requests
    ttft_s, *parts = (
        table[name].to_pylist() for name in ("ttft_s", "queue_s", "load_s", "prefill_s", "host_s")
    )
    assert all(t == q + l + p + h for t, q, l, p, h in zip(ttft_s, *parts, strict=True))  # noqa: E741


def test_same_run_same_bytes(small_outcome, tmp_path):
    for name, loop_wall_s in (("a", 0.5), ("b", 0.9)):
        write_results(small_outcome(loop_wall_s), tmp_path / name)
    for name in ("requests.parquet", "timeline.parquet", "scenario.resolved.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    a, b = (load_results(tmp_path / name).summary for name in "ab")
    assert a.pop("loop_wall_s") == 0.5 and b.pop("loop_wall_s") == 0.9
    assert a == b


def test_writing_imports_neither_plotly_nor_pandas(tmp_path):
    code = f"""if True:
        import runpy, sys
        from kvsim.results.folder import write_results
        outcomes = runpy.run_path({str(Path(__file__).parent / "outcomes.py")!r})
        write_results(outcomes["small_outcome"](), {str(tmp_path / "out")!r})
        print([name for name in ("plotly", "pandas", "scipy", "torch") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_run_names_no_host(small_outcome, tmp_path):
    write_results(small_outcome(), tmp_path / "out")
    assert os.uname().nodename not in (tmp_path / "out" / "run.json").read_text()


def test_finish_adds_files_before_the_folder_appears(small_outcome, tmp_path):
    def finish(path):
        assert not (tmp_path / "out").exists() and (path / "summary.json").exists()
        (path / "report.html").write_text("<html>")

    write_results(small_outcome(), tmp_path / "out", finish=finish)
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*FILES, "report.html"])


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("broken", ["write_timeline", "_replace"])
def test_failure_midway_changes_nothing(small_outcome, tmp_path, monkeypatch, broken, old):
    def fail(*_):
        raise RuntimeError("power cut")

    out = tmp_path / "out"
    if old:
        write_results(small_outcome(1.5), out)
    monkeypatch.setattr(folder, broken, fail)
    with pytest.raises(RuntimeError, match="power cut"):
        write_results(small_outcome(), out, force=True)
    assert os.listdir(tmp_path) == (["out"] if old else [])
    assert not old or load_results(out).summary["loop_wall_s"] == 1.5


def test_unwritable_disk_is_one_line(small_outcome, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_requests", fail)
    with pytest.raises(ScenarioError, match="No space left on device"):
        write_results(small_outcome(), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_force_replaces_results_only(small_outcome, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_results(small_outcome(), out)  # an empty folder needs no force
    with pytest.raises(ScenarioError, match="already holds results; give --force"):
        write_results(small_outcome(), out)
    write_results(replace(small_outcome(), seed=8), out, force=True)
    assert load_results(out).summary["seed"] == 8
    assert os.listdir(tmp_path) == ["out"]


def test_foreign_folder_is_never_touched(small_outcome, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(ScenarioError, match=r"holds other files \(thesis.tex\)"):
            check_output_folder(tmp_path, force)
    with pytest.raises(ScenarioError, match="is a file"):
        check_output_folder(tmp_path / "thesis.tex", force=True)
    with pytest.raises(ScenarioError, match="is a file, not a folder"):
        check_output_folder(tmp_path / "thesis.tex" / "out")
    check_output_folder(tmp_path / "a" / "b" / "c")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_incomplete_folder_is_said(small_outcome, tmp_path):
    with pytest.raises(KvsimError, match="no such result folder"):
        load_results(tmp_path / "nowhere")
    write_results(small_outcome(), tmp_path / "out")
    (tmp_path / "out" / "requests.parquet").write_text("not parquet")
    with pytest.raises(KvsimError, match=r"requests\.parquet: not a parquet file"):
        _ = load_results(tmp_path / "out").requests
    (tmp_path / "out" / "requests.parquet").unlink()
    with pytest.raises(KvsimError, match=r"missing requests\.parquet"):
        load_results(tmp_path / "out")
    (tmp_path / "out" / "requests.parquet").touch()
    (tmp_path / "out" / "summary.json").write_text("{")
    with pytest.raises(KvsimError, match=r"summary\.json: not JSON"):
        load_results(tmp_path / "out")

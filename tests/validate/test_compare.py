"""Errors by hand, on three requests and an engine that costs nothing beyond its kernels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvsim.validate.compare import compare
from kvsim.validate.folder import read_run
from kvsim.validate.measured import Requests, most_at_once
from kvsim.validate.replay import Assumptions, Replayed, engine_of, replay

from .conftest import META, REQUESTS, Cli, write_gz

IDEAL = Assumptions("ideal")
UNKNOWN_START = (
    "small.chat: small.meta.json does not say in 'workloads' what the engine had served before; replayed as if it had loaded "
    "all its kernels"
)


def forged(base: Replayed, **columns: list[float]) -> Replayed:
    """A prediction with other columns, lists of three."""
    requests = {name: getattr(base.requests, name) for name in base.requests.__dataclass_fields__}
    requests.update({name: np.array(values) for name, values in columns.items()})
    return Replayed(type(base.requests)(**requests), 2.02, base.t_s, base.running, base.waiting)


def test_signed_errors_by_hand(runs: Path) -> None:
    run = read_run(runs, "small.chat")
    base = replay(run, IDEAL)
    predicted = forged(
        base,
        ttft_s=[0.03, 0.03, 0.01],
        e2e_s=[0.13, 0.20, 0.01],
        tpot_s=[0.01, 0.017, np.nan],
        cached_tokens=[0, 480, 0],
    )
    slower = forged(predicted, ttft_s=[0.03, 0.0309, 0.01], e2e_s=[0.1313, 0.202, 0.0101])
    found = compare(run, predicted, slower)
    ttft = found["metrics"]["ttft_s"]
    assert ttft["p50"] == pytest.approx({"measured": 0.02, "predicted": 0.03, "error": 0.5})
    assert ttft["mean"]["error"] == pytest.approx(0.0)
    assert found["metrics"]["tpot_s"]["p50"]["measured"] == pytest.approx(0.015)  # of 0.01 and 0.02, not 0
    assert found["metrics"]["tpot_s"]["p50"]["error"] == pytest.approx(0.0135 / 0.015 - 1)
    assert found["wape_e2e"] == pytest.approx((0.01 + 0.04) / 0.37)
    assert found["hit_token_ratio"]["error"] == pytest.approx(-16 / 1124)
    assert found["identical_cached_tokens_ratio"] == pytest.approx(2 / 3)
    assert found["makespan_s"] == pytest.approx({"measured": 2.01, "predicted": 2.02, "error": 0.01 / 2.01})
    assert found["throughput"]["output_tokens_per_s"]["error"] == pytest.approx(2.01 / 2.02 - 1)
    assert found["preemptions"]["measured"] is None and found["preemptions"]["error"] is None
    assert found["elasticity"]["e2e_s"]["p50"] == pytest.approx(0.01)
    assert found["request_errors"]["ttft_s"]["p50"] == pytest.approx(0.0)
    assert found["request_errors"]["ttft_s"]["mean_absolute"] == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert found["time_difference"]["ttft_mean_s"]["error"] == pytest.approx(0.0)
    assert found["time_difference"]["decode_mean_s"]["error"] == pytest.approx(-0.03 / 3)


def test_shared_contents_hit_and_without_the_file_they_do_not(runs: Path) -> None:
    assert replay(read_run(runs, "small.chat"), IDEAL).requests.cached_tokens.tolist() == [0, 496, 0]
    (runs / "workloads" / "chat.jsonl.gz").unlink()
    assert replay(read_run(runs, "small.chat"), IDEAL).requests.cached_tokens.tolist() == [0, 0, 0]


def test_rows_keep_their_numbers_whatever_the_order_of_the_table(runs: Path) -> None:
    header, *rows = REQUESTS.splitlines()
    write_gz(runs / "small.chat.requests.csv.gz", "\n".join([header, *reversed(rows)]) + "\n")
    run = read_run(runs, "small.chat")
    assert run.requests.number.tolist() == [0, 1, 2]
    assert replay(run, IDEAL).requests.cached_tokens.tolist() == [0, 496, 0]


def test_a_request_that_was_cut_off_is_played_and_not_compared(runs: Path) -> None:
    rows = REQUESTS.splitlines(keepends=True)
    write_gz(runs / "small.chat.requests.csv.gz", "".join(rows[:2] + rows[3:]))
    run = read_run(runs, "small.chat")
    assert len(run.trace) == 3 and run.rows.tolist() == [0, 2]
    assert compare(run, replay(run, IDEAL), replay(run, IDEAL, 1.01))["requests"] == 2


def test_turns_do_not_overlap(runs: Path) -> None:
    """A client that waited for its answers: the next submission follows the predicted end."""
    late = REQUESTS.replace("chat-1,1.0,1.0", "chat-1,1.0,0.13").replace("chat-2,2.0,2.0", "chat-2,2.0,0.38")
    write_gz(runs / "small.chat.requests.csv.gz", late)
    run = read_run(runs, "small.chat")
    assert run.trace.after.tolist() == [-1, 0, 1]
    assert run.trace.think_ns.tolist() == pytest.approx([0, 10_000_000, 10_000_000], abs=2)
    ends = replay(run, IDEAL, 10.0).requests
    gaps = ends.arrival_s[1:] - (ends.arrival_s + ends.e2e_s)[:-1]
    assert gaps.tolist() == pytest.approx([0.01, 0.01])


def test_elasticity_of_pure_decode_is_that_of_the_step(runs: Path) -> None:
    run = read_run(runs, "small.chat")
    base, slower = replay(run, IDEAL), replay(run, IDEAL, 1.01)
    changes = compare(run, base, slower)["elasticity"]
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert changes[name]["p50"] == pytest.approx(0.01, abs=1e-5)


def test_kv_type_and_host_memory_come_from_the_meta_file(runs: Path) -> None:
    engine = {**META["engine"], "kv_cache_dtype": "fp8", "kv_offloading_size": 2.0}
    (runs / "small.meta.json").write_text(json.dumps({**META, "engine": engine}))
    setup = read_run(runs, "small.chat").setup
    assert setup.model.kv_bytes_per_token == 65536
    assert setup.host_bytes == 2 * 2**30
    replay(read_run(runs, "small.chat"), Assumptions())


def test_json_shape(cli: Cli, runs: Path) -> None:
    code, out, _ = cli("validate", runs, "--json")
    (found,) = json.loads(out)["workloads"]
    assert code == 0
    assert found["name"] == "small.chat"
    assert (found["kind"], found["saturated"]) == ("workload", False)
    assert set(found["metrics"]) == {"ttft_s", "tpot_s", "e2e_s"}
    for metric in found["metrics"].values():
        assert set(metric) == {"mean", "p50", "p95", "p99"}
        assert all(set(pair) == {"measured", "predicted", "error"} for pair in metric.values())
    assert set(found["hit_token_ratio"]) == {"measured", "predicted", "error"}
    assert isinstance(found["wape_e2e"], float)


def test_table_and_page(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = cli("validate", runs, "--html", runs / "page.html")
    assert code == 0
    assert "small.chat" in out and "TTFT p95" in out
    assert err == f"{UNKNOWN_START}\npage: {runs / 'page.html'}\n"
    text = (runs / "page.html").read_text()
    assert "small.chat" in text and "<script src" not in text and "http-equiv" not in text


def test_what_the_files_do_not_tell_is_said(cli: Cli, runs: Path) -> None:
    """Without contents nothing is shared in the replay, whatever was cached; without iterations there is no step to price."""
    (runs / "workloads" / "chat.jsonl.gz").unlink()
    code, _, err = cli("validate", runs, "--teacher-forced")
    assert code == 0
    assert err.splitlines() == [
        "small.chat: 44% of its prompt tokens were cached when it was measured, and nothing is shared in the replay: "
        "workloads/chat.jsonl.gz is missing, or says nothing of contents",
        UNKNOWN_START,
        "small.chat: no small.chat.iterations.csv.gz, so no steps to price",
    ]


def test_what_an_engine_has_served_before_a_run(runs: Path) -> None:
    """Kernels of larger batches are loaded when the first of them comes: later workloads of a start find them loaded."""
    assert read_run(runs, "small.chat").served_at_once is None  # the meta file says nothing
    meta = json.loads((runs / "small.meta.json").read_text())

    def served(*workloads: object) -> int | None:
        (runs / "small.meta.json").write_text(json.dumps({**meta, "workloads": [*workloads]}))
        run = read_run(runs, "small.chat")
        engine, _ = engine_of(run, Assumptions())
        loaded = {None: (), 0: (9, 17, 25, 33, 41, 49, 57, 65), 20: (25, 33, 41, 49, 57, 65)}
        assert engine.lazy_rows == loaded[run.served_at_once]
        ideal, _ = engine_of(run, IDEAL)
        assert ideal.lazy_rows == ()
        return run.served_at_once

    chat = {"name": "chat", "requests": 3}
    assert served(chat) == 0
    assert served({"name": "gone", "requests": 20}, chat, {"name": "later", "requests": 99}) == 20
    assert served({"name": "gone"}, chat) is None  # nor how many requests it had
    assert served({"name": "other"}) is None
    assert served("chat") is None
    assert served({"name": "gone", "requests": -5}, chat) is None
    assert served({"name": 5}, chat) is None


def test_most_requests_at_once() -> None:
    """Between their first and last tokens; tokens of one step are in it together, also those of one token."""
    rows = [
        (0.0, 1.0, 3.0),
        (0.5, 1.0, 1.9),
        (2.0, 0.5, 1.0),
        (9.0, 1.0, 1.0),
        (9.0, 1.0002, 1.0002),
        (9.0, 1.0, 1.0),
    ]
    submit_s, ttft_s, e2e_s = map(np.array, zip(*rows, strict=True))
    numbers = np.ones(len(rows), dtype=np.int64)
    requests = Requests(numbers, submit_s, submit_s, numbers, numbers, numbers, ttft_s, e2e_s)
    assert most_at_once(requests) == 3

"""Mistakes in scenarios and traces, end to end: one clear line, exit code 2, and nothing written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kvsim.cli.main import run_command

SCENARIO = """\
name: small
workload:
  sources:
    - {name: trace, file: trace.jsonl}
"""
GOOD = {"arrival_s": 0.5, "input_tokens": 300, "output_tokens": 8}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a scenario and a trace of three requests."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SCENARIO)
    write_trace(GOOD, GOOD, GOOD)
    return tmp_path


def write_trace(*lines: object) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("trace.jsonl").write_text("\n".join(text) + "\n")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, scenario: str = "small.yaml") -> str:
    """The one line that ``kvsim run`` says; it must have exited with 2 and written nothing."""
    before = sorted(path.name for path in Path().rglob("*"))
    code = run_command(["run", scenario, *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err and "internal error" not in err
    assert sorted(path.name for path in Path().rglob("*")) == before
    return err.rstrip("\n")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    code = run_command(["run", "small.yaml", "--no-report", "--json", "--check", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    summary: dict[str, object] = json.loads(out)
    return summary


def test_the_good_one_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)["requests_completed"] == 3


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("name: small", "name: small\nmodle: x", "small.yaml.modle: unknown key; did you mean 'model'?"),
        (
            "name: small",
            "name: small\ncache: {evicton: lru}",
            "small.yaml.cache.evicton: unknown key; did you mean 'eviction'?",
        ),
        (
            "file: trace.jsonl",
            "file: trace.jsonl, sahre: 1",
            "small.yaml.workload.sources.0.sahre: unknown key; did you mean 'share'?",
        ),
        (
            "name: small",
            "name: small\nname: twice",
            "small.yaml, line 2: bad YAML: the key 'name' is given twice",
        ),
        ("trace.jsonl", "nothing.jsonl", None),
        ("name: small", "name: [small", None),
    ],
)
def test_a_mistake_in_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, line: str | None
) -> None:
    Path("small.yaml").write_text(SCENARIO.replace(before, after))
    said = fails(capsys)
    if line is not None:
        assert said == line
    else:
        assert said.startswith("small.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.gpus=2", "--set cluster.gpus: unknown key; did you mean 'gpu'?"),
        (
            "cache.tiers=[{name: ddr, capacity: 64 GBit}]",
            "--set cache.tiers.0.capacity: unknown unit 'GBit' in '64 GBit'; known here: ",
        ),
        (
            "cache.tiers=[{name: ddr, capacity: 64}]",
            "--set cache.tiers.0.capacity: 64 has no unit; write '64 GB' or",
        ),
        ("workload.duration=5 GB", "--set workload.duration: unknown unit 'GB' in '5 GB'; known here: "),
        ("cluster.replicas=0", "--set cluster.replicas: must be at least 1, found 0"),
        ("cluster.replicas=two", "--set cluster.replicas: expected a whole number, found 'two'"),
        (
            "cache.manager=prefix_treee",
            "cache.manager: no cache manager is called 'prefix_treee'; did you mean 'prefix_tree'?",
        ),
        ("cache.eviction=lrru", "cache.eviction: no eviction policy is called 'lrru'; did you mean 'lru'?"),
        ("cache.eviction={policy: ttl}", "cache.eviction: eviction policy 'ttl' needs the option 'seconds'"),
        (
            "cache.eviction={policy: ttl, second: 3}",
            "cache.eviction: eviction policy 'ttl' has no option 'second'; did you mean 'seconds'?",
        ),
        (
            "cache.eviction={policy: ttl, seconds: -1}",
            "cache.eviction: eviction policy 'ttl': seconds: expected a number of at least 0, found -1",
        ),
        (
            "cache.eviction={policy: pinned, kinds: [sytem]}",
            "cache.eviction: eviction policy 'pinned': kinds: no kind is called 'sytem'; did you mean 'system'?",
        ),
        (
            "cache.eviction={policy: lru, share: 1}",
            "cache.eviction: eviction policy 'lru' has no option 'share'; it has none",
        ),
        ("cache.eviction={seconds: 3}", "--set cache.eviction: 'policy' is missing; write a name, or"),
        (
            "cache.tiers=[{name: ddr, capacity: 1 GB, eviction: {policy: belady, noise: x}}]",
            "cache.tiers.0.eviction: eviction policy 'belady': noise: expected a number of at least 0, found 'x'",
        ),
        ("cache.eviction=explicit_free", "eviction policy 'explicit_free': the workload names no sessions"),
        (
            "cluster.router=prefix-aware",
            "cluster.router: no router is called 'prefix-aware'; did you mean 'prefix_aware'?",
        ),
        (
            "cluster.router={policy: consistent_hash, keys: session}",
            "cluster.router: router 'consistent_hash' has no option 'keys'; did you mean 'key'?",
        ),
        (
            "cluster.router={policy: session_affinity, spill_factor: 0}",
            "cluster.router: router 'session_affinity': spill_factor: expected a number of at least 1, found 0",
        ),
        (
            "cluster.router={policy: prefix_aware, staleness: 1}",
            "cluster.router: router 'prefix_aware' has no option 'staleness'; did you mean 'staleness_s'?",
        ),
        (
            "cluster.admission.late=defer",
            "cluster.admission.late: nothing is late without cluster.admission.ttft",
        ),
        (
            "cluster.admission={ttft: 1 s, late: defer}",
            "cluster.admission.late: 'defer' gives late requests a low priority, which engine.queue 'fcfs' does not heed",
        ),
        (
            "cluster.admission={rate_limit: {requests_per_s: 0}}",
            "--set cluster.admission.rate_limit.requests_per_s: must be greater than 0",
        ),
        ("clients.timeout=10", "--set clients.timeout: 10 has no unit; write '10 "),
        (
            "clients={cancel: {share: 2, after: 1 s}}",
            "--set clients.cancel.share: must be at most 1.0, found 2",
        ),
        ("clients={cancel: {share: 0.1}}", "--set clients.cancel.after: missing; this key has no default"),
        ("clients={timout: 10 s}", "--set clients.timout: unknown key; did you mean 'timeout'?"),
        ("engine.queue=vct", "engine.queue: no queue order is called 'vct'; did you mean 'vtc'?"),
        (
            "engine.queue={policy: vtc, output_weight: x}",
            "engine.queue: queue order 'vtc': output_weight: expected a number of at least 0, found 'x'",
        ),
        (
            "workload.priorities={gold: 1}",
            "workload.priorities: no tenant is called 'gold'; the workload names no tenants",
        ),
        (
            "workload.priorities={gold: high}",
            "--set workload.priorities.gold: expected a whole number, found 'high'",
        ),
        ("cluster.gpu=h100", "--set cluster.gpu: "),
        ("model=llama-3.1-8c", "--set model: "),
        ("engine.profile=vllm-0.24", "engine.profile: no engine profile is called 'vllm-0.24'; did you mean"),
        ("workload.sources.0.file=there.jsonl", "--set workload.sources.0.file: no such file: "),
        (
            "workload.sources.0.reader=mooncak",
            "workload.sources.0 (trace): no trace reader is called 'mooncak'; did",
        ),
        (
            "workload.sources.0.options.speed=2",
            "workload.sources.0 (trace): the trace reader 'kvsim' has no option",
        ),
        (
            "model=llama-3.1-70b",
            "llama-3.1-70b on h100-sxm with tensor_parallel 1 does not fit: weights 141.11 GB,",
        ),
        (
            "engine.gpu_memory_utilization=0.2",
            "llama-3.1-8b on h100-sxm with tensor_parallel 1 does not fit: weights",
        ),
        (
            "engine.gpu_memory_utilization=1.5",
            "--set engine.gpu_memory_utilization: must be at most 1.0, found 1.5",
        ),
        ("cache.num_gpu_blocks=10", "llama-3.1-8b on h100-sxm"),
    ],
)
def test_an_override_that_cannot_be(
    folder: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    if override.startswith("cache.num_gpu_blocks"):
        # 10 blocks hold 144 tokens besides the null block: a limit of 8,192 tokens cannot be kept
        assert fails(capsys, "--set", override, "--set", "engine.max_model_len=8192").startswith(said)
    else:
        assert fails(capsys, "--set", override).startswith(said)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"arrival_s": 1.0, "input_tokens": 300, "outp', ":2: "),
        ("not JSON", ":2: "),
        ({**GOOD, "input_tokens": 0}, ":2: input_tokens"),
        ({**GOOD, "output_tokens": 0}, ":2: output_tokens"),
        ({**GOOD, "output_tokens": -3}, ":2: output_tokens"),
        ({**GOOD, "input_tokens": "many"}, ":2: input_tokens"),
        ({**GOOD, "arrival_s": -1}, ":2: arrival_s"),
        ({**GOOD, "segments": [["a", 301]]}, ":2: segments hold 301 tokens, input_tokens is 300"),
        ({"arrival_s": 1, "output_tokens": 8}, ":2: "),
    ],
)
def test_a_bad_line_of_a_trace_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], bad: object, said: str
) -> None:
    write_trace(GOOD, bad, GOOD)
    line = fails(capsys)
    assert line.startswith("workload.sources.0 (trace): ")
    assert f"trace.jsonl{said}" in line


def test_a_truncated_gzip_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.compress((json.dumps(GOOD) + "\n").encode() * 5000)
    Path("trace.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    line = fails(capsys, "--set", "workload.sources.0.file=trace.jsonl.gz")
    assert "trace.jsonl.gz" in line


def test_an_empty_trace(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("trace.jsonl").write_text("")
    assert "trace.jsonl" in fails(capsys)


def test_a_folder_with_results_is_refused_and_untouched(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "--out", "here")
    times = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path("here").iterdir()}
    assert "--force" in fails(capsys, "--out", "here")
    assert {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path("here").iterdir()
    } == times
    run(capsys, "--out", "here", "--force")


def test_a_folder_with_other_files_is_never_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("dear")
    assert "mine" in fails(capsys, "--out", "mine", "--force")
    assert Path("mine/thesis.tex").read_text() == "dear"


def test_a_failed_run_leaves_old_results_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--out", "here")
    old = Path("here/summary.json").read_bytes()
    write_trace(GOOD, "not JSON")
    fails(capsys, "--out", "here", "--force")
    assert Path("here/summary.json").read_bytes() == old


def test_requests_that_can_never_run_are_rejected_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    too_long_for_model = {"arrival_s": 0.1, "input_tokens": 131_000, "output_tokens": 200}
    write_trace(GOOD, too_long_for_model, GOOD)
    summary = run(capsys)
    assert (summary["requests_submitted"], summary["requests_completed"], summary["requests_rejected"]) == (
        3,
        2,
        1,
    )
    assert sum(summary["rejected_by_reason"].values()) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("manager", ["none", "contiguous", "paged", "prefix_tree"])
def test_requests_longer_than_the_kv_memory_are_rejected_by_every_manager(
    folder: Path, capsys: pytest.CaptureFixture[str], manager: str
) -> None:
    write_trace(GOOD, {"arrival_s": 0.1, "input_tokens": 5_000, "output_tokens": 10}, GOOD)
    # 100 blocks of 16 tokens; without a max_model_len it becomes what fits
    summary = run(capsys, "--set", f"cache.manager={manager}", "--set", "cache.num_gpu_blocks=100", "--force")
    assert (summary["requests_completed"], summary["requests_rejected"]) == (2, 1)


def test_what_follows_a_rejected_request_still_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_trace(
        {**GOOD, "input_tokens": 200_000},
        {**GOOD, "arrival_s": 1.0, "after": 0, "think_s": 2.0},
    )
    summary = run(capsys)
    assert (summary["requests_completed"], summary["requests_rejected"]) == (1, 1)

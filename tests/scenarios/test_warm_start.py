"""``kvsim run --save-cache`` and ``cache.warm_start``, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvsim.cli.main import run_command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two documents that are asked for in turn, 10 s apart; the scenario takes the first or the second half."""
    monkeypatch.chdir(tmp_path)
    row = {"input_tokens": 900, "output_tokens": 4}
    lines = [{**row, "arrival_s": 10.0 * i, "segments": [[f"doc-{i % 2}", 800]]} for i in range(4)]
    Path("trace.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("small.yaml").write_text("name: small\nworkload: {sources: [{name: docs, file: trace.jsonl}]}\n")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    code = run_command(["run", "small.yaml", "--no-report", "--json", "--check", "--force", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    summary: dict[str, object] = json.loads(out)
    return summary


SECOND_HALF = ("--set", "workload.sources.0.slice={start: 15 s}")


def hits(summary: dict[str, object]) -> float:
    return summary["cache"]["hit_token_ratio"]  # type: ignore[index]


@pytest.mark.usefixtures("folder")
def test_the_second_half_begins_with_what_the_first_left(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--save-cache", "warm.gz", "--set", "workload.max_requests=2")
    cold, warm = run(capsys, *SECOND_HALF), run(capsys, *SECOND_HALF, "--set", "cache.warm_start=warm.gz")
    assert hits(cold) == 0
    assert hits(warm) == 800 / 900
    assert len(warm["hashes"]["warm_start"]) == 64  # type: ignore[index]
    before = Path("warm.gz").read_bytes()
    run(capsys, "--save-cache", "warm.gz", "--set", "workload.max_requests=2")
    assert Path("warm.gz").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "cache.block_tokens=32",
            "warm.gz has blocks of 16 tokens, this run blocks of 32; set cache.block_tokens=16",
        ),
        ("cache.eviction=belady", "an eviction policy that knows the future cannot rank what is older"),
        ("cache.warm_start=trace.jsonl", "trace.jsonl: not a file that kvsim run --save-cache wrote"),
        ("cache.warm_start=nothing.gz", "no such file"),
        ("workload.sources.0.file=other.jsonl", "source 'docs' had another file or other parameters"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_loaded(setting: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--save-cache", "warm.gz")
    Path("other.jsonl").write_text(Path("trace.jsonl").read_text().replace("doc-0", "doc-7"))
    code = run_command(
        ["run", "small.yaml", "--force", "--set", "cache.warm_start=warm.gz", "--set", setting]
    )
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and line in err and "cache.warm_start" in err


@pytest.mark.usefixtures("folder")
def test_a_manager_that_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvsim.cluster.run.play", lambda *_: pytest.fail("it was simulated first"))
    code = run_command(["run", "small.yaml", "--save-cache", "x.gz", "--set", "cache.manager=paged"])
    assert (code, Path("x.gz").exists()) == (2, False)
    assert "keeps nothing that can be saved; set cache.manager=prefix_tree" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_statistics_without_the_warm_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Requests come at 0, 10, 20 and 30 s; the first two find nothing."""
    everything, later = run(capsys), run(capsys, "--set", "statistics.after=15 s")
    assert hits(everything) == 2 * 800 / (4 * 900)
    assert hits(later) == 800 / 900
    assert later["statistics"] == {"after_s": 15.0, "requests": 2} and "statistics" not in everything
    assert later["ttft_s"]["p99"] < everything["ttft_s"]["p50"]  # type: ignore[index]
    window_s = later["makespan_s"] - 15.0  # type: ignore[operator]
    assert later["throughput"]["output_tokens_per_s"] == 2 * 4 / window_s  # type: ignore[index]
    for key in ("requests_completed", "makespan_s", "cost", "utilisation", "itl_s", "tiers"):
        assert later[key] == everything[key], key


@pytest.mark.usefixtures("folder")
def test_a_warm_up_longer_than_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(["run", "small.yaml", "--set", "statistics.after=1 min"])
    assert code == 2
    assert (
        capsys.readouterr().err == "statistics.after: no request arrives after 60 s, the last one at 30 s\n"
    )


@pytest.mark.usefixtures("folder")
def test_what_a_warm_start_brought(capsys: pytest.CaptureFixture[str]) -> None:
    """Two documents of 800 tokens, each with its own question; blocks of 16."""
    saved = run(capsys, "--save-cache", "warm.gz", "--set", "workload.max_requests=2")
    assert "warm_start" not in saved
    brought = run(capsys, "--set", "cache.warm_start=warm.gz")["warm_start"]
    assert set(brought) == {"tokens", "contents", "known"}  # type: ignore[call-overload]
    assert brought["tokens"]["hbm"] % 16 == 0 and brought["tokens"]["hbm"] >= 2 * 800  # type: ignore[index]
    assert 2 <= brought["known"] <= brought["contents"]  # type: ignore[index]


@pytest.mark.usefixtures("folder")
def test_a_saved_cache_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.gz").write_text("mine")
    assert run_command(["run", "small.yaml", "--save-cache", "x.gz"]) == 2
    assert (
        capsys.readouterr().err
        == "--save-cache x.gz: already there; give --force to replace it, or another name\n"
    )
    assert Path("x.gz").read_text() == "mine" and not Path("results").exists()


@pytest.mark.parametrize("manager", ["none", "paged"])
@pytest.mark.usefixtures("folder")
def test_managers_that_cannot_start_warm(manager: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--save-cache", "warm.gz")
    code = run_command(
        [
            "run",
            "small.yaml",
            "--force",
            "--set",
            "cache.warm_start=warm.gz",
            "--set",
            f"cache.manager={manager}",
        ]
    )
    line = "cache.warm_start: this cache manager keeps nothing between requests; take prefix_tree\n"
    assert (code, capsys.readouterr().err) == (2, line)

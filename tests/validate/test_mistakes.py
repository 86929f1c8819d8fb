"""What cannot be read is one line on stderr and exit code 2."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import META, REQUESTS, Cli, write_gz

TABLE = "small.chat.requests.csv.gz"


def without_meta(runs: Path) -> None:
    (runs / "small.meta.json").unlink()


def unknown_model(runs: Path) -> None:
    engine = {**META["engine"], "model": "lama-3.1-8b (random weights)"}
    (runs / "small.meta.json").write_text(json.dumps({**META, "engine": engine}))


def unknown_gpu(runs: Path) -> None:
    (runs / "small.meta.json").write_text(json.dumps({**META, "versions": {"gpu": "NVIDIA T1000"}}))


def broken_meta(runs: Path) -> None:
    (runs / "small.meta.json").write_text("{")


def short_meta(runs: Path) -> None:
    (runs / "small.meta.json").write_text(json.dumps({**META, "num_gpu_blocks": 0}))


def no_number(runs: Path) -> None:
    write_gz(runs / TABLE, REQUESTS.replace("1.0,1.0,512", "1.0,soon,512"))


def missing_column(runs: Path) -> None:
    write_gz(runs / TABLE, REQUESTS.replace("ttft_s", "ttft"))


def damaged(runs: Path) -> None:
    (runs / TABLE).write_bytes(gzip.compress(REQUESTS.encode())[:-20])


def twice(runs: Path) -> None:
    write_gz(runs / TABLE, REQUESTS.replace("chat-1", "chat-0"))


def other_lengths(runs: Path) -> None:
    write_gz(runs / TABLE, REQUESTS.replace("2.0,2.0,100", "2.0,2.0,101"))


def bad_iterations(runs: Path) -> None:
    header = "t_s,running,waiting,kv_usage,prompt_tokens,generation_tokens,preempted\n"
    write_gz(runs / "small.chat.iterations.csv.gz", header + "0.1,x,0,0.0,0,1,0\n")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_meta, "small.meta.json: no such file"),
        (unknown_model, "no model preset and no file is called 'lama-3.1-8b'; did you mean 'llama-3.1-8b'?"),
        (unknown_gpu, "versions.gpu: no preset stands for 'NVIDIA T1000'"),
        (broken_meta, "small.meta.json, line 1: bad JSON"),
        (short_meta, "small.meta.json: num_gpu_blocks: input should be greater than or equal to 2"),
        (no_number, f"{TABLE}:3: submit_s is 'soon'"),
        (missing_column, f"{TABLE}:2: no 'ttft_s'; the line has 'ttft': is it misspelt?"),
        (damaged, "the gzip data are cut short or damaged"),
        (twice, "two rows have the same request number"),
        (other_lengths, "request 2 has another input length"),
        (bad_iterations, "iterations.csv.gz:2: running is 'x'"),
    ],
)
def test_one_line(cli: Cli, runs: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(runs)
    code, out, err = cli("validate", runs, "--json")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workload", "chart"], "no workload is called 'chart'; did you mean 'chat'?"),
        (["--engine-profile", "vllm-0.2"], "no engine profile is called 'vllm-0.2'"),
        (["--timings", "h100"], "h100"),
        (["--timings", "h200-sxm-measured"], "the runs were measured on h100-sxm"),
        (["--html", "nowhere/page.html"], "no such folder nowhere"),
    ],
)
def test_arguments(cli: Cli, runs: Path, arguments: list[str], says: str) -> None:
    code, out, err = cli("validate", runs, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err


def test_no_runs(cli: Cli, tmp_path: Path) -> None:
    assert cli("validate", tmp_path)[2] == (
        f"{tmp_path}: holds no measured runs, named PHASE.WORKLOAD.requests.csv.gz\n"
    )
    assert cli("validate", tmp_path / "x")[2] == f"{tmp_path / 'x'}: no such folder of measured runs\n"

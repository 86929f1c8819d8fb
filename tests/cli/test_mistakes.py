"""A user's mistake is one line on stderr and exit code 2, never a traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvsim.cli import run

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rnu"], "kvsim rnu: unknown command; did you mean 'run'?"),
        (["explain", "memry"], "kvsim explain memry: unknown command; did you mean 'memory'?"),
        (["run"], "kvsim run: Missing argument 'SCENARIO'; 'kvsim run --help' shows an example"),
        (["run", "small.yaml", "--frce"], "kvsim run --frce: unknown option; did you mean '--force'?"),
        (["run", "nothing.yaml"], "nothing.yaml: no such file"),
        (
            ["run", "small.yaml", "--set", "cluster.replcas=2"],
            "--set cluster.replcas: unknown key; did you mean 'replicas'?",
        ),
        (["run", "small.yaml", "--seed", "-1"], "--set seed: must be at least 0, found -1"),
        (
            ["run", "small.yaml", "--set", "cache.manager=prefix_tre"],
            "cache.manager: no cache manager is called 'prefix_tre'; did you mean 'prefix_tree'?",
        ),
        (
            ["run", "small.yaml", "--set", "cache.options.min_spared_tokens=9"],
            "cache.options.min_spared_tokens: manager 'prefix_tree' has no options; leave them out",
        ),
        (
            ["run", "small.yaml", "--set", "cache={manager: contiguous, options: {reserve_tokens: all}}"],
            "cache.options.reserve_tokens: expected a whole number, found 'all'",
        ),
        (
            ["run", "small.yaml", "--set", "cache.tiers.ddr.capacity=64"],
            "--set cache.tiers.ddr.capacity: 64 has no unit; write '64 GB' or '64 GiB'",
        ),
        (
            ["run", "small.yaml", "--set", "cache.tiers=[{name: hbm, capacity: 1 GB}]"],
            "--set cache.tiers: no tier can be called 'hbm', which is the GPU's own memory; give it another name",
        ),
        (
            ["run", "small.yaml", "--set", "cache.codec={values: {bits: 4, group: 24}}"],
            "cache.codec.values.group: 24 does not divide the 128 channels of a head; give a divisor of these, or "
            "a number of whole heads",
        ),
        (
            [
                "run",
                "small.yaml",
                "--set",
                "cache.tokens={score: position, heads: {full: 0.5, sinks: 4, recent: 64}}",
                "--set",
                "cache.reads={index: {kind: bounds}, budget: 64, prefill_budget: 128}",
                "--set",
                "cache.manager=paged",
            ],
            "cache.reads.prefill_budget: with cache.tokens a prompt sees all, or what heads.prefill says; leave it out",
        ),
        (
            ["run", "small.yaml", "--set", "cluster.kv_transfer.link=x"],
            "--set cluster.kv_transfer.link: kv_transfer is given, and no pool has role prefill; leave it out, or give pools "
            "the roles prefill and decode",
        ),
        (
            ["run", "small.yaml", "--set", "engine.kv_layout=contiguous"],
            "engine.kv_layout: contiguous, and manager 'prefix_tree' keeps KV in blocks that lie apart; take manager "
            "virtual, contiguous or predicted, or set kv_layout to paged",
        ),
        (
            ["run", "small.yaml", "--set", "engine.preemption={overlap: true}"],
            "--set engine.preemption: tier, overlap and keep_copies are of mode swap; leave them out, or set mode to swap",
        ),
        (
            ["sweep", "small.yaml", "--set", "cluster.replicas=1.."],
            "--set cluster.replicas: '1..' is no range; give both ends, such as 1..4 or 0..512 GB x5",
        ),
        (
            ["sweep", "small.yaml", "--set", "cache.eviction=lru,lur"],
            "cache.eviction: no eviction policy is called 'lur'; did you mean 'lru'?",
        ),
        (
            ["sweep", "small.yaml", "--set", "cache.manager=prefix_tree,nome"],
            "cache.manager: no cache manager is called 'nome'; did you mean 'none'?",
        ),
        (
            ["calibrate"],
            "calibrate: --out is missing; name the profile to write, such as --out my-gpu.yaml; "
            "'kvsim calibrate --help' shows more",
        ),
        (["run", "small.yaml", "--save-cache", "small.yaml"], None),
        (["trace", "stats", "trace.jsonl", "--html", "small.yaml"], None),
        (["profiles", "show", "h100-sxm-vllm-0.24"], None),
        (["report", "nothing"], "nothing: no such result folder"),
    ],
)
def test_one_line_and_exit_2(cli: Cli, small: Path, arguments: list[str], line: str | None) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert [path.name for path in small.parent.iterdir()] == ["small.yaml"]
    assert small.read_text().startswith("name: small")
    assert err.count("\n") == 1
    if line is not None:
        assert err == line + "\n"


def test_results_are_not_overwritten_and_nothing_is_simulated(
    cli: Cli,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (small.parent / "results" / "small").mkdir(parents=True)
    (small.parent / "results" / "small" / "summary.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "kvsim.cluster.run", None)  # importing it would fail
    code, _, err = cli("run", small)
    assert code == 2
    assert err == "results/small: already holds results; give --force to replace them, or another folder\n"


def test_a_mistake_of_ours_is_one_line_too(
    cli: Cli,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(text: str) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(run, "progress_bar", fail)
    code, _, err = cli("run", small)
    assert code == 1
    assert err == "internal error: ZeroDivisionError: division by zero; KVSIM_TRACEBACK=1 shows where\n"


def test_as_a_program(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "kvsim.cli.main", "run", "nothing.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout, found.stderr) == (2, "", "nothing.yaml: no such file\n")

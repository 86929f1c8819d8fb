"""What the commands print and write."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvsim.version import __version__

Cli = Callable[..., tuple[int, str, str]]

COMMANDS = (
    ["run"],
    ["sweep"],
    ["report"],
    ["explain", "memory"],
    ["profiles", "list"],
    ["profiles", "show"],
    ["profiles", "import"],
    ["trace", "stats"],
    ["trace", "convert"],
    ["trace", "generate"],
    ["trace", "anonymise"],
)


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"kvsim {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_of_its_command(cli: Cli, command: list[str]) -> None:
    code, out, _ = cli(*command, "--help")
    assert code == 0
    assert f"Example: kvsim {' '.join(command)} " in out.replace("\n", " ") + " "


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kvsim.cli.main import run_command; run_command(['--help']);"
        "heavy = {'numpy', 'pydantic', 'pyarrow', 'simpy', 'scipy', 'plotly', 'pandas', 'torch', 'yaml'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    start = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert time.perf_counter() - start < 2.0  # 0.25 s on a quiet machine; the promise is 0.5


def test_run_writes_the_folder_and_prints_one_json_document(cli: Cli, small: Path) -> None:
    code, out, err = cli("run", small, "--json", "--no-report")
    assert code == 0
    assert json.loads(out)["requests_completed"] == 20
    assert err == "results: results/small\n"
    written = {path.name for path in (small.parent / "results" / "small").iterdir()}
    assert written == {
        "summary.json",
        "requests.parquet",
        "timeline.parquet",
        "scenario.resolved.yaml",
        "run.json",
    }


def test_run_takes_seed_out_and_force(cli: Cli, small: Path) -> None:
    for _ in range(2):
        code, out, _ = cli(
            "run", small, "--json", "--no-report", "--out", "here", "--force", "--seed", 7, "--check"
        )
        assert code == 0
        assert json.loads(out)["seed"] == 7
    assert (small.parent / "here" / "summary.json").is_file()


def test_a_resolved_scenario_runs_again_to_the_same_results(cli: Cli, small: Path) -> None:
    cli("run", small, "--no-report", "--out", "one")
    code, _, err = cli("run", "one/scenario.resolved.yaml", "--no-report", "--out", "two")
    assert (code, err) == (0, "results: two\n")
    one, two = (json.loads((small.parent / name / "summary.json").read_text()) for name in ("one", "two"))
    assert {**one, "loop_wall_s": 0} == {**two, "loop_wall_s": 0}


def test_explain_memory(cli: Cli, small: Path) -> None:
    code, out, err = cli("explain", "memory", small, "--json")
    facts = json.loads(out)
    assert (code, err, facts["fits"], facts["problem"]) == (0, "", True, None)
    assert facts["num_blocks"] == pytest.approx(28_123, rel=0.02)
    assert facts["num_tokens"] == (facts["num_blocks"] - 1) * 16
    # 64 GB / 131,072 bytes a token = 488,281.25, in whole blocks of 16
    assert facts["tiers"] == [
        {"name": "ddr", "link": "pcie-gen5-x16", "capacity_bytes": 64 * 10**9, "num_tokens": 488_272}
    ]
    code, out, _ = cli("explain", "memory", small)
    assert code == 0
    assert "llama-3.1-8b on 1 x h100-sxm" in out
    assert out.endswith("fits\n")


def test_explain_memory_has_the_swap_space(cli: Cli, small: Path) -> None:
    """Of 131,072 bytes a token, 8 GB hold 7.45 requests of 8,192 tokens; with KV in 8 bits twice as many."""
    swap = [
        "--set",
        "engine.preemption=swap",
        "--set",
        "cache.manager=paged",
        "--set",
        "engine.max_model_len=8192",
    ]
    swap += ["--set", "cache.tiers=[{name: ddr, capacity: 8 GB}]"]
    assert (
        "swapped to ddr: room for 7.45 requests of 8,192 tokens" in cli("explain", "memory", small, *swap)[1]
    )
    swap += ["--set", "cache.codec={keys: {bits: 8}, values: {bits: 8}}"]
    facts = json.loads(cli("explain", "memory", small, "--json", *swap)[1])["swap"]
    assert facts == {"tier": "ddr", "tokens": 8192, "requests": pytest.approx(2 * 8e9 / (8192 * 131_072))}
    assert json.loads(cli("explain", "memory", small, "--json")[1])["swap"] is None


def test_explain_memory_says_what_parts_of_the_cache_make_of_a_request(cli: Cli, small: Path) -> None:
    whole = 131_072  # bytes of a token at 16 bits
    code, out, _ = cli("explain", "memory", small, "--json", "--set", "method=kivi")
    changed = json.loads(out)["changed_request"]
    # 3 of 16 bits with scales and zeros; the newest 128 tokens' room at 16 bits beside
    packed = 131_072 * whole * 3 // 16
    assert (code, changed["by"], changed["unchanged_bytes"]) == (0, ["cache.codec"], 131_072 * whole)
    assert packed < changed["held_bytes"] <= packed + 128 * whole
    code, out, _ = cli(
        "explain", "memory", small, "--json", "--set", "method=snapkv", "--set", "cache.tiers=[]"
    )
    facts = json.loads(out)
    changed = facts["changed_request"]
    # the whole prompt until it is through, then 1,024 tokens
    assert (changed["prefill_bytes"], changed["held_bytes"]) == (131_072 * whole, 1_024 * whole)
    assert changed["at_once"] == facts["num_blocks"] * 16 / 1_024
    code, out, _ = cli("explain", "memory", small, "--set", "method=snapkv", "--set", "cache.tiers=[]")
    assert (
        "one of 131,072 takes 17.18 GB until it is prefilled, then 0.13 GB in place of 17.18 GB: 439." in out
    )
    tiers = "cache.tiers=[{name: ddr, capacity: 1 TB}, {name: csd, capacity: 4 TB, link: nvme}]"
    code, out, _ = cli("explain", "memory", small, "--set", "method=instinfer", "--set", tiers)
    assert code == 0 and "then 0.00 GB in place of 17.18 GB: as many as tiers hold at once" in out
    assert json.loads(cli("explain", "memory", small, "--json")[1])["changed_request"] is None


def test_explain_memory_of_what_does_not_fit(cli: Cli, small: Path) -> None:
    code, out, err = cli("explain", "memory", small, "--json", "--set", "model=llama-3.1-70b")
    facts = json.loads(out)
    assert (code, facts["fits"], facts["num_blocks"]) == (2, False, 0)
    assert err == facts["problem"] + "\n"
    assert err.startswith("llama-3.1-70b on h100-sxm with tensor_parallel 1 does not fit: weights 141.11 GB,")


def test_profiles(cli: Cli) -> None:
    code, out, _ = cli("profiles", "list", "--json")
    profiles = json.loads(out)
    assert code == 0
    assert "h100-sxm" in {profile["gpu"] for profile in profiles}
    code, out, _ = cli("profiles", "show", profiles[0]["name"], "--json")
    shown = json.loads(out)
    assert (code, shown["name"]) == (0, profiles[0]["name"])
    assert {row["table"] for row in shown["coverage"]} == set(profiles[0]["tables"])
    assert cli("profiles", "list")[0] == cli("profiles", "show", profiles[0]["name"])[0] == 0


def test_report(cli: Cli, small: Path) -> None:
    cli("run", small, "--no-report", "--out", "one")
    assert cli("report", "one", "--json") == (0, '{\n  "report": "one/report.html"\n}\n', "")
    assert (small.parent / "one" / "report.html").is_file()

"""kvsim plan: an answer with its report, nothing run twice, exit code 3 for an infeasible plan, one line for a mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvsim.cli.main import run_command
from kvsim.study.plan import runner

Cli = Callable[..., tuple[int, str, str]]
SCENARIO = """\
name: small
cluster: {gpu: h100-sxm}
cache: {tiers: [{name: ddr, capacity: 8 GB}]}
workload:
  sources:
    - generator: shared_prefixes
      options:
        {requests: 80, groups: 4, prefix_tokens: 2000, user_tokens: 500, output_tokens: 30,
          arrivals: {process: poisson, rate_per_s: 40}}
"""
SCALED = "cluster.autoscale={max: 9, metric: utilisation, target: 0.8, start_up: 1 min}"
SPACE = ("--set", "cluster.gpu=h100-sxm,a100-80gb-sxm", "--set", "cluster.replicas=1..4")
SLOS = ("--slo", "ttft_p95=300ms", "--slo", "tpot_p95=30ms")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_an_answer_and_its_report(cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = cli("plan", small, *SLOS, *SPACE, "--jobs", 1, "--json", "--out", "planned")
    assert code == 0
    told = json.loads(out)
    assert json.loads(Path("planned/plan.json").read_text()) == told
    answer = told["answer"]
    assert answer["meets"] and answer["meets_with_margin"] and told["margin"]["met"]
    found = told["search"]
    assert found["configurations"] == 8 == sum(
        found[key] for key in ("do_not_fit", "beyond_the_roofline", "ruled_out_by_a_run", "simulated", "dominated")
    )  # fmt: skip
    assert len(told["configurations"]) == found["simulated"]
    summary = json.loads(Path("planned/answer/summary.json").read_text())
    hours = summary["makespan_s"] / 3600
    assert answer["usd_per_hour"] == pytest.approx(summary["cost"]["usd"] / hours)
    assert answer["percentiles_s"]["ttft_p95"] == pytest.approx(summary["ttft_s"]["p95"])
    assert told["headroom"]["holds"] >= 1
    assert [more["name"] for more in told["more"]] == [
        "one more GPU", "64 GB of DDR a replica", "1 TB of disk a replica", "twice the link of ddr",
    ]  # fmt: skip
    assert told["more"][1]["usd_per_month"] == pytest.approx(64 * 2.87 * answer["replicas"])
    page, text = Path("planned/report.html").read_text(), Path("planned/report.md").read_text()
    for words in ("Take ", "a month", "Why others lose", "Assumptions"):
        assert words in page and words in text

    ran: list[int] = []
    measure = runner.measure
    monkeypatch.setattr(runner, "measure", lambda *given: ran.append(1) or measure(*given))
    for path in sorted(Path("planned/points").glob("*.json"))[:3]:
        path.unlink()
    assert cli("plan", small, *SLOS, *SPACE, "--jobs", 1, "--out", "planned")[0] == 0
    assert len(ran) == 3, "finished runs are taken"
    again = json.loads(Path("planned/plan.json").read_text())
    assert again["answer"] == answer and again["search"]["runs_kept_from_before"] == found["runs"] - 3


def test_the_plan_does_not_depend_on_the_number_of_processes(small: Path) -> None:
    arguments = ["plan", str(small), *SLOS, *SPACE]
    assert run_command([*arguments, "--jobs", "1", "--out", "one"]) == 0
    assert run_command([*arguments, "--jobs", "2", "--out", "two"]) == 0
    assert Path("one/plan.json").read_bytes() == Path("two/plan.json").read_bytes()


def test_infeasible_is_an_answer(cli: Cli, small: Path) -> None:
    code, out, err = cli("plan", small, "--slo", "tpot_p95=3ms", *SPACE, "--jobs", 1, "--out", "planned")
    assert code == 3
    assert out.startswith("Nothing in the search space meets TPOT p95 within 3 ms")
    assert "Nearest is" in out and "Traceback" not in err
    told = json.loads(Path("planned/plan.json").read_text())
    assert told["feasible"] is False and told["reachable"]["percentiles_s"]["tpot_p95"] > 0.003
    assert "Nearest is" in Path("planned/report.html").read_text()


def test_nothing_that_fits_says_why(cli: Cli, small: Path) -> None:
    code, out, _ = cli(
        "plan",
        small,
        *SLOS,
        *SPACE,
        "--set",
        "engine.gpu_memory_utilization=0.1",
        "--jobs",
        1,
        "--out",
        "planned",
    )
    assert code == 3 and "No configuration could run" in out and "does not fit" in out


def test_more_traffic_needs_more(cli: Cli, small: Path) -> None:
    prices = []
    for traffic in ("1x", "4x"):
        code, out, _ = cli(
            "plan", small, *SLOS, "--set", "cluster.replicas=1..12", "--traffic", traffic, "--jobs", 1, "--json",
            "--no-margin", "--out", f"at{traffic}",
        )  # fmt: skip
        assert code == 0
        told = json.loads(out)
        prices.append(told["answer"]["usd_per_hour"])
        assert told["requests_per_s"] == pytest.approx(told["traffic"] * 40, rel=0.25)
    assert prices[0] < prices[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (SPACE, "--slo: none is given"),
        ((*SLOS, "--set", "cluster.replcas=1..2"), "--set cluster.replcas: unknown key; did you mean 'replicas'?"),
        ((*SLOS, *SPACE, "--traffic", "no"), "--traffic no: expected a factor above 0, such as 2x"),
        ((*SLOS, *SPACE, "--attain", "2"), "--attain 2: is a share"),
        ((*SLOS, *SPACE, "--out", "."), ".: holds other files (small.yaml)"),
        ((*SLOS, *SPACE, "--set", "cluster.usd_per_gpu_hour=0"), "cluster.gpu h100-sxm: has no price"),
        ((*SLOS, *SPACE, "--set", SCALED), "cluster.autoscale: a plan compares clusters"),
        ((*SLOS, "--set", "cluster.replicas=2..1"), "--set cluster.replicas: 2..1 is an empty range"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(cli: Cli, small: Path, arguments: tuple[str, ...], line: str) -> None:
    code, out, err = cli("plan", small, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(line) and err.count("\n") == 1

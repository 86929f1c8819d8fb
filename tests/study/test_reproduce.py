"""Verdicts of published claims: how they are computed, and what bad claims say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.cli.main import run_command
from kvsim.errors import ScenarioError
from kvsim.study.claims import ClaimFile
from kvsim.study.formula import evaluate
from kvsim.study.reproduce import crossings, judge, judge_capacity, reproduce

SIMULATED: dict[str, Any] = {
    "name": "mine",
    "system": "marconi",
    "claim": "half the time",
    "claimed": [1.5, 2.5],
    "metric": "ttft_s_mean",
    "ratio": "baseline/method",
    "axes": [{"key": "cluster.replicas", "of": "method", "values": [1, 2], "why": "left open"}],
    "scenario": {
        "workload": {
            "sources": [
                {
                    "generator": "lengths",
                    "options": {
                        "requests": 4,
                        "input_tokens": 8000,
                        "output_tokens": 1,
                        "arrivals": {"process": "constant", "rate_per_s": 1000000},
                    },
                }
            ]
        }
    },
}
KERNELS: dict[str, Any] = {
    "name": "kernels",
    "system": "chunkattention",
    "claim": "x",
    "claimed": [2, 3],
    "metric": "time",
    "ratio": "baseline/method",
    "solve_for": "batch",
    "axes": [{"key": "batch", "values": [8, 64], "why": "left open"}],
    "kernels": {
        "baseline": [{"kernel": "decode_attention", "sizes": {"num_seqs": "batch", "sum_context": "batch * (4096 + 64)"}}],
        "method": [{"kernel": "shared_prefix_decode", "sizes": {"batch": "batch", "prefix": 4096, "context": 64}}],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "claimed", "verdict", "inside"),
    [
        ([0.5, 3.0, 9.0], (2, 4), "inside", 1),
        ([4.3, 1.0], (2, 4), "inside", 1),  # 10 % of the gain: 1.9 to 4.3
        ([4.31, 1.5], (2, 4), "direction", 0),
        ([1.9, 0.5], (2, 4), "inside", 1),
        ([1.05], (1.1, 2), "direction", 0),  # no widened range takes in 1
        ([1.0, 1.0], (1.1, 2), "not reproducible", 0),
        ([1.5, 0.9], (2, 4), "not reproducible", 0),  # better at half of the points only
        ([1.5, 1.2, 0.9], (2, 4), "direction", 0),
        ([1.5, None, None], (2, 4), "not reproducible", 0),  # no ratio is not better
        ([None], (2, 4), "not reproducible", 0),
    ],
)
def test_the_verdict(
    ratios: list[float | None], claimed: tuple[float, float], verdict: str, inside: int
) -> None:
    found = judge(ratios, claimed)
    known = [ratio for ratio in ratios if ratio is not None]
    assert (found["verdict"], found["points_inside"]) == (verdict, inside)
    assert found["simulated"] == ([min(known), max(known)] if known else None)


CAPACITY: dict[str, Any] = SIMULATED | {
    "name": "longest",
    "system": "kvquant",
    "metric": "longest_prompt",
    "claimed": [300000, 300000],
    "axes": [{"key": "cache.codec.keys.bits", "of": "method", "values": [2, 16], "why": "left open"}],
    "scenario": SIMULATED["scenario"] | {"model": "llama-2-7b", "cluster": {"gpu": "a100-80gb-sxm"}},
    "method": {"cache": {"codec": {"keys": {"bits": 2}, "values": {"bits": 2}}}},
}


def test_a_claim_on_memory_is_inside_where_as_many_tokens_fit(tmp_path: Path) -> None:
    """Of the room for KV at 16 bits: 8 times the tokens with both at 2, 16 / 9 with the values alone; one block is set aside."""
    result = reproduce(ClaimFile.model_validate(CAPACITY), tmp_path)
    both, values = result["points"]
    assert both["baseline"] == values["baseline"] > 100_000
    assert both["method"] / both["baseline"] == pytest.approx(8, rel=1e-3)
    assert values["method"] / values["baseline"] == pytest.approx(16 / 9, rel=1e-3)
    assert result["simulated"] == [values["method"], both["method"]] and result["unit"] == "tokens"
    assert (result["verdict"], result["points_inside"], result["points_better"]) == ("inside", 1, 2)
    limited = CAPACITY | {"scenario": CAPACITY["scenario"] | {"engine": {"max_model_len": 4096}}}
    result = reproduce(ClaimFile.model_validate(limited), tmp_path)
    assert result["simulated"] == [4096, 4096] and result["verdict"] == "not reproducible"


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(100, 299_999), (100, 300_000)], "inside"),
        ([(100, 299_999), (100, 100)], "not reproducible"),  # more at half of the points only
        ([(100, 299_999), (100, 101), (100, 99)], "direction"),
    ],
)
def test_the_verdict_of_a_capacity(pairs: list[tuple[float, float]], verdict: str) -> None:
    assert judge_capacity(pairs, (300_000, 400_000))["verdict"] == verdict


def test_two_replicas_halve_the_mean_wait_of_four_prompts(tmp_path: Path) -> None:
    """Prompts of equal length one after another, T each: means of 2.5 T on one replica and 1.5 T on two, and what else a
    request takes."""
    result = reproduce(ClaimFile.model_validate(SIMULATED), tmp_path)
    alone, two = result["points"]
    assert alone["cluster.replicas (method)"] == 1 and alone["ratio"] == 1.0
    assert two["ratio"] == pytest.approx(2.5 / 1.5, rel=0.1)
    assert two["baseline"] == alone["baseline"] == alone["method"]
    assert (result["verdict"], result["points_inside"], result["num_points"]) == ("inside", 1, 2)
    assert result["assumptions"] == [{"key": "cluster.replicas", "values": [1, 2], "why": "left open"}]


def test_settings_change_several_keys_of_either_side(tmp_path: Path) -> None:
    settings = {
        "alone": {},
        "two for the method": {"method": {"cluster": {"replicas": 2}}},
        "two for both, half the prompts": {
            "both": {"cluster": {"replicas": 2}, "workload": {"max_requests": 2}},
            "baseline": {"cluster": {"replicas": 1}},
        },
    }
    axes = [{"key": "replicas", "settings": settings, "why": "left open"}]
    result = reproduce(ClaimFile.model_validate(SIMULATED | {"axes": axes}), tmp_path)
    ratios = {point["replicas"]: point["ratio"] for point in result["points"]}
    assert ratios["alone"] == 1.0
    assert ratios["two for the method"] == pytest.approx(2.5 / 1.5, rel=0.1)
    assert ratios["two for both, half the prompts"] == pytest.approx(
        1.5, rel=0.1
    )  # T and 2 T against T and T
    assert result["assumptions"] == [{"key": "replicas", "values": list(settings), "why": "left open"}]


def test_a_claim_on_kernels_says_where_its_figures_come_out(tmp_path: Path) -> None:
    result = reproduce(ClaimFile.model_validate(KERNELS), tmp_path)
    few, many = (point["ratio"] for point in result["points"])
    assert few < many
    (crossing,) = result["crossings"]
    for goal, place in zip((2, 3), (crossing["least"], crossing["most"]), strict=True):
        if few <= goal <= many:
            assert few + (many - few) * (place - 8) / 56 == pytest.approx(goal)
        else:
            assert place is None


def test_a_kernel_counts_as_often_as_it_is_called(tmp_path: Path) -> None:
    """A copy of all layers, and one of each layer in every fourth step."""
    one = {"kernel": "gather_kv", "sizes": {"row_bytes": 256, "rows": "rows * num_kv_heads"}}
    claim = KERNELS | {
        "solve_for": None,
        "axes": [{"key": "rows", "values": [64], "why": "left open"}],
        "kernels": {"baseline": [one | {"calls": "num_layers / 4"}], "method": [one]},
    }
    (point,) = reproduce(ClaimFile.model_validate(claim), tmp_path)["points"]
    assert point["ratio"] == pytest.approx(32 / 4)


def test_crossings_are_on_straight_lines() -> None:
    points = [
        {"batch": batch, "len": 5, "ratio": ratio} for batch, ratio in ((10, 1.0), (20, 3.0), (40, 2.0))
    ]
    assert crossings(points, "batch", (2.0, 2.5)) == [{"len": 5, "least": 15.0, "most": 17.5}]
    assert crossings(points, "batch", (3.0, 9.0)) == [{"len": 5, "least": 20.0, "most": None}]


@pytest.mark.parametrize(
    ("formula", "value"), [(7, 7), ("a * (b + 2) / 4", 6), ("a - b", -1), ("1.5 * a", 4.5)]
)
def test_formulas(formula: str | int, value: float) -> None:
    assert evaluate(formula, {"a": 3, "b": 4 if formula == "a - b" else 6}) == value


@pytest.mark.parametrize("formula", ["a +", "a ** 2", "f(a)", "'a'", "batc * 2", "True"])
def test_bad_formulas(formula: str) -> None:
    with pytest.raises(ScenarioError, match=r"formula|no axis is called 'batc'; did you mean 'batch'\?"):
        evaluate(formula, {"a": 1, "batch": 2})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"claimd": 1}, "mine.yaml.claimd: unknown key; did you mean 'claimed'?"),
        ({"claimed": [0.5, 2]}, "mine.yaml: claimed: expected [least, most], both above 1 (better), found [0.5, 2.0]"),
        ({"ratio": "method/base"}, "mine.yaml.ratio: unknown value 'method/base'; did you mean 'method/baseline'?"),
        ({"scenario": None}, "mine.yaml: a claim needs one of 'scenario', 'kernels' and 'queries'"),
        ({"scenario": None, "metric": "longest_prompt", "queries": {}}, "mine.yaml: metric longest_prompt is of a 'scenario'"),
        ({"solve_for": "x"}, "mine.yaml: solve_for: no axis is called 'x'"),
        ({"axes": [{"key": "x", "why": "x"}]}, "mine.yaml.axes.0: give one of 'values' and 'settings'"),
        (
            {"axes": [{"key": "x", "why": "x", "of": "method", "settings": {"a": {}}}]},
            "mine.yaml.axes.0: of: settings say themselves whose runs they change",
        ),
        (
            {"axes": [{"key": "x", "why": "x", "settings": {"a": {}}}], "scenario": None, "queries": {}},
            "mine.yaml: axes: settings are of a 'scenario'",
        ),
        ({"metric": "ttft"}, "mine.metric: no figure is called 'ttft'"),
        ({"method": {"method": "marconni"}}, "mine, method: --set method: no method is called 'marconni'; did you mean"),
        ({"baseline": {"cache": {"evicton": "lru"}}}, "mine, baseline: mine.scenario.cache.evicton: unknown key"),
        (
            {"axes": [{"key": "cluster.replics", "values": [1], "why": "x"}]},
            "mine, baseline: --set cluster.replics: unknown key; did you mean 'replicas'?",
        ),
    ],
)  # fmt: skip
def test_a_bad_claim_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SIMULATED | changes))
    assert run_command(["reproduce", str(path), "--jobs", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(said), err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernels.yaml").write_text(yaml.safe_dump(KERNELS))
    assert run_command(["reproduce", "--all", "--papers", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row)[:3] == ["name", "system", "claimed"] and {"simulated", "verdict", "assumptions"} <= set(
        row
    )
    assert run_command(["reproduce", "kernels", "--papers", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "chunkattention" in out and "0 not reproducible" in err
    for name in ("chunk-a", "chunk-b"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(KERNELS))
    for arguments, said in (
        (["kernel"], f"{tmp_path}: no claim is called 'kernel'; did you mean 'kernels'?\n"),
        (["chunk"], f"{tmp_path}: no claim is called 'chunk'; 'chunk' has chunk-a, chunk-b\n"),
        ([], "kvsim reproduce: give the NAME of a claim, or --all\n"),
        (["kernels", "--all"], "kvsim reproduce: give the NAME of a claim, or --all\n"),
    ):
        assert run_command(["reproduce", *arguments, "--papers", str(tmp_path)]) == 2
        assert capsys.readouterr().err == said
    assert run_command(["reproduce", "--all", "--papers", str(tmp_path / "no")]) == 2
    assert "no claims there" in capsys.readouterr().err

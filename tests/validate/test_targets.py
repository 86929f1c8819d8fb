"""Which targets a run meets, and what two runs of one workload say of each other, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvsim.validate.folder import read_run
from kvsim.validate.markdown import targets
from kvsim.validate.targets import CALM, limits, own_errors, range_of, repeats

from .conftest import META, REQUESTS, write_gz


def again(runs: Path, phase: str, requests: str = REQUESTS, **meta: Any) -> None:
    """A second start of the engine that the runs were measured on."""
    write_gz(runs / f"{phase}.chat.requests.csv.gz", requests)
    (runs / f"{phase}.meta.json").write_text(json.dumps({**META, **meta}))


def result(name: str, **more: Any) -> dict[str, Any]:
    """A prediction that is off by 4 % everywhere."""
    both = {
        "p50": {"measured": 0.05, "predicted": 0.052, "error": 0.04},
        "p95": {"measured": 0.1, "predicted": 0.096, "error": -0.04},
    }
    return {
        "name": name,
        "kind": "workload",
        "saturated": False,
        "metrics": {"ttft_s": both, "tpot_s": both, "e2e_s": both},
        "makespan_s": {"error": 0.04},
        "throughput": {"output_tokens_per_s": {"error": -0.04}},
        "wape_e2e": 0.04,
        "hit_token_ratio": {"error": 0.004},
        "identical_cached_tokens_ratio": 0.96,
        "teacher_forced": {"all": {"bias": 0.01, "median_absolute_error": 0.04}},
        **more,
    }


def test_a_repeat_has_the_same_requests_and_set_up(runs: Path) -> None:
    again(runs, "other_blocks", num_gpu_blocks=2030)  # what a start leaves of the GPU
    again(runs, "small_cache", num_gpu_blocks=1500)
    again(runs, "fp8", engine={**META["engine"], "kv_cache_dtype": "fp8"})
    again(runs, "with_host", engine={**META["engine"], "kv_offloading_size": 1.0})
    again(runs, "shorter", REQUESTS.replace("512,11,0", "512,12,0"))
    phases = ("small", "small_cache", "other_blocks", "fp8", "with_host", "shorter")
    groups = repeats([read_run(runs, f"{phase}.chat") for phase in phases])
    assert [[run.name for run in group] for group in groups] == [
        ["small.chat", "other_blocks.chat"],
        ["small_cache.chat"],
        ["fp8.chat"],
        ["with_host.chat"],
        ["shorter.chat"],
    ]


def test_what_another_start_says(runs: Path) -> None:
    """Rows in another order; the first request took 0.25 s for 0.02 and 0.35 for 0.12."""
    header, first, *rest = REQUESTS.splitlines()
    slow = first.replace("0.02,0.12", "0.25,0.35")
    again(runs, "again", "\n".join([header, *reversed(rest), slow]) + "\n")
    [group] = repeats([read_run(runs, f"{phase}.chat") for phase in ("small", "again")])
    assert range_of(group) == pytest.approx(0.04 / 0.02 - 1)
    (measured, errors), (other, back) = own_errors(group)
    assert (measured.name, other.name) == ("small.chat", "again.chat")
    assert errors["TTFT p50"] == pytest.approx(1.0) and back["TTFT p50"] == pytest.approx(-0.5)
    assert errors["TPOT p50"] == pytest.approx(0.0)
    assert errors["WAPE"] == pytest.approx(0.23 / 0.37) and back["WAPE"] == pytest.approx(0.23 / 0.60)
    assert errors["makespan"] == errors["tokens/s"] == pytest.approx(0.0)


def test_a_saturated_run_is_held_to_rates_and_the_engines_range_widens_one_target() -> None:
    calm, full = result("a.chat"), result("a.chat", saturated=True)
    assert "makespan" not in limits(calm) and "TTFT p95" not in limits(full)
    assert limits(calm)["TTFT p50"] == CALM["TTFT p50"] and limits(calm, 0.07)["TTFT p50"] == 0.07
    assert "other hits" in limits(result("a.taubench_x60")) and "other hits" not in limits(calm)


def test_the_tables_count_what_is_met(runs: Path) -> None:
    again(runs, "again", REQUESTS.replace("0.04,0.24,0.02", "0.04,0.44,0.04"))
    one, other = (read_run(runs, f"{phase}.chat") for phase in ("small", "again"))
    text = targets([(result(one.name), one), (result(other.name, saturated=True), other)])
    assert "| TPOT p50 within 3 % | 0 of 1 | `small.chat` (+4.0 %) |" in text
    assert "| TPOT p50 within 5 % | 1 of 1 |  |" in text
    assert "\n14 of 19\n" in text
    assert "| chat: small, again | 50 ms to 50 ms: 52 ms |" in text
    assert "| TPOT p95 within 3 % | 0 of 1, " in text  # 0.01 and 0.04 against 0.01 and 0.02

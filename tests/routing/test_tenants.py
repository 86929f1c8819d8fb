"""Tenants and clients in a scenario file, and what the summary says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvsim.cluster.run import run_scenario
from kvsim.errors import ScenarioError
from kvsim.results.fairness import jain_index
from kvsim.results.reading import warnings_of
from kvsim.results.summary import summarise
from kvsim.scenario.load import parse_scenario


def scenario(tmp_path: Path, **workload: object):  # type: ignore[no-untyped-def]
    """Three tenants; the first asks for twice as much, all at once."""
    rows = [
        {
            "arrival_s": 0.001 * i,
            "input_tokens": 400,
            "output_tokens": 20,
            "tenant": ("a", "b", "a", "c")[i % 4],
        }
        for i in range(80)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "engine": {"max_num_seqs": 4, "queue": "priority"},
        "workload": {"sources": [{"file": str(path)}], **workload},
    }


def test_jain_index() -> None:
    assert jain_index(np.array([3, 3, 3])) == 1
    assert jain_index(np.array([5, 0, 0, 0])) == 0.25
    assert jain_index(np.array([2, 1, 1])) == pytest.approx(16 / 18)
    assert jain_index(np.array([0, 0])) is None


def test_priorities_decide_who_waits(tmp_path: Path) -> None:
    summary = summarise(run_scenario(parse_scenario(scenario(tmp_path, priorities={"c": -1, "a": 3}))))
    waits = {name: group["ttft_s"]["mean"] for name, group in summary["by_tenant"].items()}
    assert waits["c"] < waits["b"] < waits["a"]
    assert summary["fairness"] == {"tenants": 3, "jain_index_of_served_tokens": pytest.approx(16 / 18)}


def test_a_tenant_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"workload\.priorities: no tenant is called 'd'; known: a, b, c"):
        run_scenario(parse_scenario(scenario(tmp_path, priorities={"d": 1})))


def test_clients_that_give_up(tmp_path: Path) -> None:
    data = scenario(tmp_path)
    data["clients"] = {"first_token_timeout": "1 s", "cancel": {"share": 0.2, "after": "100 ms"}}
    summary = summarise(run_scenario(parse_scenario(data)))
    assert summary["ttft_s"]["p99"] <= 1
    assert set(summary["cancelled_by_reason"]) == {
        "no first token within first_token_timeout",
        "cancelled by its user",
    }
    assert sum(summary["cancelled_by_reason"].values()) == summary["requests_cancelled"] > 10
    assert summary["requests_completed"] + summary["requests_cancelled"] == 80
    assert any("cancelled" in warning for warning in warnings_of(summary))


def test_clients_in_front_of_a_response_cache(tmp_path: Path) -> None:
    data = scenario(tmp_path)
    data |= {"clients": {"timeout": "1 s"}, "cluster": {"response_cache": {}}}
    with pytest.raises(ScenarioError, match="clients: who gives up in front of a response cache"):
        run_scenario(parse_scenario(data))


def test_admission_in_a_scenario(tmp_path: Path) -> None:
    data = scenario(tmp_path)
    data["cluster"] = {"admission": {"max_waiting": 10, "rate_limit": {"requests_per_s": 200, "burst": 20}}}
    summary = summarise(run_scenario(parse_scenario(data)))
    assert summary["requests_completed"] + summary["requests_rejected"] == 80
    assert summary["rejected_by_reason"]["cluster.admission.max_waiting requests wait at its replica"] > 10

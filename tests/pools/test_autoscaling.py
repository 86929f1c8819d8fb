"""Replicas that come and go, by hand: prompts of 20 tokens and 1 output token take 304 ns (test_handover_stories.py)."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled import scaled
from toys import ToyCost, fused_and_unfused, toy_cache, toy_engine, toy_trace

from kvsim.cache.load import load_manager
from kvsim.cache.tiers import TierConfig
from kvsim.cluster.autoscale import Autoscaling
from kvsim.cluster.clients import Patience
from kvsim.cluster.router import LeastOutstandingTokens, RoundRobin
from kvsim.cluster.run import run_scenario
from kvsim.cluster.simulation import PoolParts, build_cluster, play
from kvsim.errors import ScenarioError
from kvsim.hardware.spec import LinkSpec
from kvsim.reports.html import write_report
from kvsim.results.folder import write_results
from kvsim.scenario.clients import Clients
from kvsim.scenario.load import parse_scenario

SETTING = Autoscaling(
    least=1, most=3, metric="waiting_requests", target=1, interval_ns=1000, start_up_ns=500, cool_down_ns=2000
)


def test_up_at_once_and_down_after_the_cool_down() -> None:
    """Twelve requests at 0 on one replica, one at a time, and one more at 6,000.

    1,000: the fourth runs since 912, eight wait, so 8 are wanted and 3 are the most: two start. 2,000: five wait, 5 wanted.
    3,000: two wait, 2 wanted, but 3 were within the cool-down. 4,000: 1 wanted. 5,000: the largest wish since 3,000 is 2, so the
    last of the two idle ones stops. 6,000: the largest since 4,000 is 1.
    """
    trace = toy_trace([(0, 20, 1)] * 12 + [(6000, 20, 1)])
    simulation = scaled(trace, SETTING, engine={"max_num_seqs": 1})
    use = simulation.scaled[0].use(0, simulation.cluster.last_token_ns)
    assert use.changes == (
        (0, 1, 0, 0),
        (1000, 1, 2, 0),
        (1500, 2, 1, 0),
        (1500, 3, 0, 0),
        (5000, 2, 0, 0),
        (6000, 1, 0, 0),
    )
    assert simulation.cluster.last_token_ns == 6304
    assert use.paid_ns == (6304, 5000, 4000)


def test_a_replica_ends_what_it_has_before_it_stops() -> None:
    """Two replicas, each with a request; nothing waits, so at 1,000 one is wanted, and the cool-down is over at once.

    The last one drains: its request has 40 decode steps of 131, 132, ... after its prefill of 304, the last at
    304 + 40 * 131 + 780 = 6,324. A request at 2,000 goes to the other one.
    """
    setting = Autoscaling(1, 2, "waiting_requests", 1, 1000, 500, 0)
    trace = toy_trace([(0, 20, 41), (0, 20, 41), (2000, 20, 1)])
    simulation = scaled(trace, setting, initial=2)
    use = simulation.scaled[0].use(0, simulation.cluster.last_token_ns)
    assert use.changes == ((0, 2, 0, 0), (1000, 1, 0, 1), (6324, 1, 0, 0))
    by_request = {row.request: row for row in simulation.recorder.requests}
    assert (by_request[1].replica, by_request[1].e2e_ns) == (1, 6324)
    assert by_request[2].replica == 0
    assert use.paid_ns[1] == 6324


@pytest.mark.parametrize("deep", [False, True])
def test_a_draining_replica_whose_request_is_given_up_stops(deep: bool) -> None:
    """With a tier and two steps in flight its blocks are back one decision after it was dropped."""
    tiers = (TierConfig("ddr", 4000, "before", "through", "lru", 16),)
    pool = PoolParts(
        toy_engine(async_scheduling=deep),
        toy_cache(1000, tiers=tiers),
        (LinkSpec("ddr", 1e8, 1e8, 0),),
        ToyCost(),
        2,
        scaling=Autoscaling(1, 2, "waiting_requests", 1, 1000, 500, 0),
    )
    trace = toy_trace([(0, 60, 400), (0, 60, 400)])
    simulation = build_cluster(
        trace, [pool], lambda config: load_manager("prefix_tree", config), RoundRobin(), check=True
    )
    simulation.cluster.wait(Patience(Clients(timeout="20 us"), len(trace), seed=0))  # type: ignore[arg-type]
    play(simulation)
    assert len(simulation.recorder.cancelled) == 2
    changes = simulation.scaled[0].use(0, 10**6).changes  # type: ignore[union-attr]
    assert [row[1:] for row in changes] == [(2, 0, 0), (1, 0, 1), (1, 0, 0)]
    assert 20_000 < changes[-1][0] < 21_000


def test_it_comes_back_with_a_cold_cache() -> None:
    """All prompts share 16 tokens. Both replicas compute them at 0; the second stops at 1,000, and is back at 3,000."""
    setting = Autoscaling(1, 2, "outstanding_tokens", 20, 1000, 0, 0)
    rows = [(0, 20, 1), (0, 20, 1), (2001, 20, 30), (2001, 20, 30), (2001, 20, 30), (3100, 20, 1)]
    simulation = scaled(toy_trace(rows, [[(7, 16)]] * 6), setting, 2, LeastOutstandingTokens())
    use = simulation.scaled[0].use(0, simulation.cluster.last_token_ns)
    assert use.changes[:4] == ((0, 2, 0, 0), (1000, 1, 0, 0), (3000, 1, 1, 0), (3000, 2, 0, 0))
    found = [(row.replica, row.cached_tokens) for row in sorted(simulation.recorder.requests)]
    assert found == [(0, 0), (1, 0), (0, 16), (0, 16), (0, 16), (1, 0)]


@pytest.mark.parametrize(
    ("metric", "target"), [("waiting_requests", 0.5), ("outstanding_tokens", 30), ("utilisation", 0.6)]
)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=25),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([0, 700]),
    st.sampled_from([0, 5000]),
)
def test_fused_steps_change_nothing_and_nothing_is_lost(
    metric, target, rows, deep, initial, start_up, cool_down
) -> None:  # type: ignore[no-untyped-def]
    requests = sorted((at * 300, tokens, output) for at, tokens, output in rows)
    setting = Autoscaling(1, 4, metric, target, 900, start_up, cool_down)
    fused, unfused = fused_and_unfused(
        lambda: scaled(
            toy_trace(requests), setting, initial, LeastOutstandingTokens(), {"async_scheduling": deep}
        )
    )
    uses = [simulation.scaled[0].use(0, simulation.cluster.last_token_ns) for simulation in (fused, unfused)]
    assert uses[0] == uses[1]
    assert len(fused.recorder.requests) == len(requests)
    assert all(on >= 1 and on + starting + draining <= 4 for _, on, starting, draining in uses[0].changes)
    makespan = fused.cluster.last_token_ns
    assert all(0 <= paid <= makespan for paid in uses[0].paid_ns)


def load(tmp_path, cluster, *overrides: str):  # type: ignore[no-untyped-def]
    """Twenty seconds of quick requests, then a minute of few."""
    rows = [{"arrival_s": i * 0.01, "input_tokens": 4000, "output_tokens": 50} for i in range(2000)]
    rows += [{"arrival_s": 20 + i, "input_tokens": 400, "output_tokens": 5} for i in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"cluster": cluster, "workload": {"sources": [{"file": "t.jsonl"}]}}
    return parse_scenario(data, overrides, base=tmp_path)


RULE = {
    "max": 4,
    "metric": "utilisation",
    "target": 0.5,
    "interval": "1 s",
    "start_up": "3 s",
    "cool_down": "5 s",
}


def test_a_scenario_pays_from_start_to_stop(tmp_path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    outcome = run_scenario(load(tmp_path, {"autoscale": RULE, "router": "least_outstanding_tokens"}))
    summary = write_results(outcome, out, finish=write_report)
    (row,) = summary["autoscaling"]
    assert row["most"] == 4 and 1 < row["mean_replicas"] < 4
    assert summary["cost"]["gpu_hours"] == pytest.approx(row["mean_replicas"] * summary["makespan_s"] / 3600)
    changes = [(each["t_s"], each["on"], each["starting"]) for each in row["changes"]]
    assert changes[0] == (0.0, 1, 0)
    asked = next(t_s for t_s, _, starting in changes if starting)
    ready = next(t_s for t_s, on, _ in changes if on > 1)
    assert ready == pytest.approx(asked + 3)
    assert all(0 <= share <= 1 for share in summary["utilisation"]["replicas"] if share is not None)
    on = pq.read_table(out / "timeline.parquet")["replicas_on"].to_pylist()
    assert min(on) == 1 and max(on) > 1
    assert "autoscaling" in (out / "report.html").read_text()


def test_a_pool_of_its_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Decode replicas that come and go behind a prefill replica that stays."""
    pools = [
        {"name": "p", "role": "prefill", "replicas": 2},
        {"name": "d", "role": "decode", "autoscale": RULE},
    ]
    scenario = load(
        tmp_path, {"pools": pools, "kv_transfer": {"link": "nic-400g"}}, "workload.max_requests=600"
    )
    outcome = run_scenario(scenario, check=True)
    assert outcome.requests_unfinished == 0
    assert outcome.pools[0].scaling is None and outcome.pools[1].scaling is not None
    assert len(outcome.pools[1].scaling.changes) > 1


@pytest.mark.parametrize(
    ("cluster", "line"),
    [
        ({"autoscale": {**RULE, "min": 5}}, "scenario.cluster.autoscale: max 4 is below min 5"),
        ({"autoscale": {**RULE, "min": 2}}, "the run begins with 1, which is not from 2 to 4"),
        (
            {"autoscale": {**RULE, "metric": "queue"}},
            "scenario.cluster.autoscale.metric: unknown value 'queue'",
        ),
        ({"autoscale": {**RULE, "target": 0}}, "scenario.cluster.autoscale.target: must be greater than 0"),
        (
            {"autoscale": RULE, "pools": [{"name": "a"}]},
            "scenario.cluster: autoscale: is given beside pools; give it to those that it is meant for",
        ),
    ],
)
def test_mistakes(tmp_path, cluster, line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScenarioError) as error:
        load(tmp_path, cluster)
    assert line in str(error.value)

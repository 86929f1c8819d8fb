"""Replicas of several kinds in one cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvsim.cluster.run import run_scenario
from kvsim.errors import ScenarioError
from kvsim.reports.html import write_report
from kvsim.results.folder import write_results
from kvsim.results.reading import cluster_line
from kvsim.scenario.load import parse_scenario
from kvsim.scenario.of_pool import pool_scenarios

ROWS = [{"arrival_s": i * 0.05, "input_tokens": 300 + 7 * i, "output_tokens": 20} for i in range(60)]


@pytest.fixture
def scenario(tmp_path):  # type: ignore[no-untyped-def]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def load(pools, *overrides: str, **cluster: object):  # type: ignore[no-untyped-def]
        data = {"cluster": {"pools": pools, **cluster}, "workload": {"sources": [{"file": "t.jsonl"}]}}
        return parse_scenario(data, overrides, base=tmp_path)

    return load


TWO = [
    {"name": "fast", "replicas": 1},
    {"name": "cheap", "replicas": 2, "gpu": "a100-80gb-sxm", "engine": {"max_num_batched_tokens": 2048}},
]


def test_a_pool_overrides_what_it_names(scenario) -> None:  # type: ignore[no-untyped-def]
    (_, fast), (_, cheap) = pool_scenarios(scenario(TWO, "cache.num_gpu_blocks=900", usd_per_gpu_hour=1.0))
    assert (fast.cluster.gpu, cheap.cluster.gpu) == ("h100-sxm", "a100-80gb-sxm")
    assert (fast.cluster.usd_per_gpu_hour, cheap.cluster.usd_per_gpu_hour) == (1.0, None)
    assert (fast.engine.max_num_batched_tokens, cheap.engine.max_num_batched_tokens) == (8192, 2048)
    assert fast.cache.num_gpu_blocks == cheap.cache.num_gpu_blocks == 900
    assert cheap.cluster.pools == () and cheap.cluster.replicas == 2


def test_one_pool_is_the_flat_cluster(scenario) -> None:  # type: ignore[no-untyped-def]
    pooled = run_scenario(scenario([{"name": "all", "replicas": 3}]))
    flat = run_scenario(scenario([], replicas=3))
    assert pooled.recorder.requests == flat.recorder.requests
    assert pooled.recorder.timeline == flat.recorder.timeline
    assert pooled.used_ns == flat.used_ns


def test_each_replica_has_its_pools_times(scenario) -> None:  # type: ignore[no-untyped-def]
    """Round robin: request i of three replicas runs as on a cluster of that kind alone."""
    mixed = {row.request: row for row in run_scenario(scenario(TWO)).recorder.requests}
    for replicas, cluster in (((0,), {}), ((1, 2), {"gpu": "a100-80gb-sxm"})):
        keys = [f"engine.max_num_batched_tokens={2048 if cluster else 8192}"]
        alone = run_scenario(scenario([], *keys, replicas=3, **cluster))
        rows = [row for row in alone.recorder.requests if row.replica in replicas]
        assert rows and [mixed[row.request] for row in rows] == rows


def test_results_by_pool(scenario, tmp_path) -> None:  # type: ignore[no-untyped-def]
    outcome = run_scenario(
        scenario(TWO, "cluster.pools.fast.usd_per_gpu_hour=3", "cluster.pools.cheap.usd_per_gpu_hour=1")
    )
    out = tmp_path / "out"
    summary = write_results(outcome, out, finish=write_report)
    fast, cheap = summary["pools"]
    hours = summary["makespan_s"] / 3600
    assert (fast["requests"], cheap["requests"]) == (20, 40)
    assert (fast["first_replica"], cheap["first_replica"]) == (0, 1)
    assert fast["gpu_hours"] == pytest.approx(hours) and cheap["gpu_hours"] == pytest.approx(2 * hours)
    assert summary["cost"]["usd"] == pytest.approx((3 + 2) * hours)
    assert summary["cost"]["usd_per_gpu_hour"] == pytest.approx(5 / 3)
    assert summary["cluster"]["replicas"] == 3
    assert cluster_line(summary) == "fast: 1 replica × 1 h100-sxm, cheap: 2 replicas × 1 a100-80gb-sxm"
    assert set(pq.read_table(out / "requests.parquet")["replica"].to_pylist()) == {0, 1, 2}
    page = (out / "report.html").read_text()
    assert "cheap" in page and "KV memory of one" in page


def test_a_long_request_goes_where_it_fits(tmp_path: Path) -> None:
    rows = [{"arrival_s": i, "input_tokens": 3000, "output_tokens": 2} for i in range(4)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pools = [{"name": "small", "num_gpu_blocks": 100}, {"name": "large", "num_gpu_blocks": 1000}]
    data = {"cluster": {"pools": pools}, "workload": {"sources": [{"file": "t.jsonl"}]}}
    outcome = run_scenario(parse_scenario(data, base=tmp_path))
    assert [row.replica for row in outcome.recorder.requests] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("pools", "cluster", "line"),
    [
        (
            [{"name": "a"}, {"name": "a"}],
            {},
            "scenario.cluster: two pools are called 'a'",
        ),
        (
            [{"name": "a"}],
            {"replicas": 2},
            "scenario.cluster: replicas: 2 is given beside pools, which have replicas of their own; leave it out",
        ),
        (
            [{"name": "a", "gpus": "h100-sxm"}],
            {},
            "scenario.cluster.pools.0.gpus: unknown key; did you mean 'gpu'?",
        ),
        (
            [{"name": "a", "replicas": 0}],
            {},
            "scenario.cluster.pools.0.replicas: must be at least 1, found 0",
        ),
        (
            [{"name": "a", "gpu": "h100"}],
            {},
            "scenario.cluster.pools.0.gpu: no GPU is called 'h100'; did you mean 'h100-sxm'",
        ),
        (
            [{"name": "a", "tensor_parallel": 3}],
            {},
            "scenario.cluster.pools.0.tensor_parallel: ",
        ),
        ([{"name": "a", "engine": {"max_num_seq": 4}}], {}, "did you mean 'max_num_seqs'?"),
        ([{"name": "0"}], {}, "scenario.cluster.pools.0.name: "),
        (
            [{"name": "a", "role": "prefill"}],
            {},
            "scenario.cluster: a pool has role prefill and none has role decode; add one, or make it mixed",
        ),
        (
            [{"name": "a", "role": "prefill"}, {"name": "b", "role": "decode"}],
            {},
            "scenario.cluster: kv_transfer is missing: what joins prefill and decode pools? Write {link: nic-400g}",
        ),
        (
            [{"name": "a"}],
            {"kv_transfer": {"link": "nvlink4"}},
            "kv_transfer is given, and no pool has role prefill",
        ),
        (
            [{"name": "a", "role": "prefill"}, {"name": "b", "role": "decode"}],
            {"kv_transfer": {"link": "nic400g"}},
            "scenario.cluster.kv_transfer.link: no link is called 'nic400g'; did you mean 'nic-400g'",
        ),
        (
            [{"name": "a", "role": "prefill"}, {"name": "b", "role": "decode"}],
            {"kv_transfer": {"link": {"read": "0 B/s", "write": "1 GB/s"}}},
            "scenario.cluster.kv_transfer.link: a rate of 0 B/s never ends a transfer",
        ),
    ],
)
def test_mistakes(scenario, pools, cluster, line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScenarioError) as error:
        scenario(pools, **cluster)
    assert line in str(error.value)


def test_a_pool_that_cannot_run_is_named(scenario) -> None:  # type: ignore[no-untyped-def]
    pools = [{"name": "a"}, {"name": "b", "engine": {"max_num_batched_tokens": 100}}]
    with pytest.raises(ScenarioError, match=r"cluster\.pools\.b: .*100 is below max_num_seqs 256"):
        run_scenario(scenario(pools))


SPLIT = [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode", "gpu": "a100-80gb-sxm"}]


def test_results_of_prefill_and_decode_pools(scenario, tmp_path) -> None:  # type: ignore[no-untyped-def]
    outcome = run_scenario(scenario(SPLIT, kv_transfer={"link": "nic-400g"}), check=True)
    out = tmp_path / "out"
    summary = write_results(outcome, out, finish=write_report)
    table = pq.read_table(out / "requests.parquet").to_pydict()
    assert set(table["replica"]) == {0} and set(table["decode_replica"]) == {1}
    parts = zip(*(table[f"{part}_s"] for part in ("queue", "load", "prefill", "host")), strict=True)
    assert table["ttft_s"] == [queue + load + prefill + host for queue, load, prefill, host in parts]
    for ttft, wait, transfer, e2e in zip(
        *(table[name] for name in ("ttft_s", "kv_wait_s", "kv_transfer_s", "e2e_s")), strict=True
    ):
        assert wait >= 0 and transfer > 0 and ttft + wait + transfer < e2e
    assert [pool["requests"] for pool in summary["pools"]] == [60, 60]
    assert [row["requests"] for row in summary["by_replica"]] == [60, 60]
    assert summary["disaggregation"]["requests"] == 60
    links = {
        (link["replica"], link["name"], link["direction"]): link for link in summary["utilisation"]["links"]
    }
    sent = summary["cluster"]["kv_bytes_per_token"] * sum(row["input_tokens"] for row in ROWS)
    assert links[0, "nic-400g", "write"]["bytes"] == links[1, "nic-400g", "read"]["bytes"] == sent
    assert "KV handed over" in (out / "report.html").read_text()


def test_prefill_latency_over_an_infinite_link_is_the_aggregated_one(scenario, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Real prices: as many mixed replicas as prefill replicas, and no decodes (every request cut to its first token)."""
    pools = [{"name": "p", "role": "prefill", "replicas": 2}, {"name": "d", "role": "decode", "replicas": 2}]
    link = {"read": "1000000000 GB/s", "write": "1000000000 GB/s"}
    split = run_scenario(scenario(pools, kv_transfer={"link": link}))
    first = [{**row, "output_tokens": 1} for row in ROWS]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, first)))
    alone = run_scenario(scenario([], replicas=2))

    def ttft(outcome) -> dict[int, int]:  # type: ignore[no-untyped-def]
        rows = outcome.recorder.requests
        return {row.request: row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns for row in rows}

    assert ttft(split) == ttft(alone)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["cache.manager=chunks"], "cache.manager: 'chunks' cannot hand KV over to another replica"),
        (["cache.codec={keys: {bits: 4}, values: {bits: 4}}"], "leave out cache.codec"),
        (["clients.timeout=1 s"], "clients: that they give up is not modelled where one pool prefills"),
    ],
)
def test_what_cannot_be_handed_over(scenario, keys: list[str], line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScenarioError) as error:
        run_scenario(scenario(SPLIT, *keys, kv_transfer={"link": "nic-400g"}))
    assert line in str(error.value)


def test_set_of_a_pools_key(scenario) -> None:  # type: ignore[no-untyped-def]
    assert scenario(TWO, "cluster.pools.cheap.replicas=4").cluster.pools[1].replicas == 4
    with pytest.raises(ScenarioError, match=r"--set cluster\.pools\.chap\.replicas: .*did you mean 'cheap'"):
        scenario(TWO, "cluster.pools.chap.replicas=4")


def test_who_decodes_is_not_drawn_as_who_prefills(scenario) -> None:  # type: ignore[no-untyped-def]
    """Two of each: a router at random that had the other's numbers would always pick the same pairs."""
    pools = [{"name": role, "role": role, "replicas": 2} for role in ("prefill", "decode")]
    split = scenario(pools, kv_transfer={"link": "nic-400g"}, router="random")
    outcome = run_scenario(split)
    assert outcome.handovers is not None
    prefill = {row.request: row.replica for row in outcome.recorder.requests}
    pairs = {(prefill[row], decode) for row, decode in enumerate(outcome.handovers.decode_replica.tolist())}
    assert len(pairs) == 4

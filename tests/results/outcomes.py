"""Two finished runs: a small one whose figures can be checked on paper, and a larger random one."""

from __future__ import annotations

import numpy as np

from kvsim.results.outcome import CacheCounts, LinkUse, Outcome, PoolUse
from kvsim.results.recorder import Recorder, RequestRow, TimelineRow

MS = 1_000_000
S = 1000 * MS
GB = 10**9


def small_outcome(loop_wall_s: float = 0.5) -> Outcome:
    """Three finished requests (in the order 1, 0, 2), one rejected, one unfinished, on two replicas in 10 s.

    request  queue load prefill host  = TTFT    e2e    output  TPOT
    0        100    0    200    10      310 ms   710 ms   5    100 ms
    1        0      50   100    10      160 ms   160 ms   1    null
    2        500    0    400    10      910 ms  1210 ms   4    100 ms
    """
    recorder = Recorder()
    for request, arrival, tokens, hits, parts, e2e, replica, preemptions, session, tenant in (
        (1, 1000, (200, 1), (0, 100), (0, 50, 100, 10), 160, 1, 0, -1, 1),
        (0, 0, (100, 5), (40, 10), (100, 0, 200, 10), 710, 0, 0, 0, 0),
        (2, 2000, (700, 4), (0, 0), (500, 0, 400, 10), 1210, 0, 2, 0, -1),
    ):
        recorder.requests.append(
            RequestRow(
                request, arrival * MS, *tokens, sum(hits), 25 if request == 2 else 0,
                *(part * MS for part in parts), e2e * MS, replica, preemptions, session, tenant, hits,
            )
        )  # fmt: skip
    recorder.rejected.append((3, "prompt longer than the model's context"))
    recorder.itl(100 * MS, 6)
    recorder.itl(200 * MS, 1)
    for t_ms, replica, running, waiting, used in ((0, 0, 1, 0, 2), (0, 1, 0, 0, 0), (5000, 0, 3, 2, 8)):
        recorder.timeline.append(
            TimelineRow(t_ms * MS, replica, running, waiting, 64, (used * GB, GB), used * GB // 2)
        )
    return Outcome(
        recorder=recorder,
        requests_submitted=5,
        requests_unfinished=1,
        requests_failed=0,
        requests_cancelled=0,
        lost_in_warm_up=0,
        makespan_ns=10 * S,
        tier_names=("hbm", "ddr"),
        warm_up_ns=0,
        tier_capacity_bytes=(10 * GB, 100 * GB),
        tier_shared=(False, False),
        pools=(PoolUse("", "mixed", 2, 4, "H100 SXM", 3.6, "list price, 2025-06", 0.0, 10 * GB),),
        busy_ns=(8 * S, 2 * S),
        num_steps=12,
        num_events=9,
        used_ns={
            ("gemm", "measured"): 6 * S,
            ("gemm", "extrapolated"): 1 * S,
            ("decode_attention", "imported"): 2 * S,
            ("decode_attention", "derived"): 1 * S,
        },
        cache=CacheCounts(300, 70, (300, 20), (0, 5 * GB), (0, 6 * GB)),
        links=(LinkUse(0, "host", "read", 1 * S, 5 * GB, 7), LinkUse(1, "host", "read", 0, 0, 0)),
        shared_tiers_usd_per_hour=0.0,
        names_content=True,
        methods=(),
        kv_bytes_per_token=131_072,
        scenario={"name": "small", "engine": {"max_num_seqs": 8}, "traces": ("a.jsonl",)},
        hashes={"scenario": "aa", "profile": "bb", "traces": "cc"},
        session_names=("chat-1",),
        tenant_names=("gold", "silver"),
        seed=7,
        loop_wall_s=loop_wall_s,
    )


def random_outcome(num_requests: int = 5000, num_replicas: int = 4, seed: int = 1) -> Outcome:
    """A plausible cluster under a load that swings, all numbers from ``seed``."""
    rng = np.random.default_rng(seed)
    recorder = Recorder()
    arrival = np.cumsum(rng.exponential(0.05, num_requests))
    swing = 1.2 + np.sin(arrival / arrival[-1] * 12)
    queue = rng.exponential(0.4, num_requests) * swing**3 * (rng.random(num_requests) < 0.6)
    load = rng.exponential(0.08, num_requests) * (rng.random(num_requests) < 0.4)
    inputs = np.minimum(rng.lognormal(7, 1, num_requests), 60_000).astype(int) + 1
    outputs = rng.geometric(1 / 200, num_requests)
    prefill, tpot = 0.03 + inputs * 2e-5, rng.normal(0.03, 0.004, num_requests).clip(0.01)
    hbm, ddr = (inputs * 0.3).astype(int), (inputs * 0.15).astype(int)
    last = 0
    for i in range(num_requests):
        parts = [int(x * 1e9) for x in (queue[i], load[i], prefill[i], 0.004)]
        e2e = sum(parts) + int(tpot[i] * 1e9) * int(outputs[i] - 1)
        last = max(last, int(arrival[i] * 1e9) + e2e)
        recorder.requests.append(
            RequestRow(
                i, int(arrival[i] * 1e9), int(inputs[i]), int(outputs[i]), int(hbm[i] + ddr[i]),
                int(inputs[i] // 50),
                *parts, e2e, i % num_replicas, int(i % 37 == 0), i // 3, i % 3, (int(hbm[i]), int(ddr[i]), 0),
            )
        )  # fmt: skip
        recorder.itl(int(tpot[i] * 1e9), int(outputs[i] - 1))
    t_ns = np.linspace(0, last, 20_000).astype(int)
    level = 1.2 + np.sin(t_ns / last * 12) + 0.1 * rng.random(len(t_ns))
    for i, (t, x) in enumerate(zip(t_ns.tolist(), level.tolist(), strict=True)):
        used = (int(min(30 + 20 * x, 60) * GB), int(min(t / last * 400, 256) * GB), int(t / last * 90 * GB))
        row = TimelineRow(
            t, i % num_replicas, int(40 * x), int(max(0, x - 1.4) * 30), 2048, used, int(18 * x * GB)
        )
        recorder.timeline.append(row)
    busy = tuple(int(last * share) for share in np.linspace(0.93, 0.7, num_replicas))
    kernels = ("gemm", "decode_attention", "prefill_attention", "all_reduce", "sampling", "quantise_kv")
    used_ns = {
        (k, "measured"): int(sum(busy) * s)
        for k, s in zip(kernels, (0.45, 0.2, 0.1, 0.05, 0.02, 0), strict=True)
    }
    used_ns |= {("prefill_attention", "derived"): sum(busy) // 25, ("gemm", "extrapolated"): sum(busy) // 7}
    names = ("nvlink", "host", "host", "disk")
    ways = ("read", "read", "write", "read")
    links = tuple(
        LinkUse(r, name, way, int(last * share), int(share * 10**13), int(1e4 * share))
        for r in range(num_replicas)
        for name, way, share in zip(names, ways, (0.02, 0.3, 0.2, 0.6), strict=True)
    )
    return Outcome(
        recorder=recorder,
        requests_submitted=num_requests + 3,
        requests_unfinished=3,
        requests_failed=0,
        requests_cancelled=0,
        lost_in_warm_up=0,
        makespan_ns=last,
        tier_names=("hbm", "ddr", "disk"),
        warm_up_ns=0,
        tier_capacity_bytes=(60 * GB, 256 * GB, 2000 * GB),
        tier_shared=(False, False, False),
        pools=(PoolUse("", "mixed", num_replicas, 2, "H100 SXM", 2.5, "list price, 2025-06", 0.0, 60 * GB),),
        busy_ns=busy,
        num_steps=400_000,
        num_events=30_000,
        used_ns=used_ns,
        cache=CacheCounts(
            8_000_000, 12_000, (8_000_000, 1_000_000, 0), (0, 4 * 10**12, 10**12), (0, 5 * 10**12, 10**12)
        ),
        links=links,
        shared_tiers_usd_per_hour=0.0,
        names_content=True,
        methods=(),
        kv_bytes_per_token=131_072,
        scenario={
            "name": "random <b>bold</b>",
            "model": "llama-3.1-8b",
            "cluster": {"replicas": num_replicas},
        },
        hashes={"scenario": "a" * 64, "profile": "b" * 64, "traces": "c" * 64},
        session_names=tuple(f"s{i}" for i in range(num_requests // 3 + 1)),
        tenant_names=("chat", "code-completion", "<script>alert('rag')</script>"),
        seed=seed,
        loop_wall_s=3.2,
    )

"""Pools of a cluster as axes of a plan: priced pool by pool, one thing more in each."""

from __future__ import annotations

from kvsim.scenario.load import parse_scenario
from kvsim.study.plan.space import Candidate, title, usd_per_hour
from kvsim.study.plan.variants import variants

DATA = {
    "cluster": {
        "router": "least_outstanding_tokens",
        "pools": [
            {"name": "big", "replicas": 2, "gpu": "h100-sxm", "usd_per_gpu_hour": 3.0},
            {
                "name": "small",
                "replicas": 3,
                "gpu": "a100-80gb-sxm",
                "tensor_parallel": 2,
                "usd_per_gpu_hour": 1.0,
            },
        ],
    },
    "cache": {"tiers": [{"name": "ddr", "capacity": "73 GB", "usd_per_gb_month": 1.0}]},
    "workload": {"sources": [{"generator": "chat"}]},
}


def test_pools_are_priced_and_named_one_by_one() -> None:
    scenario = parse_scenario(DATA)
    # 2 x 3 + 3 x 2 x 1 dollars of GPUs, and 73 GB for each of 5 replicas at 1 / 730 a GB and hour
    assert abs(usd_per_hour(scenario) - (12 + 5 * 0.1)) < 1e-12
    candidate = Candidate({}, scenario, 12.5, "")
    assert (candidate.replicas, candidate.gpus, candidate.gpu) == (5, 8, "h100-sxm and a100-80gb-sxm")
    assert title(scenario) == (
        "2 × h100-sxm (big) and 3 × 2 a100-80gb-sxm (TP 2) (small), least_outstanding_tokens, ddr 73 GB"
    )
    first, second = variants(scenario)[:2]
    assert (first.name, second.name) == ("one more GPU in big", "one more replica (2 GPUs) in small")
    assert abs(usd_per_hour(first.scenario) - 15.6) < 1e-12
    assert abs(usd_per_hour(second.scenario) - 14.6) < 1e-12


def test_one_thing_more_of_tiers_keeps_what_was_there() -> None:
    scenario = parse_scenario({**DATA, "cluster": {"replicas": 2}})
    more = {variant.name: variant.scenario for variant in variants(scenario)}
    assert [t.capacity for t in more["64 GB of DDR a replica"].cache.tiers] == [137 * 10**9]
    disk = more["1 TB of disk a replica"].cache.tiers
    assert [(t.name, t.link, t.capacity) for t in disk] == [
        ("ddr", None, 73 * 10**9),
        ("disk", "nvme", 10**12),
    ]
    (twice,) = more["twice the link of ddr"].cache.tiers
    assert twice.link.read == twice.link.write == 108 * 10**9 and twice.usd_per_gb_month == 1.0
    assert usd_per_hour(more["twice the link of ddr"]) == usd_per_hour(scenario)
    none = parse_scenario({**DATA, "cluster": {}, "cache": {"manager": "paged"}})
    assert [v.scenario is None for v in variants(none)] == [False, True, True, True]

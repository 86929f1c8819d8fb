"""The table of docs/rag_mix.md: ``python tests/benchmarks/rag_mix.py`` runs ``scenarios/rag_mix.yaml`` 18 times (a minute)."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvsim.cluster.run import run_scenario
from kvsim.results.summary import summarise
from kvsim.scenario.load import load_scenario

SLOW = "cache.tiers.disk.link={read: 0.5 GB/s, write: 2 GB/s, operation: 1 us, latency: 100 us}"
CASES = {
    "`none`": ["cache.tiers=[]", "cache.manager=none"],
    "HBM only": ["cache.tiers=[]"],
    "HBM + DDR": ["cache.tiers=[{name: ddr, capacity: 64 GB}]"],
    "HBM + DDR + disk": [],
    "slow disk, `always`": [SLOW],
    "slow disk, `if_faster`": [SLOW, "cache.load_policy=if_faster"],
}


def seeds(seed: int) -> list[str]:
    """Overrides that give every source, and the run, a seed of its own."""
    of_source = {
        "chat": seed,
        "tools": seed,
        "coding_a": f"{seed}97",
        "coding_b": f"{seed}98",
        "coding_c": f"{seed}99",
    }
    return [
        f"seed={seed}",
        *(f"workload.sources.{name}.options.seed={value}" for name, value in of_source.items()),
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    scenario = Path(__file__).parents[2] / "scenarios" / "rag_mix.yaml"
    arguments.add_argument("--scenario", type=Path, default=scenario)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = arguments.parse_args()
    print(
        "| cache | seed | TTFT mean ms | p50 ms | p95 ms | hits HBM | DDR | disk | output tokens/s | prompt tokens/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, overrides in CASES.items():
        for seed in options.seeds:
            summary = summarise(run_scenario(load_scenario(options.scenario, [*seeds(seed), *overrides])))
            assert summary["requests_completed"] == summary["requests_submitted"]
            ttft_s, hits = summary["ttft_s"], summary["cache"]["hit_token_ratio_by_tier"]
            cells = [name, str(seed), *(f"{ttft_s[key] * 1e3:,.0f}" for key in ("mean", "p50", "p95"))]
            cells += [
                f"{hits[tier]:.1%}".replace("%", " %") if tier in hits else "-"
                for tier in ("hbm", "ddr", "disk")
            ]
            cells += [
                f"{summary['throughput'][key]:,.0f}" for key in ("output_tokens_per_s", "input_tokens_per_s")
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

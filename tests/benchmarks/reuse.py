"""The tables of docs/reuse.md: every scenario of ``scenarios/reuse`` with every method that reuses (a minute)."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvsim.cluster.run import run_scenario
from kvsim.results.summary import summarise
from kvsim.scenario.load import load_scenario

NOTHING = "no reuse"
METHODS = {
    NOTHING: ["cache.manager=none", "cache.tiers=[]"],
    "prefix": [],
    **{
        name: [f"method={name}"]
        for name in ("ragcache", "cacheblend", "cache-craft", "prompt-cache", "ape", "cachegen")
    },
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    scenarios = Path(__file__).parents[2] / "scenarios" / "reuse"
    arguments.add_argument(
        "--scenarios", type=Path, nargs="+", default=sorted(scenarios.glob("*.yaml")), metavar="FILE"
    )
    arguments.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="rows to print"
    )
    options = arguments.parse_args()
    print(
        "| workload | method | exact | approximate | TTFT mean ms | p50 | p95 | prompt tokens/s | TTFT against prefix |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    wanted = {name: keys for name, keys in METHODS.items() if name in {"prefix", *options.methods}}
    for path in options.scenarios:
        found = {name: summarise(run_scenario(load_scenario(path, keys))) for name, keys in wanted.items()}
        base_s = found["prefix"]["ttft_s"]["mean"]
        for name, summary in found.items():
            assert summary["requests_completed"] == summary["requests_submitted"]
            ttft_s, cache = summary["ttft_s"], summary["cache"]
            cells = [path.stem, f"`{name}`" if name not in (NOTHING, "prefix") else name]
            cells += [f"{cache[key]:.3f}" for key in ("hit_token_ratio", "approximate_token_ratio")]
            cells += [f"{ttft_s[key] * 1e3:,.0f}" for key in ("mean", "p50", "p95")]
            cells += [
                f"{summary['throughput']['input_tokens_per_s']:,.0f}",
                f"{base_s / ttft_s['mean']:.2f}x",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

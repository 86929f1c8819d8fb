"""How a run grows with replicas and requests: wall and CPU time, peak memory, by router.

``python tests/benchmarks/scale.py`` runs 1, 10, 100 and 1,000 replicas with ``--requests`` requests each, all routers that
``--routers`` names, every run a process of its own. Requests share 200 prefixes of 400 tokens; the load of a replica is the same
in each case. ``--replicas 1000 --requests 1000000`` is the case of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RATE_PER_REPLICA = 4.0  # requests a second
ROUTERS = ["round_robin", "least_outstanding_tokens", "prefix_aware"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--replicas", type=int, nargs="+", default=[1, 10, 100, 1000])
    arguments.add_argument("--requests", type=int, default=20_000, help="of each run (default 20,000)")
    arguments.add_argument("--routers", nargs="+", default=ROUTERS, help=f"default {' '.join(ROUTERS)}")
    arguments.add_argument("--prefixes", type=int, default=200, help="common prefixes (default 200)")
    arguments.add_argument("--json", type=Path, help="also write the figures to this file")
    options = arguments.parse_args()
    print(
        "replicas   requests  router                      loop s  whole s   CPU s  peak MiB     events  hits"
    )
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for replicas in options.replicas:
            for router in options.routers:
                row = run(Path(name), scenario(replicas, options.requests, router, options.prefixes))
                rows.append(row)
                print(
                    f"{replicas:8,}  {options.requests:9,}  {router:26}  {row['loop_s']:6.1f}  {row['whole_s']:7.1f}  "
                    f"{row['cpu_s']:6.1f}  {row['peak_mib']:8.0f}  {row['events']:9,}  {row['hits']:.2f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def scenario(replicas: int, requests: int, router: str, prefixes: int) -> dict[str, Any]:
    """One H100 a replica, Llama-3.1-8B, prompts of 800 tokens (400 common and 400 own ones), answers of 150."""
    common: dict[str, Any] = {
        "requests": requests,
        "output_tokens": 150,
        "arrivals": {"process": "poisson", "rate_per_s": RATE_PER_REPLICA * replicas},
    }
    source: dict[str, Any] = {"generator": "lengths", "options": {**common, "input_tokens": 800}}
    if prefixes:
        own = {"groups": prefixes, "prefix_tokens": 400, "user_tokens": 400}
        source = {"generator": "shared_prefixes", "options": {**common, **own}}
    return {
        "name": "scale",
        "cluster": {"replicas": replicas, "router": router},
        "output": {"timeline_interval": "60 s"},
        "workload": {"sources": [source]},
    }


def run(folder: Path, scenario: dict[str, Any]) -> dict[str, Any]:
    """One run in a process of its own."""
    path = folder / "scale.yaml"
    path.write_text(json.dumps(scenario))
    command = [sys.executable, "-m", "kvsim.cli.main", "run", str(path), "--no-report", "--json", "--force"]
    start = time.perf_counter()
    with open(folder / "summary.json", "w") as out, open(folder / "stderr", "w") as err:
        process = subprocess.Popen([*command, "--out", str(folder / "out")], stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
    whole_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "stderr").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "router": scenario["cluster"]["router"],
        "replicas": scenario["cluster"]["replicas"],
        "requests": summary["requests_submitted"],
        "loop_s": summary["loop_wall_s"],
        "whole_s": whole_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        "events": summary["num_events"],
        "completed": summary["requests_completed"],
        "hits": summary["cache"]["hit_token_ratio"] or 0.0,
    }


if __name__ == "__main__":
    main()

"""How fast kvsim runs: time of the loop, of the whole process, and peak memory.

``python tests/benchmarks/speed.py TRACE`` with a kvsim JSON Lines trace of lengths (10,000 requests of Azure's 2024
trace in docs/performance.md). One A100 with steps of 512 tokens and one H100 with 8,192, Llama-3.1-8B, then the same
with the trace ten times in a row. Every run is a process of its own; medians of ``--runs``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

CASES = {"a100-80gb-sxm": 512, "h100-sxm": 8192}
MEASURES = ("loop_s", "whole_s", "cpu_s", "peak_mib")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("trace", type=Path, help="kvsim JSON Lines, plain or gzip")
    arguments.add_argument("--runs", type=int, default=5, help="runs of each case (default 5)")
    arguments.add_argument(
        "--times", type=int, default=10, help="length of the long trace in short ones (default 10)"
    )
    arguments.add_argument("--manager", default="prefix_tree", help="cache manager (default prefix_tree)")
    arguments.add_argument("--json", type=Path, help="also write the figures to this file")
    options = arguments.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for times in (1, options.times):
            trace = folder / f"x{times}.jsonl.gz"
            count = repeat(options.trace, times, trace)
            for gpu, chunk in CASES.items():
                runs = [run(folder, trace, gpu, chunk, options.manager) for _ in range(options.runs)]
                row = {key: statistics.median(one[key] for one in runs) for key in MEASURES}
                row |= {key: runs[0][key] for key in ("events", "steps", "completed")}
                results.append({"requests": count, "gpu": gpu, "max_num_batched_tokens": chunk, **row})
                print_row(results[-1], header=len(results) == 1)
    found = {
        "date": date.today().isoformat(),
        "runs": options.runs,
        "manager": options.manager,
        "results": results,
    }
    print(json.dumps(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def print_row(row: dict[str, float], header: bool) -> None:
    if header:
        print("  requests  GPU             chunk   loop s  whole s   CPU s  peak MiB     steps    events")
    print(
        f"{row['requests']:10,}  {row['gpu']:14}  {row['max_num_batched_tokens']:5}  {row['loop_s']:7.2f}  "
        f"{row['whole_s']:7.2f}  {row['cpu_s']:6.2f}  {row['peak_mib']:8.0f}  {row['steps']:8,}  {row['events']:8,}",
        flush=True,
    )


def repeat(trace: Path, times: int, out: Path) -> int:
    """Write ``trace`` ``times`` times in a row, one mean gap apart, as lengths; how many requests that is."""
    opener = gzip.open if trace.suffix == ".gz" else open
    with opener(trace, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    first, last = rows[0]["arrival_s"], rows[-1]["arrival_s"]
    period = (last - first) * len(rows) / (len(rows) - 1)
    with gzip.open(out, "wt", compresslevel=1) as file:
        for copy in range(times):
            for row in rows:
                file.write(
                    json.dumps({**row, "arrival_s": round(row["arrival_s"] + copy * period, 6)}) + "\n"
                )
    return times * len(rows)


def run(folder: Path, trace: Path, gpu: str, chunk: int, manager: str) -> dict[str, float]:
    """One run in a process of its own."""
    scenario = folder / "speed.yaml"
    scenario.write_text(
        json.dumps(
            {
                "name": "speed",
                "cluster": {"gpu": gpu},
                "engine": {"max_num_batched_tokens": chunk},
                "cache": {"manager": manager},
                "workload": {"sources": [{"file": str(trace)}]},
            }
        )
    )
    command = [
        sys.executable,
        "-m",
        "kvsim.cli.main",
        "run",
        str(scenario),
        "--no-report",
        "--json",
        "--force",
    ]
    # byte code is kept from run to run, as it is for an installed package
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with open(folder / "summary.json", "w") as out, open(folder / "stderr", "w") as err:
        process = subprocess.Popen(
            [*command, "--out", str(folder / "out")], stdout=out, stderr=err, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone
    whole_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "stderr").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "loop_s": summary["loop_wall_s"],
        "whole_s": whole_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        "events": summary["num_events"],
        "steps": summary["num_steps"],
        "completed": summary["requests_completed"],
    }


if __name__ == "__main__":
    main()

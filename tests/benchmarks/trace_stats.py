"""CPU seconds and memory of each part of ``kvsim trace stats``: ``python tests/benchmarks/trace_stats.py 250000``.

Conversations of 4 turns are generated, written and read again: so many sessions, four times as many requests.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvsim.workloads import generate, read, write_kvsim_jsonl
from kvsim.workloads.analysis.stats import trace_stats

OPTIONS = {
    "turns": 4,
    "arrivals": {"process": "poisson", "rate_per_s": 20},
    "user_tokens": {"distribution": "lognormal", "median": 300, "sigma": 1.0},
    "output_tokens": 200,
    "system_tokens": 500,
    "think_s": {"distribution": "exponential", "mean": 60},
}


@contextmanager
def timed(name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:30} {time.process_time() - start:7.1f} s of CPU, peak so far {peak:6,.0f} MiB", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("sessions", type=int)
    sessions = arguments.parse_args().sessions
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.jsonl"
        with timed("generate and write"):
            write_kvsim_jsonl(generate("chat", sessions=sessions, **OPTIONS), path)
        with timed("read"):
            trace = read(path)
    with timed("stats"):
        told = trace_stats(trace, stage=lambda name: timed(f"  {name}"))
    capacity = told["capacity"]
    print(f"{told['requests']:,} requests, {capacity['distinct_blocks']:,} blocks", capacity["sampling_rate"])


if __name__ == "__main__":
    main()

"""How far the real engine was from predictions, as the few numbers that a plan keeps as its margin.

``python -m kvsim.validate.quantiles RUNS_DIR ... > sim/study/model_error.yaml`` writes them from the measured runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kvsim.validate.compare import LATENCIES, Result
from kvsim.validate.replay import Assumptions
from kvsim.validate.run import validate
from kvsim.version import __version__

STATISTICS = ("p50", "p95", "p99")
QUANTILES = {"p50": 50, "p90": 90, "max": 100}
HEAD = """\
# What was measured on the real engine over what was predicted, by run; quantiles over runs (p90: nine in ten runs were at
# most so much slower than predicted). Made by: python -m kvsim.validate.quantiles calibrate/data/vllm-*/ (docs/validation.md has
# the runs and their errors). Times are of the workloads that are not saturated, steps (teacher-forced) of all workloads.
"""


def quantiles(results: Sequence[Result]) -> dict[str, Any]:
    """Quantiles over runs of measured / predicted, of ``results`` with ``teacher_forced``; microbenchmarks are left out."""
    workloads = [result for result in results if result["kind"] == "workload"]
    calm = [result for result in workloads if not result["saturated"]]
    times = {
        f"{name}_{at}": _of([1 / (1 + result["metrics"][name][at]["error"]) for result in calm])
        for name in LATENCIES
        for at in STATISTICS
    }
    steps = _of([1 / (1 + result["teacher_forced"]["all"]["bias"]) for result in workloads])
    return {
        "kvsim_version": __version__,
        "runs": [result["name"] for result in calm],
        "saturated_runs": [result["name"] for result in workloads if result["saturated"]],
        "measured_over_predicted": {**times, "steps": steps},
    }


def _of(ratios: Sequence[float]) -> dict[str, float]:
    """Each quantile is a run's own value, the next higher one."""
    return {
        name: round(float(np.percentile(ratios, at, method="inverted_cdf")), 4)
        for name, at in QUANTILES.items()
    }


if __name__ == "__main__":
    found = [
        result
        for folder in sys.argv[1:]
        for result, _, _ in validate(Path(folder), Assumptions(), with_teacher=True)
    ]
    sys.stdout.write(HEAD + yaml.safe_dump(quantiles(found), sort_keys=False, width=110))

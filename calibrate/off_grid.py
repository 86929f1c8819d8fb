"""How far prices between the grid points are from what the kernels take there.

``off_grid.csv.gz`` holds steps that a real vLLM ran on real traces (Azure conversations, tau-bench, RAGPulse,
mini-swe agents), drawn once, uniformly over steps of each run, after the grids were frozen. Kernels turn their
sizes into points of their own (:meth:`Kernel.off_grid`).
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Point
from kvsim.calibrate.measure import measure
from kvsim.calibrate.predict import predictor
from kvsim.cost.profile import LATENCY, Array, Profile

STEPS = Path(__file__).parent / "off_grid.csv.gz"
SIZES = ("tokens", "new", "past", "decodes", "sum_context")
PREDICTED = "predicted_us"


@dataclass(frozen=True)
class Check:
    """Off-grid points of one kernel. ``columns``: as of its table, ``predicted_us`` beside ``latency_us``."""

    kernel: str
    columns: dict[str, Array]

    @property
    def errors(self) -> Array:
        """Signed fractions, shape (points,)."""
        return np.asarray(self.columns[PREDICTED] / self.columns[LATENCY] - 1)

    def facts(self) -> dict[str, Any]:
        """For the profile's header."""
        absolute = np.abs(self.errors)
        return {
            "points": len(absolute),
            "median_absolute_error": round(float(np.median(absolute)), 4),
            "p95_absolute_error": round(float(np.percentile(absolute, 95)), 4),
            "bias": round(float(self.columns[PREDICTED].sum() / self.columns[LATENCY].sum() - 1), 4),
        }


def read_draw(most: int) -> Draw:
    """The first ``most`` steps of each kind (tokens, chunks, decodes) of ``off_grid.csv.gz``."""
    with gzip.open(STEPS, "rt", newline="") as file:
        rows = [{key: int(row[key]) for key in SIZES} for row in csv.DictReader(file)]
    chunks = [(row["new"], row["past"]) for row in rows if row["new"]]
    decodes = [(row["decodes"], row["sum_context"] // row["decodes"]) for row in rows if row["decodes"]]
    return Draw([row["tokens"] for row in rows][:most], chunks[:most], decodes[:most])


def check_off_grid(
    kernel: Kernel,
    points: Sequence[Point],
    profile: Profile,
    bench: Bench,
    count: Callable[[str], None] | None = None,
) -> Check:
    """Run ``kernel`` at ``points`` and price them by ``profile``."""
    predict = predictor(profile, kernel.name, bench.facts.roofline)
    _, columns = measure(kernel, points, bench, count)
    ran = [
        dict(zip(kernel.columns, row, strict=True))
        for row in zip(*(columns[c].tolist() for c in kernel.columns), strict=True)
    ]
    return Check(kernel.name, {**columns, PREDICTED: np.array([predict(point) for point in ran])})

"""Configurations as the plain values of plan.json: what each costs, what it reaches, and why it fails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvsim.study.plan.requirements import Requirements, meets, over_limits
from kvsim.study.plan.space import HOURS_A_MONTH, Candidate, title
from kvsim.study.plan.why import broken, cause
from kvsim.study.simulate import Row

FIGURES = (
    "ttft_s_p50", "ttft_s_p95", "ttft_s_p99", "tpot_s_mean", "tpot_s_p95", "e2e_s_p95", "hit_token_ratio", "busy_ratio",
    "preemptions", "requests_submitted", "requests_completed", "requests_per_s", "output_tokens_per_s",
    "usd_per_million_output_tokens", "extrapolated_time_ratio", "time_ratio_by_provenance", "curves", "arrivals_s",
    "makespan_s",
)  # fmt: skip


@dataclass(slots=True)
class Context:
    """What a plan knows while it runs."""

    candidates: Sequence[Candidate]
    wanted: Requirements
    ratios: Mapping[str, float]  # of the margin; empty without one
    step_factor: float  # of the margin
    rows: dict[int, Row] = field(default_factory=dict)  # at the planned traffic, by candidate
    holds_slowed: dict[int, bool] = field(default_factory=dict)  # of those that were asked
    ruled_out: set[int] = field(default_factory=set)

    def told(self, answer: int | None) -> dict[str, Any]:
        """``configurations``: all that ran, by price; and the numbers of those on the ``pareto`` front, ``answer`` before
        others of its price that attain as much."""
        order = sorted(self.rows, key=lambda i: (self.candidates[i].usd_per_hour, i))
        points = [described(self, i) for i in order]
        ran = [point for point in points if point["error"] is None]
        return {
            "configurations": points,
            "pareto": _pareto(sorted(ran, key=lambda point: point["number"] != answer)),
        }


def described(context: Context, index: int) -> dict[str, Any]:
    """One configuration that ran; ``meets_with_margin`` is None where steps were not made longer to see."""
    found = describe(context, context.candidates[index], context.rows[index]) | {"number": index}
    if found["meets_with_margin"] and not (holds := context.holds_slowed.get(index)):
        if holds is None:  # dearer than a success, so nobody asked
            return found | {"meets_with_margin": None}
        slower = f"with every step {100 * (context.step_factor - 1):.1f} % longer the SLOs break"
        found |= {"meets_with_margin": False, "broken": [slower]}
    return found


def describe(context: Context, candidate: Candidate, row: Row) -> dict[str, Any]:
    """A configuration and its row; ``over`` is each SLO's figure over its limit, null where there is no figure."""
    wanted, ratios = context.wanted, context.ratios
    about = {
        "title": title(candidate.scenario),
        "values": dict(candidate.values),
        "gpu": candidate.gpu,
        "gpus": candidate.gpus,
        "replicas": candidate.replicas,
        "usd_per_hour": candidate.usd_per_hour,
        "usd_per_month": candidate.usd_per_hour * HOURS_A_MONTH,
        "error": row["error"],
    }
    if row["error"] is not None:
        return about | {"meets": False, "meets_with_margin": False, "broken": [f"cannot run: {row['error']}"]}
    good = meets(row, wanted, {})
    with_margin = meets(row, wanted, ratios) if ratios else None
    total = row["input_tokens"] + row["output_tokens"]
    return about | {
        "meets": good,
        "meets_with_margin": with_margin,
        "percentiles_s": row["percentiles_s"],
        "attained_ratio": row["attained_ratio"],
        "attained_ratio_with_margin": row["attained_ratio_with_margin"],
        "over": _finite(over_limits(row, wanted, {})),
        "over_with_margin": _finite(over_limits(row, wanted, ratios)) if ratios else None,
        "broken": broken(row, wanted, {}) or (broken(row, wanted, ratios) if ratios else []),
        "cause": cause(row, wanted, {} if not good else ratios),
        "usd_per_million_tokens": row["usd"] * 1e6 / total if total else None,
        **{name: row[name] for name in FIGURES},
    }


def _finite(over: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isinf(times) else times for name, times in over.items()}


def _pareto(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of the points that no cheaper one attains as much as; by price, of equal ones the first."""
    front: list[int] = []
    best = -1.0
    for point in sorted(points, key=lambda p: (p["usd_per_hour"], -p["attained_ratio"])):
        if point["attained_ratio"] > best:
            best = point["attained_ratio"]
            front.append(point["number"])
    return front


def reachable(context: Context) -> dict[str, Any] | None:
    """Of an infeasible plan: the configuration whose worst SLO is nearest to its limit; None if none could run."""
    ran = {i: row for i, row in context.rows.items() if row["error"] is None}
    if not ran:
        return None

    def worst(i: int) -> tuple[float, float, float]:
        over = over_limits(ran[i], context.wanted, {})
        return (max(over.values()), -ran[i]["attained_ratio"], context.candidates[i].usd_per_hour)

    return described(context, min(ran, key=worst))

"""One point of a study, from scenario to its row: what a worker process runs."""

from __future__ import annotations

from typing import Any

from kvsim.errors import KvsimError
from kvsim.results.reading import is_unstable, too_short_for
from kvsim.scenario.schema import Scenario
from kvsim.study.slo import Slos, attainment

Row = dict[str, Any]


def simulate(scenario: Scenario, slos: Slos) -> Row:
    """Figures of the finished run; where the scenario cannot run (the model does not fit), only ``error`` says why."""
    from kvsim.cluster.held import held_bytes_per_token
    from kvsim.cluster.run import run_scenario
    from kvsim.results.columns import request_columns
    from kvsim.results.summary import summarise

    try:
        outcome = run_scenario(scenario)
    except KvsimError as error:
        return {"seed": scenario.seed, "error": " ".join(str(error).split())}
    columns = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    row = summary_row(summarise(outcome, columns)) | attainment(outcome, columns, slos)
    held = outcome.recorder.timeline.column("held_bytes")
    row["kv_bytes_per_token"] = held_bytes_per_token(scenario, columns.input_tokens)
    row["peak_held_bytes_of_a_replica"] = int(held.max()) if len(held) else None
    return row | {"error": None}


def summary_row(summary: dict[str, Any]) -> Row:
    """The figures of a summary that a study compares, flat; tiers give a column each."""
    cost, hours = summary["cost"], summary["makespan_s"] / 3600
    row: Row = {"seed": summary["seed"]}
    row |= {
        f"requests_{which}": summary[f"requests_{which}"] for which in ("submitted", "completed", "rejected")
    }
    cache = summary["cache"]
    hits, approximate = cache["hit_token_ratio"], cache["approximate_token_ratio"]
    row |= {
        "makespan_s": summary["makespan_s"],
        "hit_token_ratio": hits,
        "approximate_token_ratio": approximate,
    }
    row["computed_token_ratio"] = None if hits is None or approximate is None else 1 - hits - approximate
    if (responses := summary["responses"]) is not None:
        row |= {
            "response_hit_ratio": responses["hit_ratio"],
            "wrong_response_ratio": responses["wrong_response_ratio"],
        }
    for tier, ratio in cache["hit_token_ratio_by_tier"].items():
        row[f"hit_token_ratio_{tier}"] = ratio
    for tier in summary["tiers"]:
        name, capacity_bytes = tier["name"], tier["capacity_bytes_per_replica"]
        stores = 1 if tier["scope"] == "cluster" else summary["cluster"]["replicas"]
        row |= {f"capacity_bytes_{name}": capacity_bytes, f"total_bytes_{name}": capacity_bytes * stores}
    for metric, statistics in (
        ("ttft_s", ("mean", "p50", "p95", "p99")),
        ("tpot_s", ("mean", "p95")),
        ("e2e_s", ("mean", "p95")),
    ):
        row |= {f"{metric}_{statistic}": summary[metric][statistic] for statistic in statistics}
    row |= {key: summary["throughput"][key] for key in ("requests_per_s", "output_tokens_per_s")}
    row["unstable"] = is_unstable(summary)
    short = [] if row["unstable"] else too_short_for(summary)
    row["too_short_for"] = " ".join(key for key in short if key in row) or None
    row["preemptions"] = summary["preemptions"]
    row["turns_follow_at_once"] = summary["cache"]["turns_follow_at_once"]
    row |= {key: cost[key] for key in ("gpu_hours", "usd", "tiers_usd", "usd_per_million_output_tokens")}
    row["usd_per_hour"] = cost["usd"] / hours if hours else None
    row["extrapolated_time_ratio"] = summary["extrapolated_time_ratio"]
    return row

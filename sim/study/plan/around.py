"""Around the answer: how far traffic can grow, what one thing more is worth, and at which error another one wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvsim.scenario.schema import Scenario
from kvsim.study.plan.describe import Context, describe
from kvsim.study.plan.margin import model_error
from kvsim.study.plan.requirements import meets, over_limits
from kvsim.study.plan.runner import Runner
from kvsim.study.plan.search import Choice, cheapest
from kvsim.study.plan.space import HOURS_A_MONTH, Candidate, usd_per_hour
from kvsim.study.plan.traffic import Headroom, base_rate, headroom, with_traffic
from kvsim.study.plan.variants import Variant, variants
from kvsim.study.simulate import Row

SLOWER = (1.01, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0)
"""Lengths of a step, over the priced one, at which the answer is asked again, beside those of the validated runs."""


def around_answer(
    candidates: Sequence[Candidate],
    open_: Sequence[int],
    context: Context,
    runner: Runner,
    best: int,
    ratios: Mapping[str, float],
    rules_out: Callable[[Row, int], bool],
    stage: Callable[[str], None],
) -> dict[str, Any]:
    """``headroom``, ``more`` (one thing more) and ``slower`` (steps longer than priced) of candidate ``best``; all as
    predicted, without the margin."""
    scenario = candidates[best].scenario
    stage("headroom")
    room = find_headroom(scenario, context, runner)
    stage("one thing more")
    more = [_more(variant, candidates[best], room, context, runner) for variant in variants(scenario)]
    stage("slower steps")
    return {
        "headroom": {"holds": room.holds, "breaks": room.breaks},
        "more": more,
        "slower": _slower(candidates, open_, context, runner, best, rules_out),
    }


def find_headroom(scenario: Scenario, context: Context, runner: Runner, start: float = 1.0) -> Headroom:
    """Factors on the scenario's traffic at which the SLOs hold and break."""
    rate = base_rate(scenario)

    def succeeds(factors: Sequence[float]) -> list[bool]:
        rows = runner.rows([with_traffic(scenario, rate, factor) for factor in factors])
        return [meets(row, context.wanted, {}) for row in rows]

    return headroom(succeeds, start)


def _more(
    variant: Variant, answer: Candidate, room: Headroom, context: Context, runner: Runner
) -> dict[str, Any]:
    """What a variant costs more, and what it changes: the SLOs' figures at the planned traffic and the headroom."""
    if variant.scenario is None:
        return {"name": variant.name, "why_not": variant.why_not}
    (row,) = runner.rows([variant.scenario])
    if row["error"] is not None:
        return {"name": variant.name, "why_not": row["error"]}
    dearer = usd_per_hour(variant.scenario) - answer.usd_per_hour
    own = find_headroom(variant.scenario, context, runner, room.holds or 1.0)
    gain = None if own.holds is None or room.holds is None else own.holds - room.holds
    dollars = None if variant.free else dearer * HOURS_A_MONTH
    return {
        "name": variant.name,
        "usd_per_month": dollars,
        "attained_ratio": row["attained_ratio"],
        "percentiles_s": row["percentiles_s"],
        "hit_token_ratio": row["hit_token_ratio"],
        "holds": own.holds,
        "gain": gain,
        "usd_per_month_per_percent_of_traffic": dollars / (100 * gain)
        if dollars and gain and gain > 0
        else None,
    }


def _slower(
    candidates: Sequence[Candidate],
    open_: Sequence[int],
    context: Context,
    runner: Runner,
    best: int,
    rules_out: Callable[[Row, int], bool],
) -> dict[str, Any]:
    """The first length of steps at which the answer no longer meets the SLOs, and which configuration wins there."""
    scenario = candidates[best].scenario
    holds = 1.0
    steps = model_error()
    for factor in sorted({*SLOWER, max(1.0, steps.of_steps("p90")), max(1.0, steps.of_steps("max"))} - {1.0}):
        (row,) = runner.rows([scenario], factor)
        if not meets(row, context.wanted, {}):
            break
        holds = factor
    else:
        return {"holds": holds, "breaks": None, "then": None}
    usd = candidates[best].usd_per_hour
    dearer = [i for i in open_ if candidates[i].usd_per_hour >= usd and i != best]
    rows: dict[int, Row] = {}

    def run(indices: Sequence[int]) -> list[Row]:
        found = runner.rows([candidates[i].scenario for i in indices], factor)
        rows.update(zip(indices, found, strict=True))
        return found

    found = cheapest(
        [Choice(c.usd_per_hour, c.group, c.replicas) for c in candidates],
        dearer,
        run,
        lambda _, row: meets(row, context.wanted, {}),
        rules_out,
        lambda row: (-row["attained_ratio"], max(over_limits(row, context.wanted, {}).values())),
    )
    if found.best is None:
        return {"holds": holds, "breaks": factor, "then": None}
    plain = replace(context, ratios={})
    then = describe(plain, candidates[found.best], rows[found.best]) | {"number": found.best}
    return {"holds": holds, "breaks": factor, "then": then}

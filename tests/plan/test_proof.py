"""The search against trying everything: the same price, with fewer runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvsim.study.plan.describe import Context
from kvsim.study.plan.plan import Decision, decide, new_context
from kvsim.study.plan.requirements import meets
from kvsim.study.plan.space import Candidate

WITHIN = 0.02


def exhaustive(small, with_margin: bool) -> list[Candidate]:
    """Every candidate that meets the SLOs, found without the search: none is left out by a bound."""
    context = new_context(small.space, small.wanted, with_margin)
    scenarios = [candidate.scenario for candidate in small.space.candidates]
    rows = small.runner.rows(scenarios)
    good = [meets(row, small.wanted, context.ratios) for row in rows]
    if with_margin:
        slowed = small.runner.rows(scenarios, context.step_factor)
        good = [fine and meets(row, small.wanted, {}) for fine, row in zip(good, slowed, strict=True)]
    return [candidate for candidate, fine in zip(small.space.candidates, good, strict=True) if fine]


def planned(small, with_margin: bool) -> tuple[Decision, Context]:
    context = new_context(small.space, small.wanted, with_margin)
    return decide(small.space, context, small.runner), context


def drawn(seed: int) -> tuple[list[str], list[str], float | None, dict[str, object]]:
    """SLOs, axes, attainment and workload of a space; every third asks for a share of requests."""
    rng = np.random.default_rng(seed)
    workload = {
        "seed": seed, "requests": 120, "groups": int(rng.integers(2, 12)), "prefix": int(rng.integers(300, 5000)),
        "user": int(rng.integers(50, 800)), "output": int(rng.integers(5, 120)), "rate": int(rng.integers(10, 70)),
    }  # fmt: skip
    ttft, tpot = int(rng.choice([100, 200, 400])), int(rng.choice([12, 20, 40]))
    single = seed % 3 == 2
    slos = [f"ttft{'' if single else '_p95'}={ttft}ms", f"tpot{'' if single else '_p90'}={tpot}ms"]
    axes = [
        "cluster.gpu=h100-sxm,a100-80gb-sxm", "cluster.replicas=1..6", "cluster.router=round_robin,prefix_aware",
        f"cache.manager={'paged' if seed % 4 == 3 else 'prefix_tree'}",
    ]  # fmt: skip
    return slos, axes, float(rng.choice([0.9, 0.95])) if single else None, workload


def test_ten_seeded_spaces_cost_what_exhaustion_finds(small_space: Callable[..., object], tmp_path) -> None:
    runs = total = feasible = 0
    for seed in range(10):
        slos, axes, attain, workload = drawn(seed)
        with_margin = seed % 2 == 0
        small = small_space(slos, axes, attain, **workload)
        decision, context = planned(small, with_margin)
        good = exhaustive(small, with_margin)
        if with_margin and not good:
            good = exhaustive(small, False)
            assert not decision.margin_met
        runs += len(context.rows)
        total += len(small.space.candidates)
        assert (decision.best is None) == (not good), f"seed {seed}: {decision}, {len(good)} are good"
        if decision.best is not None:
            feasible += 1
            found = small.space.candidates[decision.best].usd_per_hour
            assert found <= min(c.usd_per_hour for c in good) * (1 + WITHIN), f"seed {seed}"
    assert feasible >= 6, "most spaces have an answer"
    print(f"{runs} of {total} configurations simulated")
    assert runs < 0.7 * total


def test_fewer_replicas_that_hit_more(small_space: Callable[..., object]) -> None:
    """Each replica computes each prefix once: from four replicas on, more than 5 % of first tokens wait for that."""
    small = small_space(
        ["ttft_p95=100ms"], ["cluster.replicas=1..8"], prefix=6000, rate=8, output=10, requests=400, groups=6
    )
    good = [candidate.replicas for candidate in exhaustive(small, False)]
    assert good == [1, 2, 3], "not monotone: more replicas fail"
    decision, context = planned(small, False)
    assert decision.best is not None
    assert small.space.candidates[decision.best].replicas == 1
    assert any(not meets(row, small.wanted, {}) for row in context.rows.values()), (
        "the search met failures above"
    )


def test_an_infeasible_space_has_no_answer_and_a_nearest(small_space: Callable[..., object]) -> None:
    small = small_space(["tpot_p95=6ms"], ["cluster.gpu=h100-sxm,a100-80gb-sxm", "cluster.replicas=1..4"])
    assert exhaustive(small, False) == []
    decision, _ = planned(small, True)
    assert decision == Decision(None, None, False)


def test_bounds_leave_out_nothing_that_meets_the_slos(small_space: Callable[..., object]) -> None:
    """At rates far above what few replicas can compute."""
    small = small_space(
        ["ttft_p95=200ms"],
        ["cluster.gpu=h100-sxm,a100-80gb-sxm", "cluster.replicas=1..12", "cache.manager=paged"],
        rate=60, prefix=3000, output=2, requests=240,
    )  # fmt: skip
    beyond = {id(small.space.candidates[i]) for i in small.space.beyond}
    good = {id(candidate) for candidate in exhaustive(small, False)}
    assert beyond and good
    assert not beyond & good

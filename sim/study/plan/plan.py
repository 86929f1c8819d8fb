"""``kvsim plan``: prune, search, then look around the answer; what it says is the content of plan.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvsim.study.axes import Axis
from kvsim.study.plan.around import around_answer
from kvsim.study.plan.bounds import Demands, impossible, no_lighter
from kvsim.study.plan.describe import Context, described, reachable
from kvsim.study.plan.margin import margin_ratios, model_error
from kvsim.study.plan.requirements import Requirements, meets, over_limits
from kvsim.study.plan.runner import Runner
from kvsim.study.plan.search import Choice, Found, cheapest
from kvsim.study.plan.space import Candidate, does_not_fit
from kvsim.study.plan.traffic import base_rate, with_traffic
from kvsim.study.simulate import Row
from kvsim.version import __version__

GPU = "cluster.gpu"
Stage = Callable[[str], None]


@dataclass(slots=True)
class Space:
    """The candidates, those that need a simulation, and what was said of the others."""

    candidates: list[Candidate]
    open: list[int]
    unfit: dict[int, str]  # the model does not fit
    beyond: dict[int, str]  # a bound says that no schedule meets the SLOs
    demands: Demands


def make_space(found: Sequence[Candidate], wanted: Requirements, traffic: float) -> tuple[Space, float]:
    """The candidates at ``traffic`` times their workload, sorted out without a run; and the rate of the first one's."""
    rates: dict[str, float] = {}

    def scaled(candidate: Candidate) -> Candidate:
        key = candidate.scenario.workload.model_dump_json() + str(candidate.scenario.seed)
        if key not in rates:
            rates[key] = base_rate(candidate.scenario)
        return replace(candidate, scenario=with_traffic(candidate.scenario, rates[key], traffic))

    candidates = [scaled(candidate) for candidate in found]
    demands = Demands()
    unfit: dict[int, str] = {}
    beyond: dict[int, str] = {}
    for i, candidate in enumerate(candidates):
        if why := does_not_fit(candidate.scenario):
            unfit[i] = why
        elif why := impossible(candidate.scenario, demands.of(candidate.scenario), wanted):
            beyond[i] = why
    still = [i for i in range(len(candidates)) if i not in unfit and i not in beyond]
    return Space(candidates, still, unfit, beyond, demands), next(iter(rates.values())) * traffic


@dataclass(frozen=True, slots=True)
class Decision:
    """Indices of candidates: the answer, and the cheapest that meets the SLOs as predicted, without the margin."""

    best: int | None
    as_predicted: int | None
    margin_met: bool


def new_context(space: Space, wanted: Requirements, with_margin: bool) -> Context:
    """What a plan for ``wanted`` begins with."""
    ratios = margin_ratios(wanted) if with_margin else {}
    return Context(space.candidates, wanted, ratios, max(1.0, model_error().of_steps()))


def decide(space: Space, context: Context, runner: Runner, stage: Stage = lambda _: None) -> Decision:
    """The cheapest candidate with the margin of ``context``; if none has it, the cheapest as predicted."""
    stage("search")
    plain = _search(space, context, runner, {}).best
    if not context.ratios or plain is None:
        return Decision(plain, plain, False)
    stage("search with the model's error as a margin")
    floor = space.candidates[plain].usd_per_hour  # the margin only takes away
    among = [i for i in space.open if space.candidates[i].usd_per_hour >= floor]
    best = _search(space, context, runner, context.ratios, among).best
    return Decision(plain if best is None else best, plain, best is not None)


def run_plan(
    space: Space,
    axes: Sequence[Axis],
    wanted: Requirements,
    runner: Runner,
    with_margin: bool,
    stage: Stage = lambda _: None,
) -> dict[str, Any]:
    """Search ``space`` and describe the answer.

    Raises:
        KvsimError: a worker process was killed, or the disk says no.
    """
    context = new_context(space, wanted, with_margin)
    decision = decide(space, context, runner, stage)
    best, margin_met, ratios = decision.best, decision.margin_met, context.ratios
    told: dict[str, Any] = {
        "name": space.candidates[0].scenario.name,
        "feasible": best is not None,
        "margin": _margin(wanted, ratios, margin_met),
        "slos": _slos(wanted),
        "axes": [{"key": axis.key, "values": list(axis.values)} for axis in axes if len(axis.values) > 1],
        "fixed": {axis.key: axis.values[0] for axis in axes if len(axis.values) == 1},
    }
    if best is None or decision.as_predicted is None:
        told |= _nearest(space, context, runner)
    else:
        used = ratios if margin_met else {}
        stage("cheapest of each GPU kind")
        for among in _other_kinds(space, best):
            _search(space, context, runner, used, among)
        told["answer"] = described(context, best)
        told["as_predicted"] = described(context, decision.as_predicted)
        told |= around_answer(
            space.candidates, space.open, context, runner, best, used, _rule(space, False), stage
        )
    told |= context.told(best)
    told["search"] = _counts(space, context, runner)
    told["kvsim_version"] = __version__
    return told


def _nearest(space: Space, context: Context, runner: Runner) -> dict[str, Any]:
    """The best that can be reached where nothing suffices; for that the largest of each group runs that bounds left out."""
    if all(row["error"] is not None for row in context.rows.values()):
        largest: dict[str, int] = {}
        for i in space.beyond:
            candidate = space.candidates[i]
            at = largest.setdefault(candidate.group, i)
            if candidate.replicas > space.candidates[at].replicas:
                largest[candidate.group] = i
        chosen = list(largest.values())
        rows = runner.rows([space.candidates[i].scenario for i in chosen])
        context.rows.update(zip(chosen, rows, strict=True))
    errors = [*space.unfit.values(), *(row["error"] for row in context.rows.values() if row["error"])]
    return {"reachable": reachable(context), "why_none": errors[0] if errors else None}


def _rule(space: Space, with_margin: bool) -> Callable[[Row, int], bool]:
    def rules_out(row: Row, index: int) -> bool:
        candidate = space.candidates[index]
        return no_lighter(row, candidate, space.demands.of(candidate.scenario), with_margin)

    return rules_out


def _search(
    space: Space,
    context: Context,
    runner: Runner,
    ratios: Mapping[str, float],
    among: Sequence[int] | None = None,
) -> Found:
    def run(indices: Sequence[int]) -> list[Row]:
        rows = runner.rows([space.candidates[i].scenario for i in indices])
        context.rows.update(zip(indices, rows, strict=True))
        if ratios:
            _run_slowed(space, context, runner, indices)
        return rows

    def succeeds(index: int, row: Row) -> bool:
        return meets(row, context.wanted, ratios) and (not ratios or context.holds_slowed[index])

    def better(row: Row) -> Any:
        over = over_limits(row, context.wanted, ratios)
        return (-row["attained_ratio"], max(over.values()))

    found = cheapest(
        [Choice(c.usd_per_hour, c.group, c.replicas) for c in space.candidates],
        space.open if among is None else among,
        run,
        succeeds,
        _rule(space, bool(ratios)),
        better,
    )
    context.ruled_out |= set(found.ruled_out_by)
    return found


def _run_slowed(space: Space, context: Context, runner: Runner, indices: Sequence[int]) -> None:
    """Those of ``indices`` whose times hold with the margin again with longer steps: near the limit of what replicas can
    serve, a small error of steps is a large one of waiting."""
    close = [i for i in indices if meets(context.rows[i], context.wanted, context.ratios)]
    rows = runner.rows([space.candidates[i].scenario for i in close], context.step_factor)
    for i, row in zip(close, rows, strict=True):
        context.holds_slowed[i] = meets(row, context.wanted, {})


def _other_kinds(space: Space, best: int) -> list[list[int]]:
    """The open candidates of each GPU kind but the answer's."""
    kinds: dict[str, list[int]] = {}
    for i in space.open:
        kinds.setdefault(space.candidates[i].gpu, []).append(i)
    kinds.pop(space.candidates[best].gpu, None)
    return list(kinds.values())


def _counts(space: Space, context: Context, runner: Runner) -> dict[str, int]:
    """How many configurations there are, and what was said of each: every one is counted once."""
    beyond = len(set(space.beyond) - set(context.rows))
    run = len(context.rows)
    ruled_out = len(context.ruled_out - set(context.rows))
    return {
        "configurations": len(space.candidates),
        "do_not_fit": len(space.unfit),
        "beyond_the_roofline": beyond,
        "ruled_out_by_a_run": ruled_out,
        "simulated": run,
        "dominated": len(space.candidates) - len(space.unfit) - beyond - run - ruled_out,
        "runs": runner.num_runs + runner.num_kept,
        "runs_kept_from_before": runner.num_kept,
    }


def _slos(wanted: Requirements) -> dict[str, Any]:
    return {
        "limits": [
            {"name": x.name, "metric": x.metric, "percentile": x.percentile, "limit_s": x.limit_s}
            for x in wanted.limits
        ],
        "attain": wanted.attain,
        "request_limits_s": wanted.request_limits,
    }


def _margin(wanted: Requirements, ratios: Mapping[str, float], met: bool) -> dict[str, Any]:
    error = model_error()
    return {
        "asked": bool(ratios),
        "met": met,
        "ratios": dict(ratios) or margin_ratios(wanted),
        "runs": list(error.runs),
        "steps": dict(error.ratios["steps"]),
    }

"""What ``kvsim plan`` found, in sentences: the terminal, report.md and the page say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvsim.results.units import UNDEFINED, duration, number, percent, usd

Plan = Mapping[str, Any]
FEW_BEYOND = 10
"""Requests beyond a percentile below which it rests on too few."""
NEARLY = 0.9
"""Of the rate asked for: a mean below it is told, too."""


def slo_text(told: Plan) -> str:
    """Such as ``TTFT p95 within 1 s, TPOT p95 within 50 ms, 99 % of requests within each limit``."""
    limits = told["slos"]["limits"]
    parts = [f"{slo_name(x)} within {duration(x['limit_s'])}" for x in limits if x["percentile"] is not None]
    attain = told["slos"]["attain"]
    if attain is not None:
        single = told["slos"]["request_limits_s"].items()
        each = " and ".join(f"{metric.upper()} within {duration(limit_s)}" for metric, limit_s in single)
        parts.append(f"{share(attain)} of requests with {each}")
    return ", ".join(parts)


def slo_name(limit: Mapping[str, Any]) -> str:
    at = "" if limit["percentile"] is None else f" p{limit['percentile']:g}"
    return f"{limit['metric'].upper()}{at}"


def share(ratio: float | None) -> str:
    """A share of requests with as many digits as 0.999 needs."""
    return UNDEFINED if ratio is None else f"{100 * ratio:.4g} %"


def month(dollars: float) -> str:
    """Dollars of a month, whole."""
    return f"${dollars:,.0f}"


def traffic_text(told: Plan) -> str:
    times = f" at {told['traffic']:g} times its traffic" if told["traffic"] != 1 else ""
    rate, mean = told["requests_per_s"], mean_rate(told)
    slower = "" if mean is None or mean > NEARLY * rate else f", {number(mean)} in the mean of the run"
    return f"{told['name']}{times} ({number(rate)} requests/s{slower})"


def mean_rate(told: Plan) -> float | None:
    """Requests a second from the start to the last arrival, of the answer or what comes nearest to one."""
    point = told["answer"] if told["feasible"] else told["reachable"]
    return float(point["requests_submitted"] / point["arrivals_s"]) if point and point["arrivals_s"] else None


def answer_sentence(told: Plan) -> str:
    """The plan in one sentence."""
    if not told["feasible"]:
        return f"Nothing in the search space meets {slo_text(told)} for {traffic_text(told)}."
    answer = told["answer"]
    return (
        f"Take {answer['title']}: at {usd(answer['usd_per_hour'])} an hour ({month(answer['usd_per_month'])} a month) it is the "
        f"cheapest found that meets {slo_text(told)} for {traffic_text(told)}."
    )


def margin_sentence(told: Plan) -> str:
    """What the model's own error leaves of the answer."""
    margin = told["margin"]
    steps = f"{100 * (margin['steps']['p90'] - 1):.1f} %"
    factors = ", ".join(
        f"{_shown(name)} × {ratio:.2f}" for name, ratio in margin["ratios"].items() if "_p" in name
    )
    rule = f"times as in nine of ten validated runs ({factors or 'limits on requests tightened'}) and steps {steps} longer"
    if not told["feasible"]:
        return ""
    if not margin["asked"]:
        return "Taken as predicted: the model's error is not on top (--no-margin)."
    if not margin["met"]:
        return f"No configuration meets the SLOs with the model's validated error on top ({rule}); this one does as predicted."
    plain, answer = told["as_predicted"], told["answer"]
    text = f"It holds with the model's validated error on top: {rule}."
    if plain["number"] == answer["number"]:
        return f"{text} Without that margin it would be the same."
    return f"{text} Without that margin {plain['title']} at {usd(plain['usd_per_hour'])} an hour would do."


def _shown(name: str) -> str:
    metric, _, at = name.partition("_")
    return f"{metric.upper()} {at}".strip()


def headroom_sentence(told: Plan) -> str:
    room = told["headroom"]
    if room["holds"] is None:
        return "No lower traffic was found at which the SLOs hold."
    if room["breaks"] is None:
        return f"The SLOs still hold at {room['holds']:.3g} times this traffic, the most that was tried."
    return f"Predicted SLOs hold up to {room['holds']:.2f} times this traffic and break at {room['breaks']:.2f} times."


def slower_sentence(told: Plan) -> str:
    """At which error of steps another configuration would have been the answer."""
    slower = told["slower"]
    longer = f"{100 * (slower['holds'] - 1):.3g} %"
    if slower["breaks"] is None:
        return f"It stays the answer even if every step takes {longer} longer than priced."
    text = f"If every step took {100 * (slower['breaks'] - 1):.3g} % longer than priced it would miss an SLO ({longer} is fine)"
    then = slower["then"]
    if then is None:
        return f"{text}, and no other configuration would do."
    return f"{text}; the answer would be {then['title']} at {usd(then['usd_per_hour'])} an hour."


def search_sentence(told: Plan) -> str:
    """How many configurations there are and what became of each."""
    found = told["search"]
    left_out = [
        f"{number(found[key])} {text}"
        for key, text in (
            ("do_not_fit", "where the model does not fit"),
            ("beyond_the_roofline", "beyond what the GPUs' peaks allow"),
            ("ruled_out_by_a_run", "with more to do on each replica than in a run that failed"),
            ("dominated", "at no lower price than one that meets the SLOs"),
        )
        if found[key]
    ]
    simulated = (
        f"{number(found['simulated'])} of {number(found['configurations'])} configurations were simulated"
    )
    left = f"; left out: {', '.join(left_out)}" if left_out else ""
    kept = (
        f", {number(found['runs_kept_from_before'])} of them from before"
        if found["runs_kept_from_before"]
        else ""
    )
    return f"{simulated}{left}. {number(found['runs'])} runs in all, with those around the answer{kept}."


def plan_warnings(told: Plan) -> list[str]:
    """What makes the answer say less than it seems to."""
    point = told["answer"] if told["feasible"] else told["reachable"]
    if point is None:
        return []
    found = []
    if told["feasible"] and told["margin"]["asked"] and not told["margin"]["met"]:
        found.append(margin_sentence(told))
    for limit in told["slos"]["limits"]:
        if limit["percentile"] is None:
            continue
        beyond = point["requests_submitted"] * (1 - limit["percentile"] / 100)
        if beyond < FEW_BEYOND:
            found.append(
                f"{slo_name(limit)} rests on {beyond:.1f} requests beyond it; take a longer workload."
            )
    if point["extrapolated_time_ratio"] > 0.1:
        found.append(f"{percent(point['extrapolated_time_ratio'])} of its simulated time is extrapolated.")
    at_end = [axis for axis in told["axes"] if axis["key"] == "cluster.replicas"]
    if at_end and str(point["replicas"]) == at_end[0]["values"][-1]:
        found.append("It has the largest number of replicas of the search space: more were not asked.")
    return found


def slo_cells(told: Plan, point: Mapping[str, Any]) -> list[str]:
    """The figure of each SLO of a configuration that ran; the share within the limits last."""
    names = [x for x in told["slos"]["limits"] if x["percentile"] is not None]
    cells = [duration(point["percentiles_s"][f"{x['metric']}_p{x['percentile']:g}"]) for x in names]
    return [*cells, share(point["attained_ratio"])]


def slo_header(told: Plan) -> tuple[str, ...]:
    limits = told["slos"]["limits"]
    return (*(slo_name(x) for x in limits if x["percentile"] is not None), "within limits")


def reachable_sentence(told: Plan) -> str:
    """What comes nearest, of a plan that nothing meets."""
    point = told["reachable"]
    if point is None:
        return "No configuration could run: " + (told["why_none"] or "the space is empty") + "."
    cells = ", ".join(
        f"{name} {cell}" for name, cell in zip(slo_header(told), slo_cells(told, point), strict=True)
    )
    cause = point["cause"]
    why = f" {cause['bound']}: {cause['text']}." if cause["bound"] else ""
    return (
        f"Nearest is {point['title']} at {usd(point['usd_per_hour'])} an hour: {cells}. It misses "
        f"{'; '.join(point['broken'])}.{why}"
    )

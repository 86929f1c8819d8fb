"""Runs a claim over everything that its abstract leaves open, and says what came out.

A *ratio* is how many times better the method is than its baseline. The verdict of a claim is computed:

- **inside**: at some point of the sweep the ratio lies in the claimed range, whose ends give way by :data:`TOLERANCE` of the
  gain (what they are above 1: 3.2 to 4.8 becomes 2.98 to 5.18), so that no range takes in 1;
- **direction**: at none, but at more than half of the points the method is better (ratio above 1);
- **not reproducible**: neither.

Of a claim on memory the figure is a number of tokens. It is inside if at some point the method has room for as many.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvsim.errors import KvsimError, ScenarioError
from kvsim.methods.overlay import lay
from kvsim.scenario.build import build_memory
from kvsim.scenario.load import METHODS, parse_scenario
from kvsim.study.claims import ClaimFile, KernelCall
from kvsim.study.execute import execute
from kvsim.study.formula import evaluate
from kvsim.study.points import Point, point_of
from kvsim.study.simulate import Row

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel
    from kvsim.scenario.schema import Scenario

TOLERANCE = 0.1
"""Share of a published gain: figures are rounded, and repeated runs of one workload on a real engine differ by 1 to 5 %."""
VERDICTS = ("inside", "direction", "not reproducible")
PLACES = {"gpu": "h100-sxm", "model": "llama-3.1-8b"}
"""Axes of a claim on kernels that are no sizes, and what holds without them."""
SIDES = ("baseline", "method")
Result = dict[str, Any]


def reproduce(
    claim: ClaimFile, folder: Path, jobs: int = 1, progress: Callable[[int, int], None] | None = None
) -> Result:
    """The claim's row: claimed and simulated range, verdict, assumptions, and every point of the sweep.

    ``folder``: relative paths in the claim start there.

    Raises:
        KvsimError: a run or a kernel of the claim that cannot be had; names the point.
    """
    combinations = list(claim.combinations())
    values: list[tuple[float | None, float | None]]
    if claim.kernels is not None:
        values = [_kernel_values(claim, point) for point in combinations]
    elif claim.queries is not None:
        values = [_query_values(claim, point) for point in combinations]
    elif claim.is_capacity:
        values = [_longest_prompts(claim, point, folder) for point in combinations]
    else:
        values = _simulated(claim, combinations, folder, jobs, progress)
    points = [
        {**point, "baseline": base, "method": method, "ratio": _ratio(claim, base, method)}
        for point, (base, method) in zip(combinations, values, strict=True)
    ]
    return {
        "name": claim.name,
        "system": claim.system,
        "claimed": list(claim.claimed),
        **_judged(claim, points),
        "assumptions": [
            {"key": axis.key, "values": list(axis.choices), "why": axis.why} for axis in claim.axes
        ],
        "claim": claim.claim,
        "metric": claim.metric,
        "unit": "tokens" if claim.is_capacity else "x",
        "notes": list(claim.notes),
        **({"crossings": crossings(points, claim.solve_for, claim.claimed)} if claim.solve_for else {}),
        "points": points,
    }


def _judged(claim: ClaimFile, points: Sequence[Mapping[str, Any]]) -> Result:
    if claim.is_capacity:
        return judge_capacity([(point["baseline"], point["method"]) for point in points], claim.claimed)
    return judge([point["ratio"] for point in points], claim.claimed)


def judge(ratios: Sequence[float | None], claimed: Sequence[float]) -> Result:
    """``simulated`` (least, most), ``verdict``, and how many points are inside and above 1. None is no ratio."""
    known = [ratio for ratio in ratios if ratio is not None]
    low, high = claimed[0] - TOLERANCE * (claimed[0] - 1), claimed[1] + TOLERANCE * (claimed[1] - 1)
    inside = sum(low <= ratio <= high for ratio in known)
    return _result(known, inside, sum(ratio > 1 for ratio in known), len(ratios))


def judge_capacity(pairs: Sequence[tuple[float, float]], claimed: Sequence[float]) -> Result:
    """As :func:`judge`, of (baseline, method) in tokens: inside where the method has room for the least that is claimed."""
    tokens = [method for _, method in pairs]
    inside = sum(found >= claimed[0] for found in tokens)
    return _result(tokens, inside, sum(method > base for base, method in pairs), len(pairs))


def _result(known: Sequence[float], inside: int, better: int, num_points: int) -> Result:
    if inside:
        verdict = VERDICTS[0]
    elif 2 * better > num_points:
        verdict = VERDICTS[1]
    else:
        verdict = VERDICTS[2]
    return {
        "simulated": [min(known), max(known)] if known else None,
        "verdict": verdict,
        "median": statistics.median(known) if known else None,
        "points_inside": inside,
        "points_better": better,
        "num_points": num_points,
    }


def crossings(points: Sequence[Mapping[str, Any]], key: str, claimed: Sequence[float]) -> list[Result]:
    """Where along axis ``key`` the ratio first passes the least and the most that is claimed, on straight lines.

    One entry for each setting of the other axes; None where it does not within the axis.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        others = {
            name: value for name, value in point.items() if name not in (key, "baseline", "method", "ratio")
        }
        lines.setdefault(json.dumps(others), []).append(point)
    found = []
    for others_text, line in lines.items():
        places = [_crossing([(point[key], point["ratio"]) for point in line], goal) for goal in claimed]
        found.append({**json.loads(others_text), "least": places[0], "most": places[1]})
    return found


def _crossing(line: Sequence[tuple[float, float | None]], goal: float) -> float | None:
    for (x, y), (x2, y2) in pairwise(line):
        if y is not None and y2 is not None and min(y, y2) <= goal <= max(y, y2):
            return x if y == y2 else x + (goal - y) / (y2 - y) * (x2 - x)
    return None


def _ratio(claim: ClaimFile, baseline: float | None, method: float | None) -> float | None:
    above, below = (method, baseline) if claim.ratio == "method/baseline" else (baseline, method)
    return None if above is None or not below else above / below


# ---- runs


def _simulated(
    claim: ClaimFile,
    combinations: Sequence[Mapping[str, Any]],
    folder: Path,
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[float | None, float | None]]:
    wanted = [[_point(claim, point, side, folder) for side in SIDES] for point in combinations]
    runs = {point.name: point for pair in wanted for point in pair}  # what an axis does not change runs once
    values: dict[str, float | None] = {}

    def finished(point: Point, row: Row) -> None:
        if row["error"] is not None:
            raise KvsimError(f"{claim.name}, {point.values}: {row['error']}")
        if claim.metric not in row:
            raise ScenarioError(
                f"{claim.name}.metric: no figure is called '{claim.metric}'; known: {', '.join(row)}"
            )
        # with requests rejected it is other work, and no ratio
        values[point.name] = None if row["requests_rejected"] else row[claim.metric]
        if progress is not None:
            progress(len(values), len(runs))

    execute(list(runs.values()), {}, jobs, finished)
    return [(values[base.name], values[method.name]) for base, method in wanted]


def _longest_prompts(claim: ClaimFile, point: Mapping[str, Any], folder: Path) -> tuple[float, float]:
    """Tokens of the longest prompt that fits beside weights and activations, up to ``engine.max_model_len``; on both sides."""
    base, method = (_longest_prompt(_scenario(claim, point, side, folder)) for side in SIDES)
    return base, method


def _longest_prompt(scenario: Scenario) -> int:
    tokens = build_memory(scenario, check=False).request_tokens
    return min(tokens, scenario.engine.max_model_len or tokens)


def _point(claim: ClaimFile, point: Mapping[str, Any], side: str, folder: Path) -> Point:
    return point_of({"side": side, **claim.settings(point, side)}, _scenario(claim, point, side, folder))


def _scenario(claim: ClaimFile, point: Mapping[str, Any], side: str, folder: Path) -> Scenario:
    """The scenario of one side: the claim's own, then the side's overlay and card, then the axes."""
    overlay = dict(claim.method if side == "method" else claim.baseline)
    settings = claim.settings(point, side)
    overrides = [f"{key}={json.dumps(overlay.pop(key))}" for key in METHODS if key in overlay]
    overrides += [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    data = lay(claim.scenario, overlay)
    for setting in claim.overlays(point, side):
        data = lay(data, setting)
    try:
        return parse_scenario(data, overrides, base=folder, where=f"{claim.name}.scenario", stem=claim.name)
    except ScenarioError as error:
        raise ScenarioError(f"{claim.name}, {side}: {error}") from None


# ---- queries


def _query_values(claim: ClaimFile, point: Mapping[str, Any]) -> tuple[float, float]:
    """Mean cost of both sides' queries."""
    from kvsim.study.multiplexing import mean_cost, multiplexing

    assert claim.queries is not None
    base, method = (
        mean_cost(
            multiplexing(
                {**claim.queries, **getattr(claim, side), **claim.settings(point, side)},
                f"{claim.name}.queries ({side})",
            )
        )
        for side in SIDES
    )
    return base, method


# ---- kernels


def _kernel_values(claim: ClaimFile, point: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of both sides' kernels, on all layers of the model."""
    assert claim.kernels is not None
    base, method = (
        sum(_kernel_ns(call, claim.settings(point, side)) for call in getattr(claim.kernels, side))
        for side in SIDES
    )
    return base / 1e9, method / 1e9


def _kernel_ns(call: KernelCall, settings: Mapping[str, Any]) -> float:
    cost = _cost_model(*(str(settings.get(key, default)) for key, default in PLACES.items()))
    named = {key: value for key, value in settings.items() if key not in PLACES}
    named |= {"num_layers": cost.setting.model.num_layers, "num_kv_heads": cost.setting.model.num_kv_heads}
    sizes = {name: evaluate(formula, named) for name, formula in call.sizes.items()}
    time_ns, provenance = cost.pricer(call.kernel).price(sizes)
    if provenance == "extrapolated":
        cost.refuse(call.kernel, sizes)
    return time_ns * evaluate(call.calls, named)


@cache
def _cost_model(gpu_name: str, model_name: str) -> KernelCostModel:
    from kvsim.cost.kernels import KernelCostModel
    from kvsim.cost.profile import load_profile, profile_for_gpu
    from kvsim.hardware.load import load_gpu
    from kvsim.model.load import load_model

    gpu = load_gpu(gpu_name)
    return KernelCostModel(load_profile(profile_for_gpu(gpu.name)), load_model(model_name), gpu, strict=True)

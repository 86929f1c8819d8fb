"""What a plan has to meet: limits on percentiles, limits on single requests and the share of requests that keeps these."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.results.columns import RequestColumns
from kvsim.scenario.units import UnitError, parse_time
from kvsim.study.slo import METRICS

DEFAULT_ATTAIN = 0.99
_NAME = re.compile(r"([a-z0-9]+?)(?:_p(\d+(?:\.\d+)?))?")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limit:
    """``ttft_p95=1s``: a percentile over the submitted requests; ``ttft=1s``: every request by itself."""

    metric: str  # ttft, tpot, e2e
    percentile: float | None
    limit_s: float

    @property
    def name(self) -> str:
        return self.metric if self.percentile is None else f"{self.metric}_p{self.percentile:g}"


@dataclass(frozen=True, slots=True)
class Requirements:
    """All percentiles within their limits, and at least ``attain`` of the submitted requests within all of
    :attr:`request_limits`; without ``attain`` only the percentiles."""

    limits: tuple[Limit, ...]
    attain: float | None

    @property
    def percentiles(self) -> tuple[Limit, ...]:
        return tuple(limit for limit in self.limits if limit.percentile is not None)

    @property
    def request_limits(self) -> dict[str, float]:
        """Seconds by metric that a single request is held to: the limits without a percentile; where none is given, the
        least limit of each metric's percentiles."""
        single = [limit for limit in self.limits if limit.percentile is None] or self.limits
        found: dict[str, float] = {}
        for limit in single:
            found[limit.metric] = min(limit.limit_s, found.get(limit.metric, math.inf))
        return found


def parse_requirements(texts: Sequence[str], attain: float | None) -> Requirements:
    """``["ttft_p95=1s", "tpot=50ms"]`` with the share for limits on single requests, 0.99 where only those are given.

    Raises:
        ScenarioError: no SLO at all, an unknown metric, a percentile outside 0..100, no time, or an SLO given twice.
    """
    if not texts:
        raise ScenarioError("--slo: none is given; give at least one, such as --slo ttft_p95=1s")
    limits = tuple(_limit(text) for text in texts)
    names = [limit.name for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise ScenarioError(f"--slo {name}: given twice")
    if attain is not None and not 0 < attain <= 1:
        raise ScenarioError(
            f"--attain {attain:g}: is a share of the requests above 0 and up to 1, such as 0.99"
        )
    if attain is None and any(limit.percentile is None for limit in limits):
        attain = DEFAULT_ATTAIN
    return Requirements(limits, attain)


def _limit(text: str) -> Limit:
    name, equals, time = (part.strip() for part in text.partition("="))
    if not equals:
        raise ScenarioError(f"--slo {text}: expected METRIC=TIME, such as ttft_p95=1s or tpot=50ms")
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in METRICS:
        raise ScenarioError(
            f"--slo {name}: no such metric{did_you_mean(name, [*METRICS, *(f'{m}_p95' for m in METRICS)])}"
        )
    percentile = None if match[2] is None else float(match[2])
    if percentile is not None and not 0 < percentile < 100:
        raise ScenarioError(f"--slo {name}: a percentile lies between 0 and 100")
    try:
        limit_ns = parse_time(time)
    except UnitError as error:
        raise ScenarioError(f"--slo {name}: {error}") from None
    if not limit_ns:
        raise ScenarioError(f"--slo {name}: the limit has to be above 0 s")
    return Limit(match[1], percentile, limit_ns / 1e9)


def percentile_s(values: Floats, num_missing: int, percentile: float) -> float:
    """Linear percentile (numpy's) of ``values`` and of ``num_missing`` requests that never ended; inf if it falls on those."""
    ordered = np.concatenate([np.sort(values[~np.isnan(values)]), np.full(num_missing, np.inf)])
    if not len(ordered):
        return 0.0
    at = percentile / 100 * (len(ordered) - 1)
    low, high = float(ordered[math.floor(at)]), float(ordered[math.ceil(at)])
    return high if math.isinf(high) else low + (high - low) * (at - math.floor(at))


def attained_ratio(done: RequestColumns, num_missing: int, limits: Mapping[str, float]) -> float:
    """Share of the submitted requests within ``limits`` (seconds by metric); a request with one output token has no TPOT."""
    good = np.ones(len(done.request), dtype=bool)
    for metric, limit_s in limits.items():
        good &= ~(getattr(done, f"{metric}_s") > limit_s)
    total = len(good) + num_missing
    return int(good.sum()) / total if total else 1.0


def figures(
    done: RequestColumns, num_missing: int, wanted: Requirements, ratios: Mapping[str, float]
) -> dict[str, Any]:
    """A run's side of ``wanted``: percentiles in seconds (None: not so many requests ever ended) and the share of requests
    within their limits, also with limits divided by ``ratios`` (by :attr:`Limit.name`'s metric): the model's margin."""
    limits = wanted.request_limits
    found: dict[str, float | None] = {}
    for limit in wanted.percentiles:
        assert limit.percentile is not None
        value = percentile_s(getattr(done, f"{limit.metric}_s"), num_missing, limit.percentile)
        found[limit.name] = None if math.isinf(value) else value
    tighter = {metric: limit_s / ratios.get(metric, 1.0) for metric, limit_s in limits.items()}
    return {
        "percentiles_s": found,
        "attained_ratio": attained_ratio(done, num_missing, limits),
        "attained_ratio_with_margin": attained_ratio(done, num_missing, tighter),
    }


def over_limits(
    row: Mapping[str, Any], wanted: Requirements, ratios: Mapping[str, float]
) -> dict[str, float]:
    """How many times its limit each SLO of a run is, with times multiplied by ``ratios``; ``attain`` as the share of missing
    requests over the allowed one. Above 1 it is broken; inf if there is no value. A queue that grows to the end breaks
    every SLO sooner or later: ``queue`` is inf."""
    found: dict[str, float] = {"queue": math.inf} if row.get("unstable") else {}
    for limit in wanted.percentiles:
        value = row["percentiles_s"][limit.name]
        ratio = ratios.get(limit.name, 1.0)
        found[limit.name] = math.inf if value is None else value * ratio / limit.limit_s
    if wanted.attain is not None:
        attained = row["attained_ratio_with_margin" if ratios else "attained_ratio"]
        allowed = 1 - wanted.attain
        missed = 1 - attained
        if attained >= wanted.attain:
            found["attain"] = min(1.0, missed / allowed) if allowed else 0.0
        else:
            found["attain"] = max(missed / allowed, 1 + 1e-9) if allowed else math.inf
    return found


def meets(row: Mapping[str, Any], wanted: Requirements, ratios: Mapping[str, float]) -> bool:
    """The run meets every SLO; a configuration that cannot run meets none."""
    return row["error"] is None and all(over <= 1 for over in over_limits(row, wanted, ratios).values())

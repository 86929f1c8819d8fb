"""Dollars an hour are given, not drawn: a comparison judges them without a test of significance."""

from __future__ import annotations

import pytest

from kvsim.study.compare import _judge, _metrics, _over_seeds


@pytest.mark.parametrize(("usd", "verdict"), [(3.0, "worse"), (1.0, "better"), (2.0, "equal")])
def test_dollars_an_hour_are_judged_and_not_tested(usd: float, verdict: str) -> None:
    first, other = ([{"usd_per_hour": each, "unstable": False}] * 3 for each in (2.0, usd))
    metrics = _metrics(_over_seeds(first, other), first, other)
    _judge([{"metrics": metrics}])
    assert [(each["verdict"], each["p"], each["p_holm"]) for each in metrics] == [(verdict, None, None)]

"""What a plan tells of its traffic, of configurations that are equally good, and of curves beside each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvsim.reports.plan import _short_names
from kvsim.results.plan_text import traffic_text
from kvsim.study.plan.plan import decide, new_context


@pytest.mark.parametrize(
    ("arrivals_s", "text"),
    [
        (10.0, "mix at 3 times its traffic (10 requests/s)"),
        (50.0, "mix at 3 times its traffic (10 requests/s, 2 in the mean of the run)"),
    ],
)
def test_a_mean_rate_below_the_rate_asked_for_is_told(arrivals_s: float, text: str) -> None:
    answer = {"requests_submitted": 100, "arrivals_s": arrivals_s}
    told = {"name": "mix", "traffic": 3.0, "requests_per_s": 10.0, "feasible": True, "answer": answer}
    assert traffic_text(told) == text


def test_the_answer_is_on_the_front_before_its_equals(small_space: Callable[..., object]) -> None:
    small = small_space(
        ["ttft_p95=10s"], ["cluster.router=round_robin,least_outstanding_tokens", "cluster.replicas=1"]
    )
    context = new_context(small.space, small.wanted, with_margin=False)
    decide(small.space, context, small.runner)
    assert [context.told(answer)["pareto"] for answer in (0, 1)] == [[0], [1]]


def test_curves_of_the_same_gpus_have_names_of_their_own() -> None:
    def named(*titles: str) -> list[str]:
        return _short_names([{"title": title} for title in titles])

    assert named("5 × a, random, HBM only", "4 × a, random, HBM only") == ["5 × a", "4 × a"]
    assert named("5 × a, random, HBM only", "5 × a, prefix, HBM only", "4 × a, prefix, HBM only") == [
        "5 × a<br>random", "5 × a<br>prefix", "4 × a<br>prefix",
    ]  # fmt: skip

"""The search: simulate until every cheaper configuration has failed or cannot win. It knows nothing of scenarios.

Candidates come in groups that differ only in the number of replicas. Of each group that may still beat the cheapest success
one is run: the middle while nothing has succeeded, or the group's own last run has, else the largest one. A success
leaves out what costs as much or more, a failure what ``rules_out`` says. So the answer is the exhaustive one wherever
``rules_out`` holds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
SAME_USD = 1e-9
WAVE = 4
"""Runs between two decisions, whatever the number of processes: so the way to the answer does not depend on it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the search sees of a candidate."""

    usd_per_hour: float
    group: str
    replicas: int


@dataclass(slots=True)
class Found:
    """The cheapest success (index), and what happened to the others."""

    best: int | None = None
    runs: list[int] = field(default_factory=list)
    ruled_out_by: dict[int, int] = field(default_factory=dict)  # candidate: the failed run
    dominated: set[int] = field(default_factory=set)  # cost no less than a success


def cheapest(
    choices: Sequence[Choice],
    among: Sequence[int],
    run: Callable[[Sequence[int]], Sequence[Row]],
    succeeds: Callable[[int, Row], bool],
    rules_out: Callable[[Row, int], bool],
    better: Callable[[Row], Any],
) -> Found:
    """The cheapest of ``among`` (indices of ``choices``) whose row ``succeeds``; of equal price the one with the smallest
    ``better(row)``."""
    found = Found()
    undecided = dict.fromkeys(among)
    rows: dict[int, Row] = {}
    last: dict[str, bool] = {}
    while undecided:
        wave = _next(choices, list(undecided), last, found.best is not None)
        found.runs += wave
        for index, row in zip(wave, run(wave), strict=True):
            rows[index] = row
            undecided.pop(index, None)
            good = last[choices[index].group] = succeeds(index, row)
            if good and (
                found.best is None or choices[index].usd_per_hour < choices[found.best].usd_per_hour
            ):
                found.best = index
            elif not good:
                _rule_out(choices, index, row, undecided, rules_out, found)
        if found.best is not None:
            ceiling = choices[found.best].usd_per_hour - SAME_USD
            for index in [i for i in undecided if choices[i].usd_per_hour >= ceiling]:
                undecided.pop(index)
                found.dominated.add(index)
    if found.best is not None:
        _settle_ties(choices, found, rows, run, succeeds, better)
    return found


def _rule_out(
    choices: Sequence[Choice],
    index: int,
    row: Row,
    undecided: dict[int, None],
    rules_out: Callable[[Row, int], bool],
    found: Found,
) -> None:
    group = choices[index].group
    for other in [i for i in undecided if choices[i].group == group]:
        if rules_out(row, other):
            undecided.pop(other)
            found.ruled_out_by[other] = index


def _next(
    choices: Sequence[Choice], undecided: Sequence[int], last: Mapping[str, bool], any_success: bool
) -> list[int]:
    """One of each of the groups with the most undecided candidates, of equal ones the cheapest."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index in undecided:
        groups[choices[index].group].append(index)
    wave = []
    least = {group: min(choices[i].usd_per_hour for i in members) for group, members in groups.items()}
    for group, members in sorted(groups.items(), key=lambda item: (-len(item[1]), least[item[0]]))[:WAVE]:
        members.sort(key=lambda i: choices[i].replicas)
        halve = not any_success or last.get(group, False)
        wave.append(members[len(members) // 2 if halve else -1])
    return wave


def _settle_ties(
    choices: Sequence[Choice],
    found: Found,
    rows: dict[int, Row],
    run: Callable[[Sequence[int]], Sequence[Row]],
    succeeds: Callable[[int, Row], bool],
    better: Callable[[Row], Any],
) -> None:
    """Of candidates that cost what the cheapest does, the better one: a router or a manager costs nothing."""
    assert found.best is not None
    usd = choices[found.best].usd_per_hour
    same = [i for i in sorted({*rows, *found.dominated}) if math.isclose(choices[i].usd_per_hour, usd)]
    more = [i for i in same if i not in rows]
    found.runs += more
    rows |= dict(zip(more, run(more), strict=True))
    found.dominated -= set(more)
    good = [i for i in same if succeeds(i, rows[i])]
    found.best = min(good, key=lambda i: (better(rows[i]), i))

"""Two profiles of one GPU held against each other, point by point where both were run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvsim.calibrate.predict import predictor
from kvsim.cost.profile import LATENCY, Profile, Table, roofline_of
from kvsim.errors import CalibrationError

Row = Mapping[str, Any]
SHOWN = 5  # outliers of each table


@dataclass(frozen=True)
class Comparison:
    """Ratios other / this of one table's points. ``kind``: same point in both, or what the other derives."""

    table: str
    kind: str
    points: int
    p5: float
    median: float
    p95: float
    outliers: list[tuple[Row, float]] = field(repr=False)  # point, ratio: the farthest from the median


def compare(this: Profile, other: Profile) -> list[Comparison]:
    """A row for each table that both have; a prefill over a past is compared with what ``other`` derives.

    Raises:
        CalibrationError: no table of the two meets.
    """
    found = []
    for name in this.table_names:
        if not other.has(name):
            continue
        mine, theirs = this.rows(name), other.rows(name)
        by_kind: dict[str, list[tuple[Row, float]]] = {}
        for kind, point, ratio in _ratios(name, mine, theirs, other):
            by_kind.setdefault(kind, []).append((point, ratio))
        found += [_summary(name, kind, ratios) for kind, ratios in by_kind.items()]
    if not found:
        raise CalibrationError(f"profiles {this.name} and {other.name} have no point in common")
    return found


def compare_lines(this: Profile, other: Profile) -> list[str]:
    """The comparison as text."""
    lines = [
        f"{other.name} / {this.name}",
        f"{'table':24}{'':10}{'points':>8}{'p5':>7}{'median':>8}{'p95':>7}",
    ]
    for row in compare(this, other):
        lines.append(
            f"{row.table:24}{row.kind:10}{row.points:>8}{row.p5:>7.2f}{row.median:>8.2f}{row.p95:>7.2f}"
        )
        for point, ratio in row.outliers:
            lines.append(
                f"{'':10}{ratio:5.2f} at " + ", ".join(f"{key} {value}" for key, value in point.items())
            )
    return lines


def compare_json(this: Profile, other: Profile) -> dict[str, Any]:
    """The comparison as one JSON document."""
    rows = [
        {**vars(row), "outliers": [[dict(point), ratio] for point, ratio in row.outliers]}
        for row in compare(this, other)
    ]
    return {"other": other.name, "tables": rows}


def _summary(name: str, kind: str, ratios: list[tuple[Row, float]]) -> Comparison:
    values = np.array([ratio for _, ratio in ratios])
    middle = float(np.median(values))
    far = sorted(ratios, key=lambda row: -abs(np.log(row[1] / middle)))[:SHOWN]
    low, high = np.percentile(values, (5, 95))
    return Comparison(name, kind, len(values), float(low), middle, float(high), far)


def _ratios(name: str, mine: Table, theirs: Table, other: Profile) -> Iterator[tuple[str, Row, float]]:
    """(kind, point, their time / ours)."""
    if name == "prefill_attention" and "past" in mine.axes and "length" in theirs.axes:
        yield from _prefill_ratios(mine, theirs, other)
        return
    columns = [column for column in mine.columns if column in theirs.columns and column != "backend"]
    columns = [column for column in columns if mine.columns[column].dtype.kind in "iU"]
    known = {tuple(row[column] for column in columns): row[LATENCY] for row in _rows(theirs)}
    for row in _rows(mine):
        key = tuple(row[column] for column in columns)
        if key in known and row.get("contexts", "even") == "even":
            yield "same", dict(zip(columns, key, strict=True)), known[key] / row[LATENCY]


def _prefill_ratios(mine: Table, theirs: Table, other: Profile) -> Iterator[tuple[str, Row, float]]:
    """Whole prompts where both were run; a chunk over a past against launch + T(new + past) - T(past)."""
    shape = ("kv_dtype", "head_dim", "heads", "kv_heads")
    run = {
        (*(row[key] for key in shape), row["length"]): row[LATENCY]
        for row in _rows(theirs)
        if row["batch"] == 1
    }
    shapes = {key[:-1] for key in run}
    predict = predictor(other, "prefill_attention", roofline_of(other.header))
    for row in _rows(mine):
        point = {key: row[key] for key in (*shape, "new", "past")}
        key = tuple(row[column] for column in shape)
        if row["past"] and key in shapes:
            yield "derived", point, predict(point) / row[LATENCY]
        elif not row["past"] and (*key, row["new"]) in run:
            yield "same", point, run[(*key, row["new"])] / row[LATENCY]


def _rows(table: Table) -> Iterator[dict[str, Any]]:
    names = list(table.columns)
    for values in zip(*(table.columns[name].tolist() for name in names), strict=True):
        yield dict(zip(names, values, strict=True))

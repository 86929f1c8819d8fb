"""What a profile covers: points, axes and how many points lie below the roofline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvsim.cost.profile import LATENCY, Profile, Table, roofline_of
from kvsim.cost.roofline import Roofline

Point = Mapping[str, Any]  # a row of a table


@dataclass(frozen=True)
class TableCoverage:
    """One table. ``axes``: (least, greatest, how many values) by integer column; ``variants``: texts."""

    table: str
    points: int
    raised_points: int  # below the roofline of the GPU's datasheet, so priced at the roofline
    axes: dict[str, tuple[int, int, int]]
    variants: dict[str, list[str]]
    provenance: str
    engine: str
    kernel_source: list[str]


def coverage(profile: Profile) -> list[TableCoverage]:
    """One row a table, in the profile's order. Reads all of its tables."""
    roofline = roofline_of(profile.header)
    found = []
    for name in profile.table_names:
        table, about = profile.table(name), profile.header["tables"][name]
        axes = {axis: table.values(axis) for axis in table.axes}
        found.append(
            TableCoverage(
                table=name,
                points=len(table),
                raised_points=_raised(table, roofline),
                axes={axis: (values[0], values[-1], len(values)) for axis, values in axes.items()},
                variants={c: table.values(c) for c, v in table.columns.items() if v.dtype.kind == "U"},
                provenance=table.provenance,
                engine=str(about.get("engine", "")),
                kernel_source=list(about.get("kernel_source", [])),
            )
        )
    return found


def describe_profile(profile: Profile) -> str:
    """A page of text: where the numbers come from and what they cover."""
    header = profile.header
    lines = [
        f"{profile.name}: {profile.provenance}, {header['gpu'].get('device', profile.gpu)}",
        f"source {header['source']}, date {header.get('date', 'not stated')}",
        f"licence {header.get('licence', 'not stated')}",
    ]
    if profile.header.get("scaled_from"):
        lines.append(
            f"every point of {profile.header['scaled_from']}, scaled by the rooflines of the two GPUs"
        )
    if profile.other is not None:
        lacking = [name for name in profile.other.table_names if name not in profile.table_names]
        lines.append(f"from {profile.other.name}: {', '.join(lacking) or 'nothing'}")
    for row in coverage(profile):
        made_by = f"{row.provenance}, {row.engine}" if row.engine else row.provenance
        what = profile.header["tables"][row.table].get("what", "")
        lines += ["", f"{row.table}: {row.points} points ({made_by}){'; ' + what if what else ''}"]
        lines += [
            f"  {axis}: {low} to {high}, {count} values" for axis, (low, high, count) in row.axes.items()
        ]
        lines += [f"  {name}: {', '.join(values)}" for name, values in row.variants.items()]
        if row.kernel_source:
            lines.append(f"  kernels: {', '.join(row.kernel_source)}")
        if row.raised_points:
            lines.append(f"  raised to the roofline: {row.raised_points}")
    return "\n".join(lines)


def _gemm_ns(roofline: Roofline, p: Point) -> float:
    return roofline.gemm_ns(p["m"], p["n"], p["k"], p["dtype"])


def _prefill_ns(roofline: Roofline, p: Point) -> float:
    new, past = (p["new"], p["past"]) if "new" in p else (p["length"], 0)
    alone = roofline.prefill_ns(new, past, p["heads"], p["kv_heads"], p["head_dim"], p["kv_dtype"])
    return alone * int(p.get("batch", 1))


def _decode_ns(roofline: Roofline, p: Point) -> float:
    tokens = p["batch"] * p["context"]
    return roofline.decode_ns(tokens, p["heads"], p["kv_heads"], p["head_dim"], p["kv_dtype"])


def _moe_ns(roofline: Roofline, p: Point) -> float:
    shape = (p["tokens"], p["hidden"], p["inter"], p["topk"], p["experts"], p["dtype"])
    # the table does not say which experts are gated: count what holds without a gate too
    return roofline.moe_ns(*shape, matrices=2) / int(p["moe_tp"]) / int(p.get("moe_ep", 1))


_FLOORS: dict[str, Callable[[Roofline, Point], float]] = {
    "gemm": _gemm_ns,
    "prefill_attention": _prefill_ns,
    "decode_attention": _decode_ns,
    "moe": _moe_ns,
}


def _raised(table: Table, roofline: Roofline) -> int:
    floor = _FLOORS.get(table.name)
    if floor is None:
        return 0
    names = [name for name in table.columns if name != LATENCY]
    rows = zip(*(table.columns[name].tolist() for name in names), strict=True)
    points = zip(rows, table.latency_ns.tolist(), strict=True)
    return sum(time_ns < floor(roofline, dict(zip(names, row, strict=True))) for row, time_ns in points)

"""Charts as plain plotly JSON ({"data", "layout"}), so that writing a report never imports plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvsim.reports import colours
from kvsim.reports.series import (
    Floats,
    bucket_edges,
    bucket_means,
    distribution,
    rounded,
    time_unit,
    total_over_replicas,
)
from kvsim.results.read import numbers
from kvsim.results.reading import PART_NAMES

Figure = dict[str, Any]

LOG_RATIO = 20.0  # a distribution wider than this gets a logarithmic axis


def cumulative(series: Mapping[str, tuple[Floats, str]]) -> Figure | None:
    """Share of requests within a time: ``series`` is {name: (seconds, colour)}."""
    known = {name: (values[values > 0], colour) for name, (values, colour) in series.items()}
    known = {name: pair for name, pair in known.items() if len(pair[0])}
    if not known:
        return None
    low = min(np.percentile(values, 1) for values, _ in known.values())
    high = max(float(values.max()) for values, _ in known.values())
    scale, unit = (1e3, "ms") if high < 1 else (1.0, "s")
    data = []
    for name, (values, colour) in known.items():
        x, share = distribution(values * scale)
        x, share = np.append(x[0], x), np.append(0.0, share)
        data.append(_line(name, rounded(x), rounded(share), colour, "hv", f"%{{x:.3~g}} {unit}: %{{y:.1%}}"))
    x_axis: dict[str, Any] = {"title": unit, "tickformat": "~g"}
    if high > LOG_RATIO * low:
        x_axis |= {"type": "log", "dtick": "D2" if high < 1000 * low else 1}  # D2: 1, 2, 5, 10, ...
    elif high < 1.05 * low:  # as good as one value: a range of its own width would be all rounding
        x_axis["range"] = [0, 2 * high * scale]
    return _figure(data, x_axis, {"title": "share of requests", "tickformat": ".0%", "range": [0, 1.01]})


def ttft_by_rank(ttft_s: Floats, parts: Mapping[str, Floats], as_shares: bool) -> Figure | None:
    """Mean parts of TTFT of the fastest tenth of requests, the next tenth, ... and the slowest 1 %.

    In seconds, or as shares of the group's mean TTFT.
    """
    n = len(ttft_s)
    if not n:
        return None
    order = np.argsort(ttft_s, kind="stable")
    tenths = np.array_split(order, min(10, n))
    names = [f"{100 * i // len(tenths)}–{100 * (i + 1) // len(tenths)}" for i in range(len(tenths))]
    if n >= 500:
        tenths.append(order[-(n // 100) :])
        names.append("99–100")
    whole = np.array([ttft_s[group].mean() for group in tenths]) if as_shares else np.ones(len(tenths))
    data = [
        {
            "type": "bar",
            "name": PART_NAMES[part],
            "x": names,
            "y": rounded(np.array([values[group].mean() for group in tenths]) / np.maximum(whole, 1e-12)),
            "marker": {"color": colours.TTFT_PARTS[part]},
            "hovertemplate": "%{y:.1%}" if as_shares else "%{y:.3~g} s",
        }
        for part, values in parts.items()
    ]
    x_axis = {"title": "percentile of time to first token", "type": "category", "showgrid": False}
    y_axis = (
        {"title": "share", "tickformat": ".0%"} if as_shares else {"title": "seconds", "tickformat": "~g"}
    )
    return _figure(data, x_axis, y_axis, barmode="stack")


class Timeline:
    """The timeline of all replicas together, in some hundred buckets of time."""

    def __init__(self, table: Any) -> None:
        self._t_s: Floats = numbers(table, "t_s")
        self._replica = numbers(table, "replica")
        self._table = table
        self.empty = len(self._t_s) < 2 or float(self._t_s.max()) <= float(self._t_s.min())
        if not self.empty:
            self._edges = bucket_edges(float(self._t_s.min()), float(self._t_s.max()))
            self._scale, self._unit = time_unit(float(self._edges[-1] - self._edges[0]))

    def total(self, column: str) -> Floats:
        """Time-weighted mean of ``column`` in each bucket, summed over replicas."""
        return total_over_replicas(
            self._t_s, self._replica, numbers(self._table, column).astype(float), self._edges
        )

    def load(self) -> Figure | None:
        """Requests running and waiting."""
        if self.empty:
            return None
        data = [
            self._area(name, self.total(name), colour, None, "%{y:.1f} " + name)
            for name, colour in (("running", colours.BLUE), ("waiting", colours.ORANGE))
        ]
        return _figure(data, self._time_axis(), {"title": "requests", "rangemode": "tozero"})

    def occupancy(self, tier: str, colour: str, capacity_bytes: float, first: bool) -> Figure | None:
        """Bytes in ``tier`` as a share of ``capacity_bytes`` (of all replicas); in GB where that is 0.

        The ``first`` tier (HBM) is split into what running requests hold and what is only cached.
        """
        if self.empty:
            return None
        scale, title, tickformat = (
            (1e9, "GB", "~g") if not capacity_bytes else (capacity_bytes, "of capacity", "~%")
        )
        used = self.total(f"used_bytes_{tier}") / scale
        hover = "%{y:.3~g} GB" if not capacity_bytes else "%{y:.1%}"
        if first:
            held = np.minimum(self.total("held_bytes") / scale, used)
            data = [
                self._area("held by running requests", held, colours.BLUE, "kv", hover),
                self._area("cached", used - held, colour, "kv", hover),
            ]
        else:
            data = [self._area("cached", used, colour, "kv", hover)]
        y_axis: dict[str, Any] = {"title": title, "tickformat": tickformat, "rangemode": "tozero"}
        if capacity_bytes and used.max() > 0.3:
            y_axis["range"] = [0, max(1.02, float(used.max()))]
        return _figure(data, self._time_axis(), y_axis)

    def _area(self, name: str, values: Floats, colour: str, stack: str | None, hover: str) -> dict[str, Any]:
        middle = (self._edges[1:] + self._edges[:-1]) / 2 / self._scale
        line = _line(name, rounded(middle), rounded(values), colour, "linear", hover)
        if stack:
            line |= {"stackgroup": stack, "line": {"color": colour, "width": 0.5}, "fillcolor": colour}
        return line

    def _time_axis(self) -> dict[str, Any]:
        ends = [float(self._edges[i]) / self._scale for i in (0, -1)]
        return {"title": f"simulated time ({self._unit})", "range": ends}


def over_time(series: Mapping[str, tuple[Floats, Floats, str]], title: str) -> Figure | None:
    """One quantity of several runs over each other: ``series`` is {name: (times in seconds, values, colour)}."""
    known = {name: triple for name, triple in series.items() if len(triple[0])}
    if not known:
        return None
    start = min(float(t_s[0]) for t_s, _, _ in known.values())
    end = max(float(t_s[-1]) for t_s, _, _ in known.values())
    if end <= start:
        return None
    edges = bucket_edges(start, end)
    scale, unit = time_unit(end - start)
    middle = rounded((edges[1:] + edges[:-1]) / 2 / scale)
    data = [
        _line(name, middle, rounded(bucket_means(t_s, values, edges)), colour, "linear", "%{y:.1f} " + name)
        for name, (t_s, values, colour) in known.items()
    ]
    return _figure(data, {"title": f"time ({unit})"}, {"title": title, "rangemode": "tozero"})


def bars(names: Sequence[str], shares: Sequence[float], colour: str, title: str) -> Figure | None:
    """Upright bars of shares 0..1, such as utilisation by replica."""
    if not names:
        return None
    data: dict[str, Any] = {
        "type": "bar",
        "x": list(names),
        "y": rounded(np.array(shares)),
        "marker": {"color": colour},
        "hovertemplate": "%{x}: %{y:.1%}<extra></extra>",
    }
    if len(names) < 4:
        data["width"] = 0.4
    y_axis = {"tickformat": "~%", "range": [0, max(1.0, *shares)]}
    return _figure([data], {"title": title, "type": "category", "showgrid": False}, y_axis)


def kernels(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Lying bars of simulated seconds by kernel, coloured by provenance; the longest on top."""
    if not rows:
        return None
    names = [_short(row["kernel"]) for row in rows]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": provenance,
            "y": names,
            "x": rounded(np.array([row["time_s_by_provenance"].get(provenance, 0.0) for row in rows])),
            "marker": {"color": colour},
            "hovertemplate": "%{x:.4~g} s",
        }
        for provenance, colour in colours.PROVENANCE.items()
        if any(provenance in row["time_s_by_provenance"] for row in rows)
    ]
    y_axis = {"autorange": "reversed", "type": "category", "showgrid": False}
    x_axis = {"title": "device time, all replicas (s)", "tickformat": "~g"}
    return _figure(data, x_axis, y_axis, barmode="stack")


def _short(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _line(name: str, x: list[Any], y: list[Any], colour: str, shape: str, hover: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 2, "shape": shape},
        "hovertemplate": hover,
    }


def _figure(
    data: list[dict[str, Any]], x_axis: dict[str, Any], y_axis: dict[str, Any], **layout: Any
) -> Figure:
    return {"data": data, "layout": {"xaxis": x_axis, "yaxis": y_axis, "showlegend": len(data) > 1, **layout}}

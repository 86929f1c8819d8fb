"""Kernels without a price function of their own: their table in the profile, else the roofline.

Sizes are of the whole model; every GPU does its share. What the kernel must move is ``num_bytes``, or
``rows`` * ``row_bytes``; what it computes is ``flops`` (each optional). A roofline price is *extrapolated*:
nobody ran it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import log
from typing import Any

import numpy as np

from kvsim.cost.grid import Grid
from kvsim.cost.lattice import quantise, quantise_array
from kvsim.cost.line import Line, Pieces, after, first_of
from kvsim.cost.pricer import Array, Pricer
from kvsim.cost.profile import Table
from kvsim.cost.setting import Setting, by_row, table_dtype, worst
from kvsim.cost.work import Column, Ramp, column
from kvsim.errors import CalibrationError
from kvsim.model.spec import DTYPE_BYTES

# Host link where the scenario names none: PCIe gen5 x16, 63 GB/s raw, pinned copies reach about 50.
HOST_LINK_BYTES_PER_S = 50e9
# Lane cpu: a socket with 8 channels of DDR5-4800 (307 GB/s), two thirds of it sustained; AVX-512 in bfloat16.
CPU_BYTES_PER_S = 200e9
CPU_FLOPS_PER_S = 4e12
COPY = "device_copy"  # its num_bytes are read, and written


class RooflinePricer(Pricer):
    """max(bytes / bandwidth, FLOPs / peak) of the lane's device."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._name = name
        self._parts = setting.tensor_parallel
        self._gpu = setting.roofline
        link = setting.host_link
        self._read = link.read_bytes_per_s if link else HOST_LINK_BYTES_PER_S
        self._write = link.write_bytes_per_s if link else HOST_LINK_BYTES_PER_S
        self._operation_ns = link.operation_ns if link else 0
        self._pieces: dict[tuple[str, float, int], Pieces] = {}
        self.lines: list[Line] = []

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        moved, flops = _size(self._name, args)
        if moved <= 0 and flops <= 0:
            return 0.0, "extrapolated"
        if lane == "cpu":  # one host serves all GPUs of the replica
            time_ns = 1e9 * max(moved / CPU_BYTES_PER_S, flops / CPU_FLOPS_PER_S)
        elif lane in ("h2d", "d2h"):
            rate = self._read if lane == "h2d" else self._write
            time_ns = self._operation_ns + 1e9 * moved / self._parts / (rate * share)
        else:
            time_ns = self._gpu.time_ns(flops / self._parts, moved / self._parts)
        return quantise(time_ns), "extrapolated"

    def line(
        self, args: Mapping[str, Column], lane: str = "gpu", share: float = 1.0, steps: int = 1
    ) -> tuple[Line, Column] | None:
        """Over ``num_bytes``, over ``rows`` of so many bytes, or over ``flops`` where these take longer throughout. Other
        sizes are those of a table that the profile lacks."""
        row_bytes: Any = 2 if self._name == COPY else 1  # a copy reads and writes
        x, flops = args.get("num_bytes"), args.get("flops")
        if x is not None and flops is None:
            pass
        elif x is not None and lane in ("gpu", "cpu"):
            return self._longer(x, flops, lane, steps)  # type: ignore[arg-type]
        elif x is None and flops is None and "rows" in args and type(args.get("row_bytes")) is int:
            x, row_bytes = args["rows"], args["row_bytes"]
            if row_bytes < 1:
                return None
        else:
            return None
        return self._over(lane, share, row_bytes).at(x if type(x) is int else first_of(x)), x

    def _longer(self, moved: Column, flops: Column, lane: str, steps: int) -> tuple[Line, Column] | None:
        """The line of moving bytes or of computing, where one of them takes longer in all steps."""
        reads = self._over(lane, 1.0, 1).at(first_of(moved))
        computes = self._over(lane, 1.0, 0).at(first_of(flops))
        if not steps and type(moved) is Ramp and type(flops) is Ramp:
            if moved[0] * flops[1] != moved[1] * flops[0]:
                return None
            slower = moved[1] * reads.slope >= flops[1] * computes.slope
            return (reads, moved) if slower else (computes, flops)
        if not steps and (type(moved) is Ramp or type(flops) is Ramp):
            return None
        slower = first_of(moved) * reads.slope >= first_of(flops) * computes.slope
        if steps > 1:
            ends = (
                [0, -1]
                if isinstance(moved, int | float | Ramp) and isinstance(flops, int | float | Ramp)
                else slice(None)
            )
            some, other = (
                column(moved, steps)[ends] * reads.slope,
                column(flops, steps)[ends] * computes.slope,
            )
            if not ((some >= other) == slower).all():
                return None
        return (reads, moved) if slower else (computes, flops)

    def _over(self, lane: str, share: float, row_bytes: int) -> Pieces:
        """Time over rows of so many bytes; 0 = over FLOPs."""
        found = self._pieces.get((lane, share, row_bytes))
        if found is None:
            found = self._pieces[lane, share, row_bytes] = self._lines_of(lane, share, row_bytes)
        return found

    def _lines_of(self, lane: str, share: float, row_bytes: int) -> Pieces:
        base, key = 0.0, (self._name, "extrapolated")
        if not row_bytes:
            peak = CPU_FLOPS_PER_S if lane == "cpu" else self._gpu.peak("bfloat16") * self._parts
            slope = 1e9 / peak
        elif lane == "cpu":
            slope = 1e9 / CPU_BYTES_PER_S * row_bytes
        elif lane in ("h2d", "d2h"):
            base = self._operation_ns
            slope = 1e9 / self._parts / ((self._read if lane == "h2d" else self._write) * share) * row_bytes
        else:
            slope = 1e9 / self._parts / self._gpu.hbm_bytes_per_s * row_bytes

        def make(first: float, last: float) -> Line:
            copies = last > 0  # nothing to move takes no time
            return Line(self.lines, key, base if copies else 0.0, slope if copies else 0.0, first, last)

        return Pieces([after(0.0) if base else 0.0], make)


class TablePricer(Pricer):
    """A table of the profile: straight lines between its points on every axis.

    Axes that are the model's (heads, hidden, ...) are looked up, the others come as sizes of the kernel. A table with
    such axes holds one layer on one GPU, so its price is times the layers; one without (copies, gathers) holds what is
    moved, so sizes are divided over the GPUs. Where a table has variants (text columns but backend and kv_dtype), the
    kernel's name says which: ``contiguous_decode[hf]``.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        base, _, variants = name.partition("[")
        table = setting.profile.rows(base)
        chosen = [value for value in variants.rstrip("]").split(",") if value]
        self._provenance, bytes_ratio = table.provenance, 1.0
        if "kv_dtype" in table.columns:
            dtype = table_dtype(setting.model.kv_dtype)
            if dtype not in table.values("kv_dtype"):  # by its bytes, as nobody ran it
                bytes_ratio = DTYPE_BYTES[dtype] / DTYPE_BYTES["bfloat16"]
                self._provenance, dtype = "extrapolated", "bfloat16"
            table = table.select(kv_dtype=dtype)
        self._name = name
        table = _variant(name, table, chosen)
        model_sizes = _model_sizes(setting)
        shape = [axis for axis in table.axes if axis in model_sizes]
        self._sizes = [axis for axis in table.axes if axis not in model_sizes]
        scale = bytes_ratio
        for axis in shape:
            known, wanted = table.values(axis), model_sizes[axis]
            nearest = min(known, key=lambda value: abs(log(value / wanted)))
            if nearest != wanted:
                # query heads stand for their KV heads, where a table has both
                scale *= 1.0 if axis == "kv_heads" and "heads" in shape else wanted / nearest
                self._provenance = worst(self._provenance, "derived")
            table = table.select(**{axis: nearest})
        self._found: dict[tuple[float, ...], tuple[float, str]] = {}  # by sizes and share
        self._calls = setting.model.num_layers if shape else 1
        self._parts = 1 if shape else setting.tensor_parallel
        self._divided = [place for place, axis in enumerate(self._sizes) if axis in _DIVIDED]
        keys = zip(*(table.columns[axis].tolist() for axis in self._sizes), strict=True)
        points = dict(zip(keys, table.latency_ns.tolist(), strict=True))
        launch_ns = min(
            points.values()
        )  # a launch costs what it costs; what is above it grows with the shape
        self._grid = Grid({key: launch_ns + (time_ns - launch_ns) * scale for key, time_ns in points.items()})
        self._least = [min(table.columns[axis].tolist()) for axis in self._sizes]
        self._points: dict[str, tuple[list[float], list[float]]] = {}  # of each axis, and where pieces begin
        for axis, least in zip(self._sizes, self._least, strict=True):
            whole = self._parts if axis in _DIVIDED else 1
            values = [value * whole for value in table.values(axis)]
            starts = {start for value in values for start in (value, after(value))}
            if least > 0:
                starts.add(after(0.0))
            self._points[axis] = values, sorted(starts)
        self._pieces: dict[tuple[str | float, ...], Pieces] = {}
        self.lines: list[Line] = []

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        sizes = self._at(args)
        key = (*sizes, share)
        found = self._found.get(key)
        if found is None:
            found = self._price(sizes, share)
            if len(self._found) < REMEMBERED:
                self._found[key] = found
        return found

    def _price(self, sizes: list[float], share: float) -> tuple[float, str]:
        if min(sizes) <= 0 and any(size <= 0 < least for size, least in zip(sizes, self._least, strict=True)):
            return 0.0, self._provenance
        time_ns, covered = self._grid.at(sizes)
        provenance = self._provenance if covered else "extrapolated"
        return quantise(time_ns * self._calls / share), provenance

    def _at(self, args: Mapping[str, float]) -> list[float]:
        """The place in the table: what one GPU does."""
        try:
            sizes = [args[axis] for axis in self._sizes]
        except KeyError as error:
            found = ", ".join(args)
            raise CalibrationError(f"kernel {self._name}: size {error} is missing; found {found}") from None
        for place in self._divided:
            sizes[place] /= self._parts
        return sizes

    def line(
        self, args: Mapping[str, Column], lane: str = "gpu", share: float = 1.0, steps: int = 1
    ) -> tuple[Line, Column] | None:
        """Over the size that varies; where none does, over the last one."""
        over, fixed = self._sizes[-1], []
        varies = False
        for axis in self._sizes:
            size = args.get(axis)
            if type(size) is int or type(size) is float:
                fixed.append(size)
            elif size is None or varies:
                return None
            else:
                over, varies = axis, True
        if not varies:
            fixed.pop()
        key = (over, share, *fixed)
        pieces = self._pieces.get(key)
        if pieces is None:
            others = [axis for axis in self._sizes if axis != over]
            pieces = self._lines_of(over, dict(zip(others, fixed, strict=True)), share)
            self._pieces[key] = pieces
        x = args[over]
        return pieces.at(x if type(x) is int else first_of(x)), x

    def _lines_of(self, over: str, fixed: dict[str, float], share: float) -> Pieces:
        """Between the points of an axis; on a point the price may have another provenance."""
        points, starts = self._points[over]

        def at(x: float) -> tuple[float, bool]:
            found = self._grid.at(self._at({**fixed, over: x}))
            return found.time_ns * self._calls / share, found.covered

        def make(first: float, last: float) -> Line:
            sizes = self._at({**fixed, over: last})
            if any(size <= 0 < least for size, least in zip(sizes, self._least, strict=True)):
                return Line(self.lines, (self._name, self._provenance), 0.0, 0.0, first, last)
            i, slope, covered = bisect_right(points, first), 0.0, False
            if first == last:
                base, covered = at(first)
            elif i == 0:
                base, _ = at(points[0])
            else:
                left = points[i - 1]
                right = points[i] if i < len(points) else 2 * left + 1
                base, _ = at(left)
                slope = (at(right)[0] - base) / (right - left)
                base -= slope * left
                covered = at((left + right) / 2)[1]
            provenance = self._provenance if covered else "extrapolated"
            return Line(self.lines, (self._name, provenance), base, slope, first, last)

        return Pieces(starts, make)

    def column(self, axis: str, sizes: Array) -> tuple[Array, str | list[str]]:
        """:meth:`price` elementwise over a table's only axis, bit for bit the same; the provenance of all or of each."""
        if self._sizes != [axis]:
            found = [self.price({axis: size}) for size in sizes.tolist()]
            return np.array([time_ns for time_ns, _ in found]), [provenance for _, provenance in found]
        if axis in _DIVIDED:
            sizes = sizes / self._parts
        time_ns, covered = self._grid.column(sizes)
        time_ns = quantise_array(time_ns * self._calls)
        if self._least[0] > 0:
            nothing = sizes <= 0
            time_ns, covered = np.where(nothing, 0.0, time_ns), covered | nothing
        return time_ns, by_row(self._provenance, covered)


REMEMBERED = 1 << 16  # prices; long traces rarely repeat a prompt
_DIVIDED = ("num_bytes", "rows", "flops")  # sizes of the whole model that the GPUs of a replica share


def _model_sizes(setting: Setting) -> dict[str, int]:
    """What the model has on each axis that tables of one GPU and layer may have."""
    model, parts = setting.model, setting.tensor_parallel
    return {
        "heads": setting.heads,
        "kv_heads": setting.kv_heads,
        "head_dim": model.head_dim,
        "hidden": model.hidden_size,
        "inter": max(1, model.intermediate_size // parts),
        "vocab": model.vocab_size,
    }


def _variant(name: str, table: Table, chosen: list[str]) -> Table:
    """The rows with ``chosen`` in their text columns.

    Raises:
        CalibrationError: a value that no column has, or several variants are left.
    """
    for axis, values in table.columns.items():
        if values.dtype.kind != "U" or axis == "backend":
            continue
        known = table.values(axis)
        picked = [value for value in chosen if value in known]
        if len(picked) == 1:
            table = table.select(**{axis: picked[0]})
        elif len(known) > 1:
            raise CalibrationError(
                f"kernel {name}: table {table.name} has several {axis}; name one as {table.name}[{known[0]}]; "
                f"known: {', '.join(known)}"
            )
    return table


def _size(name: str, args: Mapping[str, float]) -> tuple[float, float]:
    """(bytes moved, FLOPs).

    Raises:
        CalibrationError: the arguments name neither.
    """
    flops = args.get("flops", 0.0)
    if "num_bytes" in args:
        return args["num_bytes"] * (2 if name == COPY else 1), flops
    if "rows" in args and "row_bytes" in args:
        return args["rows"] * args["row_bytes"], flops
    if "flops" in args:
        return 0.0, flops
    raise CalibrationError(
        f"kernel {name}: the profile has no table for it, and without num_bytes, rows and row_bytes, or "
        f"flops there is nothing to price it by; found {', '.join(args) or 'no sizes'}"
    )

"""Kernels without a price function of their own: their table in the profile, else the roofline.

Sizes are of the whole model; every GPU does its share. What the kernel must move is ``num_bytes``, or
``rows`` * ``row_bytes``; what it computes is ``flops`` (each optional). A roofline price is *extrapolated*:
nobody ran it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log

import numpy as np

from kvsim.cost.grid import Grid
from kvsim.cost.lattice import SCALE, quantise, quantise_array
from kvsim.cost.pricer import Array, Pricer
from kvsim.cost.profile import Table
from kvsim.cost.setting import Setting, by_row, table_dtype, worst
from kvsim.cost.work import Column, Ramp, listed
from kvsim.errors import CalibrationError
from kvsim.model.spec import DTYPE_BYTES

# Host link where the scenario names none: PCIe gen5 x16, 63 GB/s raw, pinned copies reach about 50.
HOST_LINK_BYTES_PER_S = 50e9
# Lane cpu: a socket with 8 channels of DDR5-4800 (307 GB/s), two thirds of it sustained; AVX-512 in bfloat16.
CPU_BYTES_PER_S = 200e9
CPU_FLOPS_PER_S = 4e12
LATTICE_PER_S = 1e9 * SCALE  # lattice points; SCALE is a power of two, so times in them round as nanoseconds do


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
        self._rate = self._gpu.hbm_bytes_per_s

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        if lane == "gpu" and len(args) == 1 and "num_bytes" in args:
            moved = args["num_bytes"]
            if moved <= 0:
                return 0.0, "extrapolated"
            return floor(moved / self._parts / self._rate * LATTICE_PER_S + 0.5) / SCALE, "extrapolated"
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

    def rows(
        self, args: Mapping[str, Column], steps: int, lane: str = "gpu", share: float = 1.0
    ) -> tuple[float | list[float], str | list[str]]:
        if len(args) > 1 or lane == "cpu" or "num_bytes" not in args:
            return super().rows(args, steps, lane, share)
        moved, parts, sizes = args["num_bytes"], self._parts, None
        if type(moved) is Ramp:
            start, step = moved
            if start > 0 < step:
                sizes, positive = range(start, start + step * steps, step), True
        elif type(moved) is int or type(moved) is float:
            return self.price(args, lane, share)  # type: ignore[arg-type]
        if sizes is None:
            sizes = listed(moved, steps)
            positive = min(sizes) > 0
        if not positive:
            return [self.price({"num_bytes": size}, lane, share)[0] for size in sizes], "extrapolated"
        if lane == "gpu":
            rate, in_a_second = self._rate, LATTICE_PER_S
            if parts == 1:
                return [(size / rate * in_a_second + 0.5) // 1.0 / SCALE for size in sizes], "extrapolated"
            return [
                (size / parts / rate * in_a_second + 0.5) // 1.0 / SCALE for size in sizes
            ], "extrapolated"
        rate, latency_ns = (self._read if lane == "h2d" else self._write) * share, self._operation_ns
        return [
            ((latency_ns + 1e9 * size / parts / rate) * SCALE + 0.5) // 1.0 / SCALE for size in sizes
        ], "extrapolated"

    def column(
        self, args: Mapping[str, Column], steps: int, lane: str = "gpu", share: float = 1.0
    ) -> tuple[Array, str | list[str]]:
        rows = {
            name: value.array(steps) if isinstance(value, Ramp) else value for name, value in args.items()
        }
        moved, flops = _size(self._name, rows)  # type: ignore[arg-type]
        if not isinstance(moved, np.ndarray) and not isinstance(flops, np.ndarray):
            return np.full(steps, self.price(args, lane, share)[0]), "extrapolated"  # type: ignore[arg-type]
        if lane == "cpu":
            return quantise_array(
                1e9 * np.maximum(moved / CPU_BYTES_PER_S, flops / CPU_FLOPS_PER_S)
            ), "extrapolated"
        if lane in ("h2d", "d2h"):
            rate = self._read if lane == "h2d" else self._write
            time_ns = self._operation_ns + 1e9 * moved / self._parts / (rate * share)
            copies = np.logical_or(np.greater(moved, 0), np.greater(flops, 0))
            return quantise_array(np.where(copies, time_ns, 0.0)), "extrapolated"
        return quantise_array(self._gpu.times_ns(flops / self._parts, moved / self._parts)), "extrapolated"


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
        self._calls = setting.model.num_layers if shape else 1
        self._parts = 1 if shape else setting.tensor_parallel
        keys = zip(*(table.columns[axis].tolist() for axis in self._sizes), strict=True)
        points = dict(zip(keys, table.latency_ns.tolist(), strict=True))
        launch_ns = min(
            points.values()
        )  # a launch costs what it costs; what is above it grows with the shape
        self._grid = Grid({key: launch_ns + (time_ns - launch_ns) * scale for key, time_ns in points.items()})
        self._least = [min(table.columns[axis].tolist()) for axis in self._sizes]

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        sizes = []
        for axis in self._sizes:
            if axis not in args:
                found = ", ".join(args)
                raise CalibrationError(f"kernel {self._name}: size '{axis}' is missing; found {found}")
            sizes.append(args[axis] / self._parts if axis in _DIVIDED else args[axis])
        if any(size <= 0 < least for size, least in zip(sizes, self._least, strict=True)):
            return 0.0, self._provenance
        time_ns, covered = self._grid.at(sizes)
        provenance = self._provenance if covered else "extrapolated"
        return quantise(time_ns * self._calls / share), provenance

    def column(
        self, args: Mapping[str, Column], steps: int, lane: str = "gpu", share: float = 1.0
    ) -> tuple[Array, str | list[str]]:
        sizes = args.get(self._sizes[0]) if len(self._sizes) == 1 and self._grid.num_axes == 1 else None
        if isinstance(sizes, Ramp):
            sizes = sizes.array(steps)
        if not isinstance(sizes, np.ndarray):
            return super().column(args, steps, lane, share)
        if self._sizes[0] in _DIVIDED:
            sizes = sizes / self._parts
        time_ns, covered = self._grid.column(sizes)
        time_ns = quantise_array(time_ns * self._calls / share)
        if self._least[0] > 0:
            nothing = sizes <= 0
            time_ns, covered = np.where(nothing, 0.0, time_ns), covered | nothing
        return time_ns, by_row(self._provenance, covered)


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
    for column, values in table.columns.items():
        if values.dtype.kind != "U" or column == "backend":
            continue
        known = table.values(column)
        picked = [value for value in chosen if value in known]
        if len(picked) == 1:
            table = table.select(**{column: picked[0]})
        elif len(known) > 1:
            raise CalibrationError(
                f"kernel {name}: table {table.name} has several {column}; name one as {table.name}[{known[0]}]; "
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
        return args["num_bytes"], flops
    if "rows" in args and "row_bytes" in args:
        return args["rows"] * args["row_bytes"], flops
    if "flops" in args:
        return 0.0, flops
    raise CalibrationError(
        f"kernel {name}: the profile has no table for it, and without num_bytes, rows and row_bytes, or "
        f"flops there is nothing to price it by; found {', '.join(args) or 'no sizes'}"
    )

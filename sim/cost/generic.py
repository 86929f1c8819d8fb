"""Kernels without a price function of their own: a one-axis table of the profile, else the roofline.

Sizes are of the whole model; every GPU does its share. What the kernel must move is ``num_bytes``, or
``rows`` * ``row_bytes``; what it computes is ``flops`` (each optional). A roofline price is *extrapolated*:
nobody ran it.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvsim.cost.curve import Curve
from kvsim.cost.lattice import quantise
from kvsim.cost.pricer import Pricer
from kvsim.cost.setting import Setting
from kvsim.errors import CalibrationError

# Host link where the scenario names none: PCIe gen5 x16, 63 GB/s raw, pinned copies reach about 50.
HOST_LINK_BYTES_PER_S = 50e9
# Lane cpu: a socket with 8 channels of DDR5-4800 (307 GB/s), two thirds of it sustained; AVX-512 in bfloat16.
CPU_BYTES_PER_S = 200e9
CPU_FLOPS_PER_S = 4e12


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


class TablePricer(Pricer):
    """A table of the profile with one axis: straight lines between its points."""

    def __init__(self, name: str, setting: Setting) -> None:
        table = setting.profile.table(name)
        if len(table.axes) != 1:
            raise CalibrationError(
                f"profile {setting.profile.name}: table {name} has axes {', '.join(table.axes)}; "
                "a kernel with more than one axis needs a price function (register_kernel)"
            )
        self._name = name
        self._axis = table.axes[0]
        self._parts = setting.tensor_parallel
        points = sorted(zip(table.columns[self._axis].tolist(), table.latency_ns.tolist(), strict=True))
        self._curve = Curve([x for x, _ in points], [y for _, y in points])
        self._provenance = table.provenance

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        if self._axis not in args:
            raise CalibrationError(
                f"kernel {self._name}: size '{self._axis}' is missing; found {', '.join(args)}"
            )
        size = args[self._axis] / self._parts
        if size <= 0:
            return 0.0, self._provenance
        known = self._curve.covers(size)
        return quantise(self._curve.at(size) / share), self._provenance if known else "extrapolated"


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

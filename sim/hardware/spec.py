"""Hardware as plain data; the presets with their sources are YAML files beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

CopyTime = Callable[[int, int], tuple[int, str]]
"""Nanoseconds of a copy of so many bytes in so many contiguous extents, and where that price comes from."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A channel for bulk transfers: ``operation_ns`` for each contiguous extent plus bytes at the bandwidth.

    Two directions that do not disturb each other (full duplex).
    """

    name: str
    read_bytes_per_s: float  # towards the GPU
    write_bytes_per_s: float  # away from the GPU
    operation_ns: int  # per contiguous extent
    latency_ns: int = 0  # once per transfer, before its first byte: a disk's access time, a network's hops
    behind: str = ""  # the tier (or hbm) that it joins its own tier to; empty = the one before it
    replicas: int = 1  # that share it; 0 = all
    decode_bytes_per_s: float = (
        0.0  # stored bytes of its tier that a replica decodes on their way to HBM; 0 = at once
    )
    times: tuple[CopyTime, CopyTime] | None = (
        None  # of reads and writes as measured, in place of the rates above
    )


@dataclass(frozen=True, slots=True)
class TierSpec:
    """A place for KV outside HBM: its capacity and what joins a replica to it (all its links together)."""

    name: str  # ddr, disk, ...
    capacity_bytes: int
    link: LinkSpec
    usd_per_gb_month: float | None = None
    shared: bool = False  # one for all replicas, else one each


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One GPU. FLOP/s are dense (no sparsity), bytes/s as the datasheet has them."""

    name: str
    hbm_bytes: int  # what the driver reports, not the marketing figure
    hbm_bytes_per_s: float
    flops_per_s: Mapping[str, float]  # by dtype: bfloat16, float16, fp8, int8
    nvlink_bytes_per_s: float  # one direction, 0 if none
    usd_per_hour: float
    host_link: str  # name of the LinkSpec preset between host memory and this GPU
    device: str = ""  # as the driver calls it
    profile: str = ""  # the shipped profile that prices it; empty: the newest of its name
    sources: Mapping[str, str] = field(default_factory=dict)

"""What the suite runs on: facts for the profile's header, and the roofline that guards its timings."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kvsim.cost.roofline import Roofline
from kvsim.errors import CalibrationError
from kvsim.hardware.load import gpu_presets, load_gpu
from kvsim.hardware.spec import GpuSpec

# Dense bfloat16 FLOPs of one SM in one cycle by compute capability: the datasheet's FLOP/s over SMs and boost
# clock (A100 312e12 / 108 / 1.41e9, L40S 362e12 / 142 / 2.52e9, H100 989e12 / 132 / 1.83e9, B200 2250e12 / 148 / 1.86e9).
_FLOPS_PER_CYCLE = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (12, 0): 1024}


@dataclass(frozen=True)
class Device:
    """One GPU, or the CPU."""

    kind: str  # cuda or cpu, as torch calls it
    name: str  # a GPU preset's, else the driver's in small letters and hyphens
    device: str  # as the driver calls it
    l2_bytes: int
    memory_bytes: int
    num_gpus: int
    fp8: bool  # computes in it: compute capability 8.9 and later, and the plain code on a CPU
    roofline: Roofline | None  # None: nothing to guard by
    gpu_spec: dict[str, Any] = field(default_factory=dict)  # for the header: what a scenario needs of a GPU
    software: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_device(kind: str) -> Device:
    """The device that ``--device`` names: cuda or cpu.

    Raises:
        CalibrationError: no torch, no such device, or no GPU in reach.
    """
    try:
        import torch
    except ImportError:
        raise CalibrationError(
            "calibrate: torch is not installed; pip install 'kvsim[gpu]' (and triton, for kernels that torch lacks)"
        ) from None
    software = {"torch": str(torch.__version__), "python": platform.python_version()}
    for package in ("triton", "vllm"):
        if found := _version(package):
            software[package] = found
    if kind == "cpu":
        return Device(
            "cpu",
            "cpu",
            platform.processor() or platform.machine(),
            0,
            0,
            0,
            True,
            None,
            {"hbm_bytes_per_s": 1e11, "flops_per_s": {"bfloat16": 1e12}},
            software,
            ("run on a CPU: checks the kernels, says nothing about a GPU",),
        )
    if kind != "cuda":
        raise CalibrationError(f"calibrate: --device {kind}: cuda or cpu is expected")
    if not torch.cuda.is_available():
        raise CalibrationError(
            "calibrate: torch sees no NVIDIA GPU; run it on a GPU machine, or --device cpu to try the kernels small"
        )
    if torch.version.hip:
        raise CalibrationError("calibrate: this torch is built for AMD GPUs; only NVIDIA's can be calibrated")
    about = torch.cuda.get_device_properties(0)
    software["cuda"] = str(torch.version.cuda)
    software["driver"] = _smi("driver_version") or "unknown"
    spec = _preset(about.name)
    notes: tuple[str, ...] = ()
    if spec is None:
        spec = _from_properties(about)
        notes = (
            f"no preset for {about.name}: bandwidth and FLOP/s are derived from its clocks and widths, "
            "not from a datasheet",
        )
    header = {
        "hbm_bytes": spec.hbm_bytes,
        "hbm_bytes_per_s": spec.hbm_bytes_per_s,
        "flops_per_s": dict(spec.flops_per_s),
        "nvlink_bytes_per_s": spec.nvlink_bytes_per_s,
        "host_link": spec.host_link,
    }
    return Device(
        "cuda",
        spec.name,
        about.name,
        about.L2_cache_size,
        about.total_memory,
        torch.cuda.device_count(),
        (about.major, about.minor) >= (8, 9),
        Roofline(spec.hbm_bytes_per_s, spec.flops_per_s),
        header,
        software,
        notes,
    )


def clocks() -> dict[str, str]:
    """Clocks, power and temperature as the driver reports them now; {} where it does not."""
    keys = (
        "clocks.sm",
        "clocks.mem",
        "clocks.max.sm",
        "clocks.max.mem",
        "power.draw",
        "power.limit",
        "temperature.gpu",
    )
    values = (_smi(",".join(keys)) or "").split(", ")
    return dict(zip(keys, values, strict=True)) if len(values) == len(keys) else {}


def _preset(device: str) -> GpuSpec | None:
    for name in gpu_presets():
        spec = load_gpu(name)
        if spec.device == device:
            return spec
    return None


def _from_properties(about: Any) -> GpuSpec:
    """A GPU without a preset, from what the driver tells: DDR memory moves twice a clock."""
    capability = (about.major, about.minor)
    flops = _FLOPS_PER_CYCLE.get(capability) or _FLOPS_PER_CYCLE.get((about.major, 0))
    memory_khz, width_bits = getattr(about, "memory_clock_rate", 0), getattr(about, "memory_bus_width", 0)
    clock_khz = getattr(about, "clock_rate", 0)
    if not flops or not memory_khz or not width_bits or not clock_khz:
        raise CalibrationError(
            f"calibrate: {about.name} (compute capability {about.major}.{about.minor}) has no preset and the driver does "
            "not tell its clocks; add it to sim/hardware/presets/gpus.yaml with its datasheet's figures"
        )
    peak = float(flops) * about.multi_processor_count * clock_khz * 1e3
    peaks = {"bfloat16": peak, "float16": peak}
    if capability >= (8, 9):
        peaks["fp8"] = 2 * peak
    return GpuSpec(
        name="-".join(about.name.lower().split()),
        hbm_bytes=about.total_memory,
        hbm_bytes_per_s=2.0 * memory_khz * 1e3 * width_bits / 8,
        flops_per_s=peaks,
        nvlink_bytes_per_s=0.0,
        usd_per_hour=0.0,
        host_link="pcie-gen5-x16" if about.major >= 9 else "pcie-gen4-x16",
        device=about.name,
    )


def _version(package: str) -> str | None:
    """Of an installed package, by its metadata: importing vllm takes seconds."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _smi(keys: str) -> str | None:
    """What nvidia-smi says of the first GPU."""
    command = ["nvidia-smi", f"--query-gpu={keys}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

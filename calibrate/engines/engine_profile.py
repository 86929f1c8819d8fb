"""Writes a fit as an engine profile: the YAML file that ``engine.profile`` of a scenario names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from kvsim.calibrate.engines.fit import Fit
from kvsim.engine.spec import EngineSpec


def profile_text(fit: Fit, base: EngineSpec, name: str, gpu: str, model: str, source: Sequence[str]) -> str:
    """The profile as YAML, with where it comes from and how far its model is off at its head."""
    head = [f"# Fitted by: kvsim calibrate engine {' '.join('--from ' + part for part in source)}"]
    head += [f"# {line}" for line in report_lines(fit)]
    host = {
        "launch": _time(base.launch_ns),
        "cpu": _time(base.cpu_ns),
        "cpu_request": _time(fit.host["cpu_request"]),
        "cpu_sequence": _time(fit.host["cpu_sequence"]),
        "cached_token": _time(fit.host["cached_token"]),
        "intake_token": _time(fit.host["intake_token"]),
        "graph_tokens": base.graph_tokens,
        "lazy_rows": list(base.lazy_rows),
        "piecewise_cpu": _time(fit.host["piecewise_cpu"]),
        "eager_cpu": _time(fit.host["eager_cpu"]),
        "tail": _time(fit.host["tail"]),
        "load_decisions": base.load_decisions,
        "inputs_after_loads": base.inputs_after_loads,
        "front_in": _time(fit.host["front_in"]),
        "front_out": _time(fit.host["front_out"]),
    }
    data = {
        "name": name,
        "gpu": gpu,
        "model": model,
        "kv_dtype": fit.kv_dtype,
        "async_scheduling": base.async_scheduling,
        "host": host,
        "device": {
            **_device(fit.device),
            "graph_sizes": fit.device["graph_sizes"],
        },
    }
    if fit.by_kv_dtype:
        data["device_by_kv_dtype"] = {dtype: _device(terms) for dtype, terms in fit.by_kv_dtype.items()}
    if fit.copies is not None:
        times = asdict(fit.copies)
        data["copies"] = {"link": times.pop("link"), **{key[:-3]: _time(ns) for key, ns in times.items()}}
    return "\n".join(head) + "\n" + yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110)


def _device(terms: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "step": _time(terms["step"]),
        **({"stall": _time(terms["stall"])} if "stall" in terms else {}),
        "graphs": [[size, round(factor, 3)] for size, factor in terms["graphs"]],
        "kv_read": f"{terms['kv_read_bytes_per_s'] / 1e9:.0f} GB/s",
        "prefill_factor": round(terms["prefill_factor"], 3),
        "mixed_attention_factor": round(terms["mixed_attention_factor"], 3),
    }
    if power := terms.get("power_limit"):
        found["power_limit"] = {
            "factors": [[tokens, round(factor, 3)] for tokens, factor in power.factors],
            "credit": _time(power.credit_ns),
            "recovery": _time(power.recovery_ns),
            "sustained": round(power.sustained, 3),
            "sustained_after": _time(power.sustained_after_ns),
        }
    if terms["uneven"]:
        found["uneven"] = [[pairs, round(factor, 3)] for pairs, factor in terms["uneven"]]
    found["shared_bytes"] = [[size, round(price, 3)] for size, price in terms["shared"]]
    return found


def report_lines(fit: Fit) -> list[str]:
    """Residuals and what the runs cannot tell, a line each."""
    lines = [
        f"{part}: {points} points, median |error| {median:.1%}, mean {bias:+.1%}"
        for part, points, median, bias in fit.residuals
    ]
    return lines + fit.notes


def write_profile(text: str, path: Path) -> None:
    """Write the file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _time(ns: float) -> str:
    return f"{round(ns):d} ns" if ns < 10_000 else f"{round(ns / 1000):d} us"

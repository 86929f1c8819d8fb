"""Engine profiles: host overhead, graphs, latencies and scheduling defaults of one engine version, as YAML."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from kvsim.cost.terms import EngineTerms
from kvsim.engine.clocks import PowerLimit
from kvsim.engine.queue import make_queue
from kvsim.engine.spec import Copies, EngineSpec
from kvsim.errors import ScenarioError, did_you_mean
from kvsim.registry import PolicySpec
from kvsim.scenario.units import UnitError, parse_rate, parse_time
from kvsim.yaml_text import parse_yaml

HOST = (
    "launch",
    "cpu",
    "cpu_request",
    "cpu_sequence",
    "cached_token",
    "intake_token",
    "piecewise_cpu",
    "eager_cpu",
    "tail",
    "front_in",
    "front_out",
)
COPIES = ("load_operation", "load_latency", "store_operation", "store_latency")
DEVICE_TIMES = ("step",)
DEVICE_FACTORS = ("prefill_factor", "mixed_attention_factor")


def engine_profiles() -> list[str]:
    """Names of the profiles that come with kvsim."""
    return sorted(
        entry.name[:-5]
        for entry in (files("kvsim.engine") / "profiles").iterdir()
        if entry.name.endswith(".yaml")
    )


def load_engine(
    name: str,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    async_scheduling: bool | None = None,
    batching: str | None = None,
    gpu: str = "",
    model: str = "",
    kv_dtype: str = "",
    queue: PolicySpec = "fcfs",
    swaps_overlap: bool = False,
) -> tuple[EngineSpec, EngineTerms]:
    """The engine profile ``name`` (or a path ending in .yaml) with a scenario's limits.

    Device terms count as measured for the model, types of KV and GPU that the profile was fitted on, for others as
    derived. Decode attention of another model or type of KV, and all of a decode step on another GPU, are priced by the
    kernel table.

    Raises:
        ScenarioError: no such profile, or a key or value in it that cannot be; no such order of the queue.
    """
    if max_num_batched_tokens < max_num_seqs:
        raise ScenarioError(
            f"engine.max_num_batched_tokens: {max_num_batched_tokens} is below max_num_seqs {max_num_seqs}; "
            "every decoding request needs one token of it"
        )
    try:
        make_queue(queue)
    except ScenarioError as error:
        raise ScenarioError(f"engine.queue: {error}") from None
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ScenarioError(f"engine.profile: no file {name}")
        data = parse_yaml(path.read_text())
    else:
        if name not in engine_profiles():
            raise ScenarioError(
                f"engine.profile: no engine profile is called '{name}'{did_you_mean(name, engine_profiles())}"
            )
        data = parse_yaml((files("kvsim.engine") / "profiles" / f"{name}.yaml").read_text())
    where = f"engine profile {name}"
    take = partial(_take, where=where)
    host, device = dict(take(data, "host", {})), dict(take(data, "device", {}))
    by_kv_dtype = take(data, "device_by_kv_dtype", {})
    device.update(by_kv_dtype.get(kv_dtype, {}))
    at_home, own_model = take(data, "gpu", "") in ("", gpu), take(data, "model", "") in ("", model)
    own = kv_dtype in ("", take(data, "kv_dtype", kv_dtype), *by_kv_dtype) and own_model
    times = {f"{key}_ns": _time(take(host, key, "0 s"), f"{where}: host.{key}") for key in HOST}
    copies = dict(take(data, "copies", {}))
    copy_ns = {
        f"{key}_ns": _time(take(copies, key, "0 s"), f"{where}: copies.{key}") for key in COPIES if copies
    }
    spec = EngineSpec(
        name=take(data, "name", name),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        async_scheduling=take(data, "async_scheduling", False)
        if async_scheduling is None
        else async_scheduling,
        static_batch=_is_static(take(data, "batching", "continuous"), where, batching),
        graph_tokens=int(take(host, "graph_tokens", max_num_batched_tokens)),
        power_limit=_power_limit(take(device, "power_limit", None), f"{where}: device.power_limit"),
        load_decisions=int(take(host, "load_decisions", 0)),
        inputs_after_loads=bool(take(host, "inputs_after_loads", False)),
        copies=Copies(str(take(copies, "link", "")), **copy_ns) if copies else None,
        queue=queue,
        swaps_overlap=swaps_overlap,
        **times,
    )
    data.pop("async_scheduling", None)
    rate, graphs = take(device, "kv_read", None), take(device, "graphs", [])
    terms = EngineTerms(
        **{
            f"{key}_ns": float(_time(take(device, key, "0 s"), f"{where}: device.{key}"))
            for key in DEVICE_TIMES
        },
        **{key: float(take(device, key, 1.0)) for key in DEVICE_FACTORS},
        graph_factors=tuple((int(tokens), float(factor)) for tokens, factor in graphs) if at_home else (),
        uneven_factors=tuple((int(pairs), float(factor)) for pairs, factor in take(device, "uneven", [])),
        shared_factors=tuple((int(pairs), float(factor)) for pairs, factor in take(device, "shared", [])),
        graph_sizes=tuple(map(int, take(device, "graph_sizes", []))),
        kv_read_bytes_per_s=float(_rate(rate, f"{where}: device.kv_read"))
        if at_home and own and rate
        else 0.0,
        provenance="measured" if at_home and own else "derived",
    )
    for part, left in (("", data), ("host.", host), ("device.", device), ("copies.", copies)):
        if left:
            key = next(iter(left))
            raise ScenarioError(f"{where}: {part}{key}: unknown key")
    return spec, terms


def _power_limit(data: Any, where: str) -> PowerLimit | None:
    if data is None:
        return None
    data = dict(data) if isinstance(data, dict) else data
    credit, recovery, after = (
        _time(_take(data, key, "0 s", where), f"{where}.{key}")
        for key in ("credit", "recovery", "sustained_after")
    )
    sustained = float(_take(data, "sustained", 1.0, where))
    factors = tuple((int(tokens), float(factor)) for tokens, factor in _take(data, "factors", [], where))
    if data:
        raise ScenarioError(f"{where}.{next(iter(data))}: unknown key")
    if recovery <= 0 or not factors or min(sustained, *(factor for _, factor in factors)) < 1:
        raise ScenarioError(
            f"{where}: expected recovery > 0 s and factors [tokens, factor >= 1], found {recovery} ns and {factors}"
        )
    return PowerLimit(factors, credit, recovery, sustained, after)


def _is_static(own: Any, where: str, wanted: str | None) -> bool:
    """What the profile says, unless the scenario wants something else."""
    if own not in ("continuous", "static"):
        raise ScenarioError(f"{where}: batching: expected continuous or static, found {own!r}")
    return (wanted or own) == "static"


def _take(data: Any, key: str, default: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ScenarioError(f"{where}: expected keys and values, found {type(data).__name__}")
    return data.pop(key, default)


def _rate(value: Any, where: str) -> int:
    try:
        return parse_rate(value)
    except UnitError as error:
        raise ScenarioError(f"{where}: {error}") from error


def _time(value: Any, where: str) -> int:
    try:
        return parse_time(value)
    except UnitError as error:
        raise ScenarioError(f"{where}: {error}") from error

"""Engine profiles: host overhead, graphs, latencies and scheduling defaults of one engine version, as YAML."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from kvsim.cost.terms import EngineTerms
from kvsim.engine.clocks import PowerLimit
from kvsim.engine.queue import make_queue
from kvsim.engine.spec import Copies, EngineSpec
from kvsim.errors import ScenarioError, did_you_mean
from kvsim.model.load import load_model, model_presets
from kvsim.model.spec import ModelSpec
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
DEVICE_TIMES = ("step", "stall")
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
    served_at_once: int | None = None,
) -> tuple[EngineSpec, EngineTerms]:
    """The engine profile ``name`` (or a path ending in .yaml) with a scenario's limits.

    Device terms count as measured for the model, types of KV and GPU that the profile was fitted on, for others as
    derived. Decode attention of another model or type of KV, and all of a decode step on another GPU, are priced by the
    kernel table; the rest of a step of another model by :attr:`EngineTerms.fitted` if the
    profile's is a preset, else by its bytes of weights. ``served_at_once``: most requests that
    an engine, fresh but for these, has served at once; None = all that will ever be.

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
        try:
            data = parse_yaml(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise ScenarioError(f"engine.profile: {name}: not YAML: {' '.join(str(error).split())}") from None
    else:
        if name not in engine_profiles():
            raise ScenarioError(
                f"engine.profile: no engine profile is called '{name}'{did_you_mean(name, engine_profiles())}"
            )
        data = parse_yaml((files("kvsim.engine") / "profiles" / f"{name}.yaml").read_text())
    where = f"engine profile {name}"
    take = partial(_take, where=where)
    host, device, copies, by_kv_dtype = (
        _part(data, key, where) for key in ("host", "device", "copies", "device_by_kv_dtype")
    )
    own_terms = kv_dtype in by_kv_dtype
    device.update(_part(by_kv_dtype, kv_dtype, f"{where}: device_by_kv_dtype"))
    fitted, fitted_kv_dtype = take(data, "model", ""), take(data, "kv_dtype", "")
    at_home, own_model = take(data, "gpu", "") in ("", gpu), fitted in ("", model)
    own = (fitted_kv_dtype in ("", kv_dtype) or not kv_dtype or own_terms) and own_model
    times = {f"{key}_ns": _time(take(host, key, "0 s"), f"{where}: host.{key}") for key in HOST}
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
        graph_tokens=_whole(
            take(host, "graph_tokens", max_num_batched_tokens), f"{where}: host.graph_tokens"
        ),
        lazy_rows=_rows(take(host, "lazy_rows", []), f"{where}: host.lazy_rows", at_home, served_at_once),
        power_limit=_power_limit(take(device, "power_limit", None), f"{where}: device.power_limit"),
        load_decisions=_whole(take(host, "load_decisions", 0), f"{where}: host.load_decisions"),
        inputs_after_loads=bool(take(host, "inputs_after_loads", False)),
        copies=Copies(str(take(copies, "link", "")), **copy_ns) if copies else None,
        queue=queue,
        swaps_overlap=swaps_overlap,
        **times,
    )
    data.pop("async_scheduling", None)
    rate = take(device, "kv_read", None)
    points = {
        key: _points(take(device, key, []), f"{where}: device.{key}")
        for key in ("graphs", "uneven", "shared_bytes")
    }
    if any(price < 0 for _, price in points["shared_bytes"]):
        found = list(map(list, points["shared_bytes"]))
        raise ScenarioError(f"{where}: device.shared_bytes: expected [bytes, price >= 0], found {found}")
    sizes = f"{where}: device.graph_sizes"
    terms = EngineTerms(
        **{
            f"{key}_ns": float(_time(take(device, key, "0 s"), f"{where}: device.{key}"))
            for key in DEVICE_TIMES
        },
        **{key: _number(take(device, key, 1.0), f"{where}: device.{key}") for key in DEVICE_FACTORS},
        graph_factors=points["graphs"] if at_home else (),
        uneven_factors=points["uneven"],
        shared_factors=points["shared_bytes"],
        graph_sizes=tuple([_whole(size, sizes) for size in _listed(take(device, "graph_sizes", []), sizes)]),
        kv_read_bytes_per_s=float(_rate(rate, f"{where}: device.kv_read")) if at_home and rate else 0.0,
        provenance="measured",
        fitted=None,
    )
    if not (at_home and own):
        preset = _preset(fitted, kv_dtype if own_terms else fitted_kv_dtype)
        home = (preset, terms) if preset else None
        terms = replace(terms, kv_read_bytes_per_s=0.0, provenance="derived", fitted=home)
    for part, left in (("", data), ("host.", host), ("device.", device), ("copies.", copies)):
        if left:
            key = next(iter(left))
            raise ScenarioError(f"{where}: {part}{key}: unknown key")
    return spec, terms


def _preset(name: str, kv_dtype: str) -> ModelSpec | None:
    """The model that a profile was fitted on; None = it is no preset."""
    if name not in model_presets():
        return None
    model = load_model(name)
    return replace(model, kv_dtype=kv_dtype) if kv_dtype else model


def _rows(value: Any, where: str, at_home: bool, served_at_once: int | None) -> tuple[int, ...]:
    """Numbers of requests whose kernels are not loaded yet."""
    rows = [_whole(rows, where) for rows in _listed(value, where)]
    if rows != sorted(set(rows)):
        raise ScenarioError(f"{where}: the numbers must rise, found {rows}")
    return () if served_at_once is None or not at_home else tuple(n for n in rows if n > served_at_once)


def _power_limit(data: Any, where: str) -> PowerLimit | None:
    if data is None:
        return None
    data = dict(data) if isinstance(data, dict) else data
    credit, recovery, after = (
        _time(_take(data, key, "0 s", where), f"{where}.{key}")
        for key in ("credit", "recovery", "sustained_after")
    )
    sustained = _number(_take(data, "sustained", 1.0, where), f"{where}.sustained")
    factors = _points(_take(data, "factors", [], where), f"{where}.factors")
    if data:
        raise ScenarioError(f"{where}.{next(iter(data))}: unknown key")
    if recovery <= 0 or not factors or min(sustained, *(factor for _, factor in factors)) < 1:
        raise ScenarioError(
            f"{where}: expected recovery > 0 s, factors [tokens, factor >= 1] and sustained >= 1, "
            f"found {recovery} ns, {list(map(list, factors))} and {sustained:g}"
        )
    return PowerLimit(factors, credit, recovery, sustained, after)


def _part(data: Any, key: str, where: str) -> dict[str, Any]:
    """Change. The keys and values that ``data`` has at ``key``, taken from it; {} = there is no such key."""
    found = _take(data, key, {}, where)
    if not isinstance(found, dict):
        raise ScenarioError(f"{where}: {key}: expected keys and values, found {found!r}")
    return dict(found)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ScenarioError(f"{where}: expected a number, found {value!r}")
    return float(value)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ScenarioError(f"{where}: expected a whole number, 0 or more, found {value!r}")
    return value


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ScenarioError(f"{where}: expected a list, found {value!r}")
    return value


def _points(value: Any, where: str) -> tuple[tuple[int, float], ...]:
    """[number, factor] pairs, the numbers rising."""
    found = []
    for pair in _listed(value, where):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ScenarioError(f"{where}: expected pairs [number, factor], found {pair!r}")
        found.append((_whole(pair[0], where), _number(pair[1], where)))
        if len(found) > 1 and found[-1][0] <= found[-2][0]:
            raise ScenarioError(f"{where}: numbers have to rise, found {found[-2][0]} before {found[-1][0]}")
    return tuple(found)


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

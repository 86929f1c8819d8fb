"""What a scenario file may say: frozen models, defaults beside the field, unknown keys refused.

Keys with a dimension take text with a unit ("64 GB", "1 s"); keys that name their unit (``requests_per_s``,
``block_tokens``) take numbers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from kvsim.scenario.admission import FrontAdmission
from kvsim.scenario.autoscale import Autoscale
from kvsim.scenario.cache_schema import Cache
from kvsim.scenario.clients import Clients
from kvsim.scenario.part import Part, Positive
from kvsim.scenario.policy import PolicyChoice
from kvsim.scenario.pools import KvTransfer, Pool, problem_of, problem_of_scaling
from kvsim.scenario.preemption import Preemption
from kvsim.scenario.response_cache import ResponseCache
from kvsim.scenario.small_model import SmallModel
from kvsim.scenario.units import Nanoseconds, NanosecondsOrAuto
from kvsim.scenario.workload_schema import Workload


class Cluster(Part):
    replicas: Positive = 1
    """Of one kind; or see ``pools``."""
    gpu: str = "h100-sxm"
    """Preset name, or the path of a profile that ``kvsim calibrate`` wrote: the GPU it ran on, with its timings."""
    tensor_parallel: Positive = 1
    """GPUs that hold a part of every matrix; a replica has tensor x pipeline x data of them."""
    pipeline_parallel: Positive = 1
    """Stages, each with some of the layers."""
    expert_parallel: Positive = 1
    """Groups of GPUs with experts of their own; divides tensor x data, 1 = every expert is cut over all of them."""
    data_parallel: Positive = 1
    """Models with experts: groups of tensor x pipeline GPUs with attention and requests of their own, which share the
    experts. For other models that is the same as replicas."""
    router: PolicyChoice = "round_robin"
    """A name (round_robin, least_outstanding_tokens, prefix_aware, ..., or one that a plug-in registers), or a mapping with
    options, such as {policy: prefix_aware, staleness_s: 1}: docs/routing.md."""
    admission: FrontAdmission = FrontAdmission()
    """What the front end turns away: queues that are full, first tokens that would come too late, tenants over their rate."""
    usd_per_gpu_hour: Annotated[float, Field(ge=0)] | None = None
    """What one GPU-hour costs; null = the list price in the GPU's preset."""
    response_cache: ResponseCache | None = None
    """Answers reused in front of the router: docs/responses.md."""
    small_model: SmallModel | None = None
    """A second pool for what a cheaper model can answer: docs/responses.md."""
    pools: Annotated[tuple[Pool, ...], Field(strict=False)] = ()
    """Replicas of several kinds: docs/pools.md."""
    autoscale: Autoscale | None = None
    """Replicas come and go with the load: docs/autoscaling.md. ``replicas`` is what the run begins with."""
    kv_transfer: KvTransfer | None = None
    """How KV gets from pools that prefill to pools that decode: docs/disaggregation.md."""

    @property
    def gpus_per_replica(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @model_validator(mode="after")
    def _pools_go_together(self) -> Cluster:
        if (problem := problem_of(self.pools, self.replicas, self.kv_transfer)) is not None:
            raise ValueError(problem)
        if self.pools and self.autoscale is not None:
            raise ValueError("autoscale: is given beside pools; give it to those that it is meant for")
        if (problem := problem_of_scaling(self.autoscale, self.replicas)) is not None:
            raise ValueError(problem)
        return self


class Engine(Part):
    profile: str = "vllm-0.24.0"
    """Host overheads, graph sizes and latencies of an engine: vllm-0.24.0, transformers-5.17, ideal, or a file's path."""
    max_num_seqs: Positive = 256
    max_num_batched_tokens: Positive = 8192
    """Token budget of one step."""
    max_model_len: Positive | None = None
    """null = the model's longest context, or what fits the KV memory if that is less."""
    async_scheduling: bool | None = None
    """null = as the engine profile has it."""
    batching: Literal["continuous", "static"] | None = None
    """null = as the engine profile has it. static: up to max_num_seqs requests that wait start together, are padded to the
    longest prompt and the longest answer of them, and have their answers when all are complete; max_num_batched_tokens does not
    bound their prompts. Needs cache.manager contiguous or concatenated."""
    queue: PolicyChoice = "fcfs"
    """Order of admission of each replica: fcfs, priority, vtc (fair per tenant), shortest_prompt, cached_share, or one that a
    plug-in registers; or a mapping with options, such as {policy: vtc, output_weight: 2}: docs/routing.md."""
    preemption: Preemption = Preemption()
    """A name, recompute or swap, or {mode: swap, tier: ddr, overlap: true, keep_copies: true}: docs/preemption.md."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    quantization: Literal["fp8", "int4"] | None = None
    """Of the weights of linear layers. fp8: their activations, too, by tensors; int4: weights alone, with a scale for each 128
    (AWQ, GPTQ). null = as the model's config.json has it."""
    kv_cache_dtype: Literal["bfloat16", "float16", "fp8", "int8"] | None = None
    """null = the model's own."""
    kv_layout: Literal["paged", "contiguous"] = "paged"
    """What attention reads: pages by a block table, or the KV of each sequence in one piece, by what the profile's tables
    flash_prefill and flash_decode say of the two; without them contiguous changes nothing. Decodes that the engine profile prices
    by a rate of its own stay as they are."""


class Timings(Part):
    profile: str | None = None
    """Name or path of a profile of ``cluster.gpu``; null = the default one of the GPU."""
    strict_calibration: bool = False
    """Refuse a price that only extrapolation could give."""


class Statistics(Part):
    after: NanosecondsOrAuto = 0
    """Requests that arrive before this time warm the caches up and are left out of summary.json's statistics. auto: what
    MSER-5 finds in TTFT and end-to-end times (docs/compare.md)."""


class Output(Part):
    timeline_interval: Nanoseconds = 10**9
    """Thins timeline.parquet: at most one row a replica in this much simulated time."""


def beside(base: Path, name: str) -> Path:
    """``name`` as a path: a relative one starts in ``base`` (the scenario file's folder), or, if only that is there (a path
    that was typed after ``--set``), in the current one."""
    found = base / name
    return found if found.exists() or not Path(name).exists() else Path.cwd() / name


def is_card_file(method: str) -> bool:
    """A method that is named by the path of its card."""
    return method.endswith((".yaml", ".yml"))


class Scenario(Part):
    name: str
    """Default: the file's stem. Results go to a folder of this name."""
    description: str = ""
    methods: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Cards of published systems (``kvsim methods list``, or paths of YAML files), whose keys give way to those that the
    scenario states. ``method: NAME`` is short for one."""
    seed: Annotated[int, Field(ge=0)] = 0
    model: str = "llama-3.1-8b"
    """Preset name, or the path of a Hugging Face config.json (relative to the scenario file)."""
    cluster: Cluster = Cluster()
    engine: Engine = Engine()
    timings: Timings = Timings()
    cache: Cache = Cache()
    workload: Workload
    clients: Clients = Clients()
    statistics: Statistics = Statistics()
    output: Output = Output()

    @field_validator("name")
    @classmethod
    def _usable_as_a_folder(cls, name: str) -> str:
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} cannot be the name of a folder; leave out '/' and a leading '.'")
        return name

    _base: Path = PrivateAttr(default_factory=Path.cwd)
    _methods: tuple[dict[str, Any], ...] = PrivateAttr(default=())

    @property
    def method_facts(self) -> tuple[dict[str, Any], ...]:
        """Of each card in :attr:`methods`: name, paper, published quality, keys that the scenario states otherwise."""
        return self._methods

    def path(self, name: str) -> Path:
        """``name`` as a path, see :func:`beside`."""
        return beside(self._base, name)

    def profile_path(self, name: str) -> str:
        """A profile's name as it is; the path of its YAML file as :meth:`path` has it."""
        return str(self.path(name)) if name.endswith((".yaml", ".yml")) else name

    def resolved(self) -> dict[str, Any]:
        """The whole scenario with every default, as YAML would hold it; loads back to the same.

        Paths are absolute, so that the file can lie anywhere on this machine.
        """
        data = self.model_dump(mode="json")
        if "/" in self.model or self.path(self.model).is_file():
            data["model"] = str(self.path(self.model).resolve())
        for part, key in (
            (data["timings"], "profile"),
            (data["engine"], "profile"),
            (data["cluster"], "gpu"),
            *((pool, key) for pool in data["cluster"]["pools"] for key in ("gpu", "timings")),
        ):
            part[key] = part[key] and self.profile_path(part[key])
        if self.cache.warm_start is not None:
            data["cache"]["warm_start"] = str(self.path(self.cache.warm_start).resolve())
        data["methods"] = [
            str(self.path(name).resolve()) if is_card_file(name) else name for name in self.methods
        ]
        for source in data["workload"]["sources"]:
            if source["file"] is not None:
                source["file"] = str(self.path(source["file"]).resolve())
            if isinstance(source["options"].get("trace"), str):
                source["options"]["trace"] = str(self.path(source["options"]["trace"]).resolve())
        return data

    def digest(self) -> str:
        """sha256 of the scenario with every default and paths as written: equal on every machine."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

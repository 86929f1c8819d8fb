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
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from kvsim.scenario.admission import FrontAdmission
from kvsim.scenario.autoscale import Autoscale
from kvsim.scenario.clients import Clients
from kvsim.scenario.codec import Codec
from kvsim.scenario.link import InlineLink, MeasuredLink, link_kind
from kvsim.scenario.part import Part, Positive
from kvsim.scenario.policy import PolicyChoice
from kvsim.scenario.pools import KvTransfer, Pool, problem_of, problem_of_scaling
from kvsim.scenario.reads import Reads
from kvsim.scenario.response_cache import ResponseCache
from kvsim.scenario.small_model import SmallModel
from kvsim.scenario.tokens import Tokens
from kvsim.scenario.units import ByteSize, BytesPerSecond, Nanoseconds, NanosecondsOrAuto
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
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    quantization: Literal["fp8", "int4"] | None = None
    """Of the weights of linear layers. fp8: their activations, too, by tensors; int4: weights alone, with a scale for each 128
    (AWQ, GPTQ). null = as the model's config.json has it."""
    kv_cache_dtype: Literal["bfloat16", "float16", "fp8", "int8"] | None = None
    """null = the model's own."""


class Timings(Part):
    profile: str | None = None
    """Name or path of a profile of ``cluster.gpu``; null = the default one of the GPU."""
    strict_calibration: bool = False
    """Refuse a price that only extrapolation could give."""


class Holds(Part):
    """What of each block a tier holds; the rest stays in HBM."""

    keys: bool = True
    values: bool = True
    layers: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the layers, the last ones; rounded to whole layers."""

    @model_validator(mode="after")
    def _something(self) -> Holds:
        if not (self.keys or self.values):
            raise ValueError("neither keys nor values: such a tier holds nothing; leave it out")
        return self

    def num_layers(self, all_layers: int) -> int:
        return max(1, round(self.layers * all_layers))

    def share(self, all_layers: int) -> float:
        """Of a block's bytes; K and V are alike."""
        return (self.keys + self.values) / 2 * self.num_layers(all_layers) / all_layers


class Tier(Part):
    """A place for KV below HBM; docs/tiers.md has the meaning of every mode and who has it."""

    name: str
    link: (
        Annotated[
            Annotated[str, Tag("preset")]
            | Annotated[InlineLink, Tag("inline")]
            | Annotated[MeasuredLink, Tag("measured")],
            Discriminator(link_kind),
        ]
        | None
    ) = None
    """null = the GPU's link to host memory; or a preset (nvme, ...); or {read, write, operation, latency}; or {table:
    host_copy, memory: pinned} or {table: disk}, as the timing profile has measured copies."""
    behind: str | None = None
    """The tier (or hbm) that the link leads to; null = the tier before it, for a cluster's store the first tier."""
    gpus_per_link: Positive = 1
    """GPUs that share the link: a PCIe switch, a NUMA node's disk."""
    scope: Literal["replica", "cluster"] = "replica"
    """cluster: one store, over one link, that all replicas read and write."""
    capacity: ByteSize
    """Of one replica, or of the cluster's store."""
    holds: Holds = Holds()
    """{keys, values, layers}: part of each block that goes to the tier. HBM for the rest of as many blocks as the tier can
    hold is set aside."""
    load: Literal["before", "layerwise"] = "before"
    """before: a request waits for its load (vLLM's connector); layerwise: its first step overlaps it."""
    write: Literal["through", "back", "on_eviction"] = "through"
    """through: as soon as content is complete in HBM; back: while nothing else is being written to the tier, and at the
    latest on eviction; on_eviction: what the tier above evicts."""
    admission: Literal["all", "second_use", "if_faster"] = "all"
    """What is written: everything, what a second request has used, or what an idle link brings back sooner than it is
    computed."""
    exclusive: bool = False
    """What is loaded leaves the tier (with write: on_eviction)."""
    promote_after: Annotated[int, Field(ge=0)] = 1
    """A run that was loaded so often is kept in the nearest tier on its way to HBM; 0 = never."""
    stored_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Bytes in the tier and on its link for each byte of KV: a compressed form (CacheGen: about 0.25)."""
    decode: BytesPerSecond | None = None
    """KV bytes that a replica's decoder gives per second when a load arrives; null = no time."""
    prefetch: bool = False
    """What a request finds here comes to the nearest tier while it is queued; it is not admitted before."""
    eviction: PolicyChoice = "lru"
    extent: Annotated[ByteSize, Field(ge=1)] = 2 * 2**20
    """Bytes that lie together: a copy pays the link's operation time once for each such piece."""
    usd_per_gb_month: Annotated[float, Field(ge=0)] | None = None
    """null = the list price for DDR5 (link null) or NVMe (link nvme); any other link costs nothing."""

    @model_validator(mode="after")
    def _modes_agree(self) -> Tier:
        if self.decode == 0:
            raise ValueError("decode: 0 B/s never ends a load; leave it out where decoding takes no time")
        if self.exclusive and self.write != "on_eviction":
            raise ValueError(f"an exclusive tier cannot be written '{self.write}'; set write: on_eviction")
        if self.scope == "cluster" and self.holds != Holds():
            raise ValueError(
                "a cluster's store holds whole blocks, as the rest would lie in one replica's HBM; drop holds"
            )
        return self


class Cache(Part):
    manager: str = "prefix_tree"
    """none, contiguous, concatenated, predicted, paged, prefix_tree, chunks, shared_prefix, snapshots, or any that a plug-in
    registers."""
    block_tokens: Positive = 16
    eviction: PolicyChoice = "lru"
    """A name (lru, s3fifo, belady, ..., or one that a plug-in registers), or {policy: ttl, seconds: 300}."""
    num_gpu_blocks: Positive | None = None
    """KV blocks in HBM of one replica; null = computed from the GPU's memory."""
    codec: Codec | None = None
    """How KV is held: fewer bits, fewer dimensions; docs/methods.md."""
    tokens: Tokens | None = None
    """Which tokens of a running request stay; docs/methods.md."""
    reads: Reads | None = None
    """Which of them a decode step reads, and what lies in a tier; docs/reads.md."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the manager, which says what there are; docs/reuse.md."""
    load_policy: Literal["always", "if_faster"] = "always"
    """if_faster: load from a tier only when that takes less time than computing again."""
    store_answers: bool = False
    """Tiers get answers too, when their request ends. Otherwise (vLLM's default) an answer is stored as a part of the next
    prompt that repeats it."""
    warm_start: str | None = None
    """A file of ``kvsim run --save-cache`` (relative to the scenario file): what HBM and tiers hold at the beginning."""
    link_sharing: Literal["fifo", "fair"] = "fifo"
    """How transfers share a link: one after the other, or all at once with equal shares."""
    tiers: Annotated[tuple[Tier, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _tier_names_differ(self) -> Cache:
        names = [tier.name for tier in self.tiers]
        if "hbm" in names:
            raise ValueError(
                "no tier can be called 'hbm', which is the GPU's own memory; give it another name"
            )
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tiers are called '{name}'")
        return self

    @model_validator(mode="after")
    def _tiers_make_a_tree(self) -> Cache:
        for i, tier in enumerate(self.tiers):
            before = ["hbm", *(other.name for other in self.tiers[:i])]
            if tier.behind is not None and tier.behind not in before:
                raise ValueError(
                    f"tier '{tier.name}' is behind '{tier.behind}', which is none of {', '.join(before)}"
                )
        if any(tier.holds != self.tiers[0].holds for tier in self.tiers):
            raise ValueError(
                "all tiers have to hold the same part of a block, as it goes from one to another; set holds alike"
            )
        if self.tiers and self.tiers[0].prefetch:
            raise ValueError(
                f"tier '{self.tiers[0].name}' is the nearest one, there is nowhere to prefetch to; "
                "set prefetch on a further tier"
            )
        return self


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

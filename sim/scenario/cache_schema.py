"""``cache`` of a scenario: the manager, its policies, and the tiers below HBM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from kvsim.scenario.codec import Codec
from kvsim.scenario.link import InlineLink, MeasuredLink, link_kind
from kvsim.scenario.part import Part, Positive
from kvsim.scenario.policy import PolicyChoice
from kvsim.scenario.reads import Reads
from kvsim.scenario.tokens import Tokens
from kvsim.scenario.units import ByteSize, BytesPerSecond


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
    """none, contiguous, concatenated, predicted, paged, prefix_tree, chunks, shared_prefix, snapshots, virtual, or any that a
    plug-in registers."""
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

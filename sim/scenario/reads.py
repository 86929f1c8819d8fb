"""``cache.reads``: all tokens stay, each decode step reads some. docs/reads.md has the meaning of every key."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ReadsPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Index(ReadsPart):
    """What a query is compared with to find the tokens that are read."""

    kind: Literal["bounds", "vectors", "keys", "codes", "copy", "history", "none"]
    """bounds: lowest and highest key of a page; vectors: one for each entry (centroid, landmark, sentence); keys: every key,
    in ``channels`` and ``bits``; codes: every key as ``parts`` codes of a byte; copy: K and V in ``bits``, whose attention
    also counts; history: how much the last ``steps`` steps attended to each entry, by query head; none: chosen for nothing
    (position, a trained model)."""
    tokens: Positive = 16
    """Tokens of an entry, on average; keys, codes and copies have one for each token."""
    channels: Positive | None = None
    """Of a key that are compared; null = all."""
    bits: Literal[16, 8, 4, 2, 1] = 16
    group: Positive | None = None
    """Elements that share a scale and zero of 16 bits each; null = none stored."""
    parts: Positive = 8
    """Codes of a key, of one byte each."""
    steps: Positive = 16
    """Of a history, 16 bits an entry, head and step."""
    held: bool = True
    """Beside the keys. False: it is (a part of) the keys that HBM holds anyway."""
    place: Literal["hbm", "tier", "disk"] = "hbm"
    """tier: beside what is offloaded; the host's cores compare the query with it. disk: the same, and what is of tokens on the
    disk is read from there each time."""
    rounds: Count = 0
    """Of k-means over a prompt's keys, when it is through: how the entries come about."""

    @model_validator(mode="after")
    def _goes_together(self) -> Index:
        if self.kind == "bounds" and (self.bits != 16 or self.channels is not None):
            raise ValueError("bounds are whole keys of 16 bits; leave bits and channels out")
        if self.kind == "copy" and self.bits == 16:
            raise ValueError("a copy has fewer bits than what it stands for; set bits to 8, 4 or 2")
        if self.kind not in ("keys", "copy") and self.bits != 16:
            raise ValueError("bits are of kind keys or copy; leave them out")
        return self

    @property
    def entry_tokens(self) -> int:
        return self.tokens if self.kind in ("bounds", "vectors", "history") else 1


class Disk(ReadsPart):
    """What of an offloaded prompt lies on a disk behind host memory."""

    tier: str
    """Its name: the second of ``cache.tiers``, behind that of ``offload``."""
    share: Share
    """Of what the prompt leaves."""
    reads: Share | None = None
    """Of what steps fetch, from there; null = as much as lies there."""


class Offload(ReadsPart):
    """What of a prompt leaves HBM; steps fetch what they read of it."""

    tier: str
    """Its name in ``cache.tiers``."""
    trigger: Literal["prefill", "chunk"] = "prefill"
    """prefill: when the prompt is through, which holds all of it in HBM until then; chunk: as it is computed, layer by layer,
    and what its next chunks attend to comes back."""
    staging: Positive | None = None
    """With trigger chunk: tokens of a layer that HBM has room for, twice, while the layers pass; null = the whole prompt."""
    leaves: Literal["kv", "values"] = "kv"
    """HBM."""
    stored: Literal["kv", "values"] = "kv"
    """In the tier: values alone where HBM keeps another form of the keys (``key_rank``, the index)."""
    key_rank: Positive | None = None
    """Of the keys' low-rank form in HBM, all KV heads of a layer together; selected keys are rebuilt from it."""
    resident: Count = 0
    """Tokens of a prompt that stay: sinks, outliers, the newest."""
    buffer: Annotated[float, Field(ge=0)] = 1.0
    """Room in HBM for fetched tokens, as a multiple of the budget."""
    hit_rate: Share = 0.0
    """Of what a step reads, the share that an earlier step has fetched."""
    extent_tokens: Positive = 1
    """Tokens that lie together in the tier."""
    heads_together: bool = False
    """All KV heads of a layer read the same tokens, and their rows lie together."""
    fetch: Literal["in_turn", "beside_keys", "ahead"] = "in_turn"
    """Before attention; while keys are rebuilt; or during the step before, beside everything else."""
    unpack: Literal["gpu", "host"] = "gpu"
    """Where what the tier packs (``stored_ratio``, ``cache.codec`` with place: tiers) is unpacked: on arrival, or by the
    host's cores before the link."""
    attention: Literal["gpu", "cpu", "disk"] = "gpu"
    """cpu: the host's cores attend to what is in the tier; disk: a computational drive attends to what it holds, all of it.
    Only results are copied."""
    disk: Disk | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> Offload:
        if self.leaves == "values" and self.stored == "kv":
            raise ValueError("stored: kv, and only values leave HBM; set stored: values")
        if self.key_rank is not None and (self.leaves, self.stored) != ("kv", "values"):
            raise ValueError("key_rank stands for the keys; set leaves: kv and stored: values")
        if self.trigger == "chunk" and self.key_rank is not None:
            raise ValueError("key_rank is found for a whole prompt in HBM; set trigger: prefill")
        if self.attention == "disk" and (self.disk is None or self.disk.share < 1 or self.stored == "values"):
            raise ValueError(
                "attention: disk is next to all of K and V; give disk with share: 1 and stored: kv"
            )
        if self.fetch == "beside_keys" and self.key_rank is None:
            raise ValueError("fetch: beside_keys hides behind keys that are rebuilt; give key_rank")
        if self.staging is not None and self.trigger == "prefill":
            raise ValueError(
                "staging is what layers pass through with trigger: chunk; set it, or leave staging out"
            )
        if self.attention != "gpu" and (
            self.hit_rate or self.fetch != "in_turn" or self.key_rank is not None
        ):
            raise ValueError(
                f"attention: {self.attention} brings nothing to HBM; leave hit_rate, fetch and key_rank out"
            )
        return self


class Reads(ReadsPart):
    index: Index
    budget: Positive | None = None
    """Tokens that a step reads of each request. This or ``ratio``."""
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of the tokens of each request, those that a step reads."""
    refresh: Annotated[float, Field(ge=1)] = 1.0
    """Steps that one selection serves, on average."""
    dense_layers: Count = 0
    """First layers that read everything."""
    prefill_budget: Positive | None = None
    """Tokens that a prompt's tokens see, in blocks; null = all before them."""
    gathered: bool = False
    """Selected tokens are copied together before attention."""
    rotated: bool = False
    """Their keys are rotated to new positions on the way."""
    offload: Offload | None = None

    def chosen(self, tokens: int) -> int:
        """Of a request of ``tokens`` tokens, those that a step reads."""
        if self.budget is not None:
            return min(self.budget, tokens)
        return ceil(self.part * tokens - 1e-9)

    @property
    def part(self) -> float:
        """``ratio`` where there is no budget."""
        return 1.0 if self.ratio is None else self.ratio

    @model_validator(mode="after")
    def _goes_together(self) -> Reads:
        if (self.budget is None) == (self.ratio is None):
            raise ValueError("give one of budget and ratio")
        if self.rotated and not self.gathered:
            raise ValueError("rotated keys are copies; set gathered: true")
        if self.offload is not None and not self.index.held and self.offload.leaves == "kv":
            raise ValueError(
                "the index is the keys, and they leave HBM; set index.held: true or leaves: values"
            )
        if self.offload is not None and self.offload.trigger == "chunk" and self.index.rounds:
            raise ValueError(
                "index.rounds cluster the keys of a whole prompt in HBM; set offload.trigger: prefill"
            )
        place = self.index.place
        if place != "hbm":
            if self.offload is None:
                raise ValueError(
                    f"index.place: {place}, and nothing is offloaded; give offload, or leave place out"
                )
            if place == "disk" and self.offload.disk is None:
                raise ValueError(
                    "index.place: disk, and none holds anything; give offload.disk, or set place: tier"
                )
            if not self.index.held or self.index.kind in ("copy", "none"):
                raise ValueError(f"an index of kind {self.index.kind} cannot lie in a tier; leave place out")
        return self

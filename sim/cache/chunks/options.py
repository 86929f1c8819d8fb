"""What the manager ``chunks`` may be told: ``cache.options`` of a scenario."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kvsim.scenario.units import ByteSize, Nanoseconds

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Kind = Literal["system", "module", "chunk", "history", "user", "image"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BitstreamLevel(Part):
    """One encoding of an entry in a tier: a bitstream of its own."""

    name: str
    ratio: Annotated[float, Field(gt=0, le=1)]
    """Bytes for each byte of KV; 1 = the KV as it is, below 1 it has lost something."""


class ReuseOptions(Part):
    """``docs/reuse.md`` has the meaning of every key, and which published system has which value."""

    kinds: Annotated[tuple[Kind, ...], Field(strict=False)] = ("chunk", "module")
    """Kinds of segments that become entries; none = no reuse of entries."""
    hit: Literal["attach", "rotate", "recompute"] = "recompute"
    """What becomes of an entry at another place: used as it is, keys turned to the new positions, or turned and a share
    of its tokens computed again."""
    share: Share | None = None
    """Of a reused chunk's tokens, computed again in each layer (hit: recompute); null = 0.15, as CacheBlend. 1 = no reuse."""
    full_layers: Annotated[int, Field(ge=0)] = 0
    """First layers in which all tokens of a reused chunk are computed, to choose those of the others."""
    fix: Literal["constant", "by_context"] = "constant"
    """by_context: ``share`` times the part of the context, in tokens, that differs from the one it was made in."""
    max_share: Share = 1.0
    """An entry of which more would be computed again is not reused; what is computed then is kept as a variant."""
    variants: Positive = 1
    """Entries of one content, each made in a context of its own."""
    made: Literal["in_context", "alone"] = "in_context"
    """Entries are what a prompt computed, or each is computed by itself, from position 0, and used so."""
    where: Literal["anywhere", "same_context"] = "anywhere"
    """same_context: only behind the same tokens, which is exact reuse."""
    scope: Literal["global", "tenant", "user"] = "global"
    """Who shares; a user is a session of the trace. Holds for prefixes, too."""
    query_conditioned: bool = False
    """Entries were compressed for one query (the user segments of its prompt): refused to any other."""
    kept: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of an entry's tokens, those that are kept and attended to."""
    reconstruct: bool = False
    """Which these are is found when an entry is made: the model repeats it, which takes two prefills of it and more."""
    preload: str | None = None
    """hbm or a tier: holds all contents of the trace from the beginning, made alone."""
    hbm: ByteSize = 0
    """HBM set aside for entries; a hit there is copied into the request's blocks."""
    levels: Annotated[tuple[BitstreamLevel, ...], Field(strict=False)] = ()
    """Encodings that tiers hold of every entry, finest first; a load picks one piece by piece, or text."""
    piece_tokens: Positive = 1536
    """Tokens of one piece of a stream."""
    slo: Nanoseconds | None = None
    """A stream takes the finest form with which a prompt's context is there in time; null = the fastest."""

    @property
    def recomputed(self) -> float:
        """``share``, or what it stands for."""
        if self.hit != "recompute":
            return 0.0
        return 0.15 if self.share is None else self.share

    @property
    def entries_of_one(self) -> int:
        """Entries of one content that a place may hold; exact reuse needs one for each context."""
        return self.variants if self.where == "anywhere" else 1 << 30

    @model_validator(mode="after")
    def _agree(self) -> ReuseOptions:
        wants = [
            ("share", self.share is not None, "hit: recompute", self.hit == "recompute"),
            ("full_layers", self.full_layers > 0, "hit: recompute", self.hit == "recompute"),
            ("fix: by_context", self.fix == "by_context", "hit: recompute", self.hit == "recompute"),
            ("variants above 1", self.variants > 1, "made: in_context", self.made == "in_context"),
            ("kept below 1", self.kept < 1, "hit: attach or rotate", self.hit != "recompute"),
            ("reconstruct", self.reconstruct, "kept below 1", self.kept < 1),
            ("levels", bool(self.levels), "hit: attach or rotate", self.hit != "recompute"),
            ("slo", self.slo is not None, "levels", bool(self.levels)),
            (
                "where: same_context",
                self.where == "same_context",
                "made: in_context",
                self.made == "in_context",
            ),
            ("preload", self.preload is not None, "where: anywhere", self.where == "anywhere"),
            ("preload", self.preload is not None, "query_conditioned: false", not self.query_conditioned),
        ]
        for key, is_set, needed, is_met in wants:
            if is_set and not is_met:
                raise ValueError(f"{key} needs {needed}; change one of the two")
        ratios = [level.ratio for level in self.levels]
        if ratios != sorted(ratios, reverse=True):
            raise ValueError(
                f"levels: ratios have to fall, finest first; found {', '.join(map(str, ratios))}"
            )
        return self

"""``cluster.response_cache``: whole answers reused in front of the router. docs/responses.md has the meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from kvsim.scenario.units import ByteSize, Nanoseconds

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ResponsePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LookupPoint(ResponsePart):
    """Measured time of a look-up."""

    entries: Annotated[int, Field(ge=0)]
    time: Nanoseconds


class ThresholdPoint(ResponsePart):
    """What a similarity threshold brought where it was measured."""

    threshold: Share
    hit_ratio: Share
    """Of all requests."""
    error_ratio: Share
    """Wrong answers, of all requests; a part of the hits."""

    @model_validator(mode="after")
    def _wrong_ones_are_hits(self) -> ThresholdPoint:
        if self.error_ratio > self.hit_ratio:
            raise ValueError(
                f"error_ratio {self.error_ratio:g} is more than hit_ratio {self.hit_ratio:g}; both are shares of all requests"
            )
        return self


def _lookup_kind(value: object) -> str:
    return "inline" if isinstance(value, list | tuple) else "preset"


def _ascending(points: tuple[Any, ...]) -> tuple[Any, ...]:
    places = [point.entries if isinstance(point, LookupPoint) else point.threshold for point in points]
    if sorted(set(places)) != places:
        raise ValueError(f"the points have to ascend, found {', '.join(f'{place:g}' for place in places)}")
    return points


Lookup = Annotated[
    Annotated[Nanoseconds, Tag("preset")]
    | Annotated[
        tuple[LookupPoint, ...], Field(strict=False, min_length=1), AfterValidator(_ascending), Tag("inline")
    ],
    Discriminator(_lookup_kind),
]


def _eviction_kind(value: object) -> str:
    return "preset" if isinstance(value, str) else "inline"


class ResponseCache(ResponsePart):
    hits: Literal["exact", "similarity", "curve"] = "exact"
    """exact: equal queries; similarity: as the trace says; curve: at the shares of ``curve``."""
    source: str = ""
    """Where the similarities or the curve come from; stands beside the wrong answers. Needed for these two."""
    threshold: Share | Literal["learned"] | None = None
    """Least similarity of a hit; learned: of each answer its own (VectorQ)."""
    explore: Share = 0.0
    """Of hits by a learned threshold, the share that goes to the model all the same, to learn from."""
    curve: Annotated[tuple[ThresholdPoint, ...], Field(strict=False), AfterValidator(_ascending)] = ()
    responses: Positive | None = None
    """Answers that are kept; null = any number, or as ``capacity`` has it."""
    capacity: Annotated[ByteSize, Field(ge=1)] | None = None
    """In bytes, in place of ``responses``."""
    bytes_per_response: Annotated[int, Field(ge=0)] = 3072
    """Beside the text: the query's embedding, by default 768 numbers of 4 bytes."""
    bytes_per_token: Annotated[int, Field(ge=1)] = 4
    """Of the answer's text."""
    eviction: Annotated[
        Annotated[str, Tag("preset")] | Annotated[dict[str, Any], Tag("inline")],
        Discriminator(_eviction_kind),
    ] = "lru"
    """lru, fifo, lfu, gdsf, lec, or {policy: ttl, seconds: 300}; cost is FLOPs of prompt and answer."""
    lookup: Lookup = 0
    """Embedding and search, of every request: a time, or [{entries: 1000, time: 5 ms}, ...] with straight lines between,
    the last one going on."""
    scope: Literal["global", "tenant", "user"] = "global"
    """Who may get whose answers; a user is a session."""

    @model_validator(mode="after")
    def _given_from_outside(self) -> ResponseCache:
        if self.hits != "exact" and not self.source:
            raise ValueError(f"hits: {self.hits} needs 'source': whose similarities or curve these are")
        if (self.threshold is None) != (self.hits == "exact"):
            what = "has no" if self.hits == "exact" else "needs a"
            raise ValueError(f"hits: {self.hits} {what} 'threshold'")
        if self.explore and self.threshold != "learned":
            raise ValueError("explore goes with threshold: learned")
        if bool(self.curve) != (self.hits == "curve"):
            raise ValueError("'curve' and hits: curve go together")
        return self

    @model_validator(mode="after")
    def _threshold_on_the_curve(self) -> ResponseCache:
        if self.hits != "curve":
            return self
        if not isinstance(self.threshold, float | int):
            raise ValueError("threshold: learned needs hits: similarity; a curve is read at a number")
        low, high = self.curve[0].threshold, self.curve[-1].threshold
        if not low <= self.threshold <= high:
            raise ValueError(f"threshold {self.threshold:g} lies outside the curve, {low:g} to {high:g}")
        if self.responses or self.capacity or self.eviction != "lru" or self.scope != "global":
            raise ValueError(
                "a curve holds for the cache it was measured on; leave responses, capacity, eviction and scope out"
            )
        return self

    @model_validator(mode="after")
    def _one_capacity(self) -> ResponseCache:
        if self.responses is not None and self.capacity is not None:
            raise ValueError("give 'responses' or 'capacity', not both")
        if isinstance(self.eviction, dict) and not isinstance(self.eviction.get("policy"), str):
            raise ValueError("eviction: 'policy' is missing; write a name, or {policy: ttl, seconds: 300}")
        return self

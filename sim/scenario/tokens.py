"""``cache.tokens``: which tokens of a running request stay. docs/methods.md has the meaning of every key."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class TokensPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LayerGroup(TokensPart):
    """Some of the layers, and their part of the budget."""

    layers: Annotated[float, Field(gt=0, le=1)]
    """Share of the layers, rounded to whole ones; the last group has the rest."""
    factor: Annotated[float, Field(ge=0)]
    """Times the mean budget, before the factors are scaled so that the mean holds."""


class Heads(TokensPart):
    """Two classes of heads: some keep every token, the others first and newest ones."""

    full: Share
    """Of all KV heads of all layers."""
    sinks: Count = 4
    recent: Count = 0
    recent_ratio: Share = 0.0
    """Newest tokens as a share of the prompt, beside ``recent``."""
    merged: Count = 0
    """Tokens that stand for what a head dropped."""
    prefill: Literal["windowed", "full"] = "full"
    """Whether the prompt's tokens see only first and newest ones in these heads, too."""


class Tokens(TokensPart):
    score: Literal["position", "norm", "key_similarity", "gate", "window", "accumulated"]
    """What ranks tokens: their place, norms of their keys, how keys differ from their mean, a trained head, attention of the
    prompt's last ``window`` queries, or all attention so far. The last two are of one query."""
    window: Positive = 32
    """Queries of score window; they are kept."""
    budget: Positive | None = None
    """Tokens that stay, as a mean over layers."""
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Tokens that stay, of the prompt; rounded up."""
    schedule: Literal["chunk", "layer", "prefill"] = "prefill"
    """When prompt tokens go: after every ``block`` of them, when a layer has been prefilled, or all at the end."""
    block: Positive = 512
    generated: Literal["append", "evict"] = "append"
    """What is generated is kept, or takes the room of others."""
    every: Positive = 1
    """Tokens are evicted so many at a time (generated: evict)."""
    pyramid: Annotated[float, Field(ge=1)] | None = None
    """Budgets fall from the first layer to the last, which has the mean over so much (and the window)."""
    groups: Annotated[tuple[LayerGroup, ...], Field(strict=False)] = ()
    """Budgets by groups of layers, from the first one on."""
    whole_layers: Count = 0
    """First layers that keep everything, beside the budget."""
    heads: Heads | None = None
    granularity: Positive = 1
    """Tokens that stay or go together."""
    compact: bool = True
    """What stays is moved together; otherwise only pages of which nothing stays are freed."""
    dropped: Literal["discard", "merge"] = "discard"
    """merge: what goes is averaged into what stays."""
    pages: Literal["own", "shared"] = "own"
    """Layers and classes of heads have block tables of their own, or share one: then a page is freed that none of them
    needs."""

    @property
    def query_conditioned(self) -> bool:
        """What stays depends on the query, so it is of no use to another."""
        return self.score in ("window", "accumulated")

    @model_validator(mode="after")
    def _one_budget(self) -> Tokens:
        given = [self.budget is not None, self.ratio is not None, self.heads is not None]
        if sum(given) != 1:
            raise ValueError("give one of budget, ratio and heads: how many tokens stay")
        splits = [self.pyramid is not None, bool(self.groups), self.heads is not None]
        if sum(splits) > 1:
            raise ValueError("pyramid, groups and heads each split the budget; give one of the three")
        if self.heads is not None and self.score != "position":
            raise ValueError("streaming heads keep tokens by their place; set score: position")
        if sum(group.layers for group in self.groups) > 1 + 1e-9:
            raise ValueError("groups: they have more than all layers; lower their shares")
        if self.groups and not any(group.factor for group in self.groups):
            raise ValueError("groups: all factors are 0; give one of them a budget")
        if self.every > 1 and self.generated == "append":
            raise ValueError("every is of generated: evict; leave it out where what is generated is appended")
        return self

"""``cache.tokens``: which tokens of a running request stay. docs/methods.md has the meaning of every key."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Point = Annotated[tuple[Positive, Positive], Field(strict=False)]
NotNegative = Annotated[float, Field(ge=0)]


class TokensPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Lowered(TokensPart):
    """What is not kept stays in fewer bits."""

    bits: Literal[8, 4, 2]
    group: Positive | None = 128
    """Elements that share a scale and zero; null = none stored."""
    metadata_bits: Count = 32
    """Scale and zero of a group."""


class Recalled(TokensPart):
    """What is not kept leaves HBM, and steps bring some of it back for their attention."""

    tier: str | None = None
    """Where a prompt's tokens go, a name in ``cache.tiers``; null = nowhere: their KV is computed again."""
    tokens: NotNegative
    """That each step brings back of a request, on average."""


class Folded(TokensPart):
    """What is not kept goes into a state of each KV head, of fixed size, that later queries read as well (linear attention)."""

    features: Positive
    """Of a key; the state has so many rows of a value's size, and their sums."""


def _one_fate(value: Any) -> Any:
    if isinstance(value, Mapping):
        given = [key for key in ("bits", "features", "tokens", "tier") if key in value]
        if len(given) > 1 and given != ["tokens", "tier"]:
            raise ValueError(f"give bits, or features, or tokens and tier; found {' and '.join(given)}")
    return value


def _fate(value: Any) -> str:
    """Which of the forms of ``dropped`` a value is meant to be."""
    keys = value if isinstance(value, Mapping) else getattr(value, "model_fields_set", None)
    if keys is None:
        return "a name"
    return "lowered" if "bits" in keys else "folded" if "features" in keys else "recalled"


Dropped = Annotated[
    Annotated[Literal["discard", "merge"], Tag("a name")]
    | Annotated[Lowered, Tag("lowered")]
    | Annotated[Recalled, Tag("recalled")]
    | Annotated[Folded, Tag("folded")],
    Discriminator(_fate),
    BeforeValidator(_one_fate),
]


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
    score: Literal["position", "norm", "key_similarity", "gate", "window", "accumulated", "hash"]
    """What ranks tokens: their place, norms of their keys, how keys differ from their mean, a trained head, attention of the
    prompt's last ``window`` queries, all attention so far, or the bits that hashes of key and query share. The last three are
    of one query."""
    hash_bits: Positive = 32
    """Of a key's hash, in every KV head, which is held beside the token (score hash)."""
    weighs_values: bool = False
    """What a token adds to the output counts: scores read the values, too."""
    lookahead: Count = 0
    """Tokens that are drafted over what would stay of a prompt, before it is chosen by their queries."""
    window: Positive = 32
    """Queries of score window; they are kept."""
    budget: Positive | None = None
    """Tokens that stay, as a mean over layers."""
    ratio: Ratio | None = None
    """Tokens that stay, of the prompt (generated: share: of the whole context, in thousandths); rounded up."""
    ratios: Annotated[tuple[Ratio, ...], Field(strict=False)] = ()
    """In place of ``ratio``, where it depends on the prompt: quantiles at equal distances, from the least to the most.
    Each request draws its own, by its number and the scenario's seed."""
    curve: Annotated[tuple[Point, ...], Field(strict=False)] = ()
    """In place of ``budget``: [tokens of a prompt, tokens that stay], straight between such points, level beyond them."""
    schedule: Literal["chunk", "layer", "prefill"] = "prefill"
    """When prompt tokens go: after every ``block`` of them, when a layer has been prefilled, or all at the end."""
    block: Positive = 512
    generated: Literal["append", "evict", "share"] = "append"
    """What is generated is kept, or takes the room of others: one out for one in, or so that ``ratio`` of the growing
    context stays."""
    generated_budget: Positive | None = None
    """Tokens that stay of what is generated, apart from those of the prompt (generated: evict)."""
    every: Positive = 1
    """Tokens are evicted so many at a time (generated: evict or share)."""
    pyramid: Annotated[float, Field(ge=1)] | None = None
    """Budgets fall from the first layer to the last, which has the mean over so much (and the window)."""
    layer_shares: Annotated[tuple[NotNegative, ...], Field(strict=False)] = ()
    """Budgets of layers to each other, first layer first. A list that is shorter or longer than the model is stretched:
    [3, 1] gives the first half of the layers three times what the others have."""
    whole_layers: Count = 0
    """First layers that keep everything, beside the budget."""
    heads: Heads | None = None
    granularity: Positive = 1
    """Tokens that stay or go together."""
    compact: bool = True
    """What stays is moved together; otherwise only pages of which nothing stays are freed."""
    renumbered: bool = False
    """What stays gets new positions: its keys are rotated again."""
    dropped: Dropped = "discard"
    """merge: what goes is averaged into what stays; or it stays in fewer bits; or it goes below, or nowhere, and is recalled;
    or it is folded into a state."""
    pages: Literal["own", "shared"] = "own"
    """Layers and classes of heads have block tables of their own, or share one: then a page is freed that none of them
    needs."""

    @property
    def query_conditioned(self) -> bool:
        """What stays depends on the query, so it is of no use to another."""
        return self.score in ("window", "accumulated", "hash")

    @property
    def mean_ratio(self) -> float:
        """``ratio``, or the mean of ``ratios``; 0 where neither is given."""
        if not self.ratios:
            return self.ratio or 0.0
        between = [(low + high) / 2 for low, high in pairwise(self.ratios)]
        return sum(between) / len(between)

    @model_validator(mode="after")
    def _one_budget(self) -> Tokens:
        given = [self.budget is not None, self.ratio is not None, self.heads is not None]
        if sum([*given, bool(self.ratios), bool(self.curve)]) != 1:
            raise ValueError("give one of budget, curve, ratio, ratios and heads: how many tokens stay")
        if self.score == "window" and self.budget is not None and self.window > self.budget:
            raise ValueError(
                f"the {self.window} tokens of window are kept, and budget is {self.budget}; set window to {self.budget} at most"
            )
        if any(low[0] >= high[0] for low, high in pairwise(self.curve)):
            raise ValueError("curve: its prompts have to grow from point to point")
        if self.ratios and (len(self.ratios) < 2 or list(self.ratios) != sorted(self.ratios)):
            raise ValueError(
                "ratios: quantiles do not fall, and there are two at least, the least and the most"
            )
        splits = [self.pyramid is not None, bool(self.layer_shares), self.heads is not None]
        if sum(splits) > 1:
            raise ValueError("pyramid, layer_shares and heads each split the budget; give one of the three")
        if self.heads is not None and self.score not in ("position", "window", "accumulated"):
            raise ValueError(
                "streaming heads keep tokens by their place; set score: position, or, where each prompt's attention says "
                "which heads these are, window or accumulated"
            )
        if self.heads is not None and self.heads.prefill == "windowed" and self.score != "position":
            raise ValueError(
                "heads.prefill: windowed, and which heads these are is known after it; set it to full"
            )
        if self.layer_shares and not any(self.layer_shares):
            raise ValueError("layer_shares: all are 0; give one of them a budget")
        if self.generated == "share" and (self.ratio is None or self.ratio < 0.001):
            raise ValueError(
                "generated: share keeps thousandths of the growing context; give ratio, 0.001 or more"
            )
        if self.generated == "share" and (
            self.pyramid is not None or self.granularity > 1 or not self.compact
        ):
            raise ValueError(
                "generated: share goes by single tokens; leave pyramid, granularity and compact out"
            )
        if self.generated_budget is not None and (self.generated != "evict" or self.pages == "shared"):
            raise ValueError(
                "generated_budget is of generated: evict and pages: own; set both, or leave it out"
            )
        if self.weighs_values and self.score == "position":
            raise ValueError(
                "weighs_values: a place has no score that values could weigh; take another score"
            )
        if self.lookahead and self.score != "window":
            raise ValueError("lookahead drafts the queries of score window; set score to it")
        if isinstance(self.dropped, Lowered):
            self._check_lowered()
        if isinstance(self.dropped, Recalled) and self.dropped.tier is not None:
            self._check_below()
        if self.every > 1 and self.generated == "append":
            raise ValueError("every is of what is evicted; leave it out where what is generated is appended")
        return self

    def _check_lowered(self) -> None:
        fixed = self.generated == "evict" and (self.budget is not None or self.generated_budget is not None)
        if self.heads is not None or fixed:
            raise ValueError(
                "dropped: fewer bits go with a ratio, or with what only prompts drop; give ratio, or generated: append"
            )
        if self.pages == "shared" or not self.compact:
            raise ValueError("dropped: what has fewer bits has pages of its own; leave pages and compact out")

    def _check_below(self) -> None:
        if self.schedule != "prefill" or self.generated != "append":
            raise ValueError(
                "dropped.tier gets what a whole prompt drops; set schedule: prefill and generated: append"
            )
        if not self.compact and self.score != "position":
            raise ValueError("dropped.tier: holes in pages free nothing; leave compact out")

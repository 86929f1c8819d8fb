"""Which slices of a model's cache hold equally many tokens.

A *slice* is one KV head of one layer. A class of slices holds, of a request with a prompt of n tokens and a context of c:

- everything: c;
- ``append``: what stays of the prompt, and all that was generated: c - dropped(n);
- ``capped``: a fixed number at most, min(c, cap): evicts for every token beyond it;
- ``constant``: what stayed of the prompt, one out for one in;
- ``share``: ``part`` of every ``whole`` tokens of the context, rounded up, whatever it has grown to;
- ``apart``: what stayed of the prompt, and a fixed number at most of what was generated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import gcd
from typing import Literal

from kvsim.cache.parts.span import KvShape
from kvsim.scenario.tokens import Tokens

Kind = Literal["everything", "append", "capped", "constant", "share", "apart"]
STEPS = 1000  # to so many parts the share of a context is rounded


@dataclass(frozen=True)
class SliceClass:
    """Slices that hold equally many tokens."""

    slices: int
    kind: Kind
    factor: float = 1.0  # times the budget
    layer: int = -1  # of a pyramid
    part: int = 1  # of every ``whole`` tokens of the context (share)
    whole: int = 1


def classes_of(shape: KvShape, tokens: Tokens) -> tuple[SliceClass, ...]:
    """From the first layer on."""
    kind = _kind(tokens)
    if tokens.heads is not None:
        full = round(tokens.heads.full * shape.num_slices)
        split = [SliceClass(full, "everything"), SliceClass(shape.num_slices - full, kind)]
        return tuple(each for each in split if each.slices)
    whole = min(tokens.whole_layers, shape.num_layers)
    heads, layers = shape.num_kv_heads, shape.num_layers - whole
    first = [SliceClass(whole * heads, "everything")] if whole else []
    if not layers:
        return tuple(first)
    if tokens.pyramid is not None:
        rest = [SliceClass(heads, kind, layer=layer) for layer in range(layers)]
    else:
        rest = [
            _growing(tokens, SliceClass(n * heads, kind, factor)) for n, factor in _factors(tokens, layers)
        ]
    return (*first, *rest)


def _kind(tokens: Tokens) -> Kind:
    if tokens.heads is not None:
        return "constant" if tokens.heads.recent_ratio else "capped"
    if tokens.generated_budget is not None:
        return "apart"
    if tokens.generated == "evict":
        return "constant" if tokens.budget is None else "capped"
    return "append" if tokens.generated == "append" else "share"


def _factors(tokens: Tokens, layers: int) -> list[tuple[int, float]]:
    """(layers, their budget over the mean), layers with the same one together."""
    shares = tokens.layer_shares
    if not shares:
        return [(layers, 1.0)]
    of_layer = [shares[layer * len(shares) // layers] for layer in range(layers)]
    mean = sum(of_layer) / layers
    return [(count, share / mean) for share, count in Counter(of_layer).items()]


def _growing(tokens: Tokens, each: SliceClass) -> SliceClass:
    """With its part of the context, where it holds one."""
    if each.kind != "share":
        return each
    part = max(1, round(STEPS * (tokens.ratio or 0) * each.factor))
    if part >= STEPS:
        return SliceClass(each.slices, "everything")
    common = gcd(part, STEPS)
    return SliceClass(each.slices, "share", each.factor, part=part // common, whole=STEPS // common)

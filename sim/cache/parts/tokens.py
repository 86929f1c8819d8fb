"""Which tokens of a request are held: numbers by class of layers and heads, and the kernels that choose and move them.

A *slice* is one KV head of one layer. A class of slices holds, of a request with a prompt of n tokens and a context of c:

- everything: c;
- ``append``: what stays of the prompt, and all that was generated: c - dropped(n);
- ``capped``: a fixed number at most, min(c, cap): evicts for every token beyond it;
- ``constant``: what stayed of the prompt, one out for one in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, Literal

from kvsim.cache.parts.span import KvShape, Span
from kvsim.cost.work import Column, Kernel, Ramp
from kvsim.entities import Batch, Request
from kvsim.scenario.tokens import Tokens

Kind = Literal["everything", "append", "capped", "constant"]
SCORED_QUERIES = 64  # whose attention is summed in one launch, where all of a prompt's is


@dataclass(frozen=True)
class SliceClass:
    """Slices that hold equally many tokens."""

    slices: int
    kind: Kind
    factor: float = 1.0  # times the budget
    layer: int = -1  # of a pyramid


@dataclass(frozen=True)
class TokenPolicy:
    """One policy on one model."""

    shape: KvShape
    tokens: Tokens

    # ---- numbers

    @cached_property
    def classes(self) -> tuple[SliceClass, ...]:
        """From the first layer on."""
        shape, tokens = self.shape, self.tokens
        kind: Kind = "append"
        if tokens.generated == "evict":
            kind = "constant" if tokens.budget is None else "capped"
        if tokens.heads is not None:
            kind = "constant" if tokens.heads.recent_ratio else "capped"
            full = round(tokens.heads.full * shape.num_slices)
            split = [SliceClass(full, "everything"), SliceClass(shape.num_slices - full, kind)]
            return tuple(each for each in split if each.slices)
        whole = min(tokens.whole_layers, shape.num_layers)
        heads, layers = shape.num_kv_heads, shape.num_layers - whole
        first = [SliceClass(whole * heads, "everything")] if whole else []
        if tokens.pyramid is not None:
            rest = [SliceClass(heads, kind, layer=layer) for layer in range(layers)]
        elif tokens.groups:
            rest = self._groups(kind, layers)
        else:
            rest = [SliceClass(layers * heads, kind)] if layers else []
        return (*first, *rest)

    def _groups(self, kind: Kind, layers: int) -> list[SliceClass]:
        groups, at = self.tokens.groups, 0
        counts = []
        for group in groups:
            counts.append(min(round(group.layers * layers), layers - at))
            at += counts[-1]
        counts[-1] += layers - at
        mean = sum(count * group.factor for count, group in zip(counts, groups, strict=True)) / layers
        heads = self.shape.num_kv_heads
        return [
            SliceClass(count * heads, kind, group.factor / mean)
            for count, group in zip(counts, groups, strict=True)
            if count
        ]

    @cached_property
    def kinds(self) -> tuple[tuple[int, Kind], ...]:
        """(slices, kind) of each class."""
        return tuple((each.slices, each.kind) for each in self.classes)

    @cached_property
    def caps(self) -> tuple[int, ...]:
        """:meth:`cap` of each class; 0 where it has none."""
        return tuple(self.cap(each) if each.kind == "capped" else 0 for each in self.classes)

    @cached_property
    def _known(self) -> dict[int, tuple[int, ...]]:
        return {}

    def kept(self, prompt: int) -> tuple[int, ...]:
        """Tokens that stay of a prompt, by class."""
        found = self._known.get(prompt)
        if found is None:
            found = self._known[prompt] = tuple(self._kept(each, prompt) for each in self.classes)
        return found

    def _kept(self, each: SliceClass, prompt: int) -> int:
        if each.kind == "everything":
            return prompt
        return min(prompt, self.cap(each) if each.kind == "capped" else self._budget(each, prompt))

    def _budget(self, each: SliceClass, prompt: int) -> int:
        tokens = self.tokens
        if tokens.heads is not None:
            heads = tokens.heads
            return heads.sinks + heads.recent + ceil(heads.recent_ratio * prompt) + heads.merged
        mean = tokens.budget if tokens.budget is not None else _up(tokens.ratio or 0, prompt)
        if each.layer >= 0:
            return self._pyramid(each.layer, mean, prompt)
        budget = round(each.factor * mean)
        return max(tokens.granularity, budget // tokens.granularity * tokens.granularity)

    def _pyramid(self, layer: int, mean: int, prompt: int) -> int:
        """PyramidKV's rounding (Cai et al., 2024, pyramidkv_utils.py, update_kv)."""
        assert self.tokens.pyramid is not None
        window = min(self.tokens.window, mean)
        base = mean - window
        least = int(base // self.tokens.pyramid)
        most = 2 * base - least
        if most >= prompt - window:
            most = max(prompt - window, base)
            least = 2 * base - most
        layers = self.shape.num_layers - min(self.tokens.whole_layers, self.shape.num_layers)
        return most - layer * ((most - least) // max(1, layers - 1)) + window

    def cap(self, each: SliceClass) -> int:
        """Of a capped class: tokens that it may hold at a time."""
        return self._budget(each, 1) if each.layer < 0 else self._budget(each, 1 << 40)

    def held(self, prompt: int, context: int) -> tuple[int, ...]:
        """Tokens, by class, of a request with ``context`` tokens of which ``prompt`` were prefilled."""
        found = []
        for (_, kind), kept, cap in zip(self.kinds, self.kept(prompt), self.caps, strict=True):
            if kind == "everything":
                found.append(context)
            elif kind == "append":
                found.append(kept + context - prompt)
            elif kind == "capped":
                found.append(min(context, cap))
            else:
                found.append(kept)
        return tuple(found)

    def held_slices(self, prompt: int, context: int) -> int:
        """Tokens x slices, without rounding to pages."""
        held = self.held(prompt, context)
        return sum(each.slices * tokens for each, tokens in zip(self.classes, held, strict=True))

    def peak_slices(self, prompt: int) -> int:
        """The most of :meth:`held_slices` while ``prompt`` tokens are prefilled."""
        return sum(
            slices * tokens
            for slices, tokens in zip(self.prefill_counts, self.prefilling(prompt), strict=True)
        )

    # while a prompt is prefilled there may be one more class: the layer that is computed

    @cached_property
    def prefill_counts(self) -> tuple[int, ...]:
        """Slices of what :meth:`prefilling` gives."""
        counts = tuple(each.slices for each in self.classes)
        return (*counts, self.shape.num_kv_heads) if self.tokens.schedule == "layer" else counts

    def prefilling(self, computed: int) -> tuple[int, ...]:
        """Tokens, by class, of a prompt of which ``computed`` tokens are computed."""
        tokens, kept = self.tokens, self.kept(computed)
        if tokens.schedule == "prefill":
            return (computed,) * len(kept)
        if tokens.schedule == "layer":
            return (*kept, computed)
        block = max(tokens.block, tokens.every)
        return tuple(min(computed, each + block) for each in kept)

    @property
    def is_proportional(self) -> bool:
        """Any stretch of a prompt keeps the same share of its tokens in all slices, whatever stands behind it."""
        tokens = self.tokens
        split = tokens.pyramid is not None or tokens.groups or tokens.whole_layers or tokens.heads is not None
        alike = tokens.schedule == "chunk" and tokens.compact and not split
        return alike and tokens.ratio is not None and not tokens.query_conditioned

    @cached_property
    def is_neutral(self) -> bool:
        """Everything is kept, and nothing is done for it, whatever the prompt."""
        if self.tokens.ratio == 1:
            return True
        return all(each.kind == "everything" for each in self.classes)

    # ---- what a batch holds

    def spans(self, batch: Batch, steps: int, whole: Sequence[Span] = ()) -> tuple[Span, ...]:
        """What decode attention reads in the next steps; each class, or classes that grow alike as one.

        ``whole``: what it reads where everything is held, if not that.
        """
        num = len(batch)
        first = batch.sum_context + num
        found = [Span(share, batch.capped(cap).sum_read(steps)) for share, cap in self._capped_shares]
        for kind, share in self._shares:
            if kind == "everything":
                found += whole or [Span(share, _growing(first, num, steps))]
            elif kind == "append":
                found.append(Span(share, _growing(first - batch.total(self.dropped), num, steps)))
            elif kind == "constant":
                found.append(Span(share, batch.total(self.constant)))
        return tuple(found)

    @cached_property
    def _capped_shares(self) -> list[tuple[float, int]]:
        """Of each capped class: its share of all slices, its cap."""
        total, both = self.shape.num_slices, zip(self.kinds, self.caps, strict=True)
        return [(slices / total, cap) for (slices, kind), cap in both if kind == "capped"]

    @cached_property
    def _shares(self) -> list[tuple[Kind, float]]:
        """Of the other kinds, all classes of a kind together."""
        by_kind: dict[Kind, int] = {}
        for slices, kind in self.kinds:
            if kind != "capped":
                by_kind[kind] = by_kind.get(kind, 0) + slices
        return [(kind, slices / self.shape.num_slices) for kind, slices in by_kind.items()]

    def dropped(self, request: Request) -> int:
        """Prompt tokens that an ``append`` slice does not hold, on average, whole."""
        return request.to_compute - self._mean(request.to_compute, "append")

    def constant(self, request: Request) -> int:
        """Tokens that a ``constant`` slice holds, on average, whole."""
        return self._mean(request.to_compute, "constant")

    def _mean(self, prompt: int, kind: Kind) -> int:
        total = num = 0
        for (slices, of_kind), kept in zip(self.kinds, self.kept(prompt), strict=True):
            if of_kind == kind:
                total += slices * kept
                num += slices
        return round(total / num)

    # ---- kernels

    def prefill_attention(self, past: int, new: int) -> tuple[Kernel, ...]:
        """Look. ``new`` prompt tokens behind ``past`` others."""
        tokens, heads = self.tokens, self.tokens.heads
        if heads is not None and heads.prefill == "windowed":
            share = self.classes[0].slices / self.shape.num_slices if len(self.classes) > 1 else 0.0
            seen = self._budget(self.classes[-1], past + new)
            whole = {"new": new, "past": past}
            if new <= seen:
                some = Kernel("prefill_attention", {"new": new, "past": min(past, seen)}, calls=1 - share)
            elif share:
                flops = 4 * new * seen * self.shape.num_heads * self.shape.head_dim * self.shape.num_layers
                sizes = {"new": new, "kept": seen, "num_bytes": 0, "flops": flops}
                some = Kernel("sparse_prefill[window]", sizes, calls=1 - share)
            else:  # piece after piece, each behind as many tokens as it sees
                some = Kernel("prefill_attention", {"new": seen, "past": seen}, calls=new / seen)
            full = (Kernel("prefill_attention", whole, calls=share),) if share else ()
            return (*full, some)
        if tokens.schedule == "chunk" and past:
            kept = zip(self.classes, self.kept(past), strict=True)
            past = round(sum(each.slices * tokens for each, tokens in kept) / self.shape.num_slices)
        return (Kernel("prefill_attention", {"new": new, "past": past}),)

    def prompt_work(self, past: int, new: int, prompt: int) -> tuple[Kernel, ...]:
        """Look. Ranking and moving, with the step that computes ``new`` tokens behind ``past`` of a ``prompt``."""
        tokens, shape = self.tokens, self.shape
        kept = self._kept_slices(prompt)
        if kept == prompt * shape.num_slices:
            return ()
        found: list[Kernel] = []
        if tokens.score in ("norm", "key_similarity"):
            read = new * shape.bytes_per_token // 2
            found.append(Kernel("key_statistics", {"page": 16, "tokens": new, "num_bytes": read}))
        elif tokens.score == "gate":
            found.append(Kernel("retaining_heads", {"num_bytes": 0, "flops": new * self._gate_flops}))
        elif tokens.score == "accumulated":
            sizes = self._scoring(SCORED_QUERIES, past + new // 2 + 1)
            found.append(Kernel("score_reduction", sizes, calls=new / SCORED_QUERIES))
        if tokens.schedule == "chunk":
            entries, evictions = self._mean_kept(prompt) + tokens.block, new / tokens.block
            moved = min(tokens.block, self._mean_kept(prompt)) * shape.num_slices
            if past + new <= self._mean_kept(prompt):
                return tuple(found)
        elif past + new < prompt:
            return tuple(found)
        else:
            entries, evictions, moved = prompt, 1, kept
        if tokens.score == "window":
            found.append(Kernel("score_reduction", self._scoring(tokens.window, prompt), calls=evictions))
        if tokens.score != "position":
            rows = _choosing(shape.num_kv_heads, entries, min(self._mean_kept(prompt), entries))
            found.append(Kernel("top_k_select", rows, calls=evictions * shape.num_layers))
            if tokens.compact:
                rows = {"row_bytes": 2 * shape.head_dim, "rows": 2 * moved}
                found.append(Kernel("compact_kv", rows, calls=evictions))
        if tokens.dropped == "merge":
            stays = self._mean_kept(prompt)
            goes = min(new, prompt - stays) if tokens.schedule == "chunk" else prompt - stays
            read = (goes + stays) * shape.bytes_per_token
            found.append(Kernel("merge_tokens", {"dropped": goes, "kept": stays, "num_bytes": read}))
        return tuple(found)

    def step_work(self, batch: Batch, steps: int) -> tuple[Kernel, ...]:
        """Look. Evictions of decode steps."""
        tokens, shape = self.tokens, self.shape
        if tokens.generated == "append" or tokens.score == "position":
            return ()
        num = len(batch)
        found: list[Kernel] = []
        for each, cap in zip(self.classes, self.caps, strict=True):
            if each.kind not in ("capped", "constant"):
                continue
            kept = cap if each.kind == "capped" else max(1, batch.total(self.constant) // num)
            evicts: Any = 1
            if each.kind == "capped":
                evicts = (batch.capped(kept).num_beyond(steps) > 0) * 1
            if tokens.every > 1:
                evicts = batch.pages(tokens.every).num_filled(steps)
            layers = each.slices // shape.num_kv_heads
            rows = shape.num_kv_heads * (num if tokens.every == 1 else 1)
            entries = max(1, kept // tokens.granularity)
            found.append(
                Kernel("top_k_select", _choosing(rows, entries, min(32, entries)), calls=evicts * layers)
            )
            if tokens.dropped == "merge":
                # each sequence's token against its own kept keys: as many products as one token against all of them
                share, read = each.slices / shape.num_slices, num * kept * shape.bytes_per_token // 2
                sizes = {"dropped": 1, "kept": num * kept, "num_bytes": read}
                found.append(Kernel("merge_tokens", sizes, calls=share * evicts if share < 1 else evicts))
        return tuple(found)

    @property
    def writes_scores(self) -> bool:
        """Decode attention has to give its probabilities."""
        return self.tokens.score == "accumulated" and self.tokens.generated == "evict"

    def _kept_slices(self, prompt: int) -> int:
        kept = self.kept(prompt)
        return sum([slices * tokens for (slices, _), tokens in zip(self.kinds, kept, strict=True)])

    def _mean_kept(self, prompt: int) -> int:
        return max(1, round(self._kept_slices(prompt) / self.shape.num_slices))

    def _scoring(self, window: int, context: int) -> dict[str, int]:
        """Sizes of the scores of ``window`` queries over ``context`` keys."""
        shape = self.shape
        flops = 2 * window * context * shape.num_heads * shape.head_dim * shape.num_layers
        read = context * shape.bytes_per_token // 2
        return {"window": window, "context": context, "num_bytes": read, "flops": flops}

    @property
    def _gate_flops(self) -> int:
        """Of a token in all layers: queries, keys and values to 1024 numbers, and these to a score a head (Locret)."""
        shape = self.shape
        wide = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        return 2 * shape.num_layers * 1024 * (wide + shape.num_kv_heads)


def _choosing(rows: int, entries: int, k: int) -> dict[str, int]:
    """Sizes of choosing the ``k`` best of each row's scores, which are of 4 bytes."""
    return {"rows": rows, "entries": entries, "k": k, "num_bytes": 4 * rows * entries}


def _growing(first: int, num: int, steps: int) -> Column:
    return Ramp(first, num) if steps > 1 else first


def _up(ratio: float, tokens: int) -> int:
    return ceil(round(ratio * tokens, 6))

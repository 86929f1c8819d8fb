"""Which tokens of a request are held, and the kernels that choose and move them."""

from __future__ import annotations

from typing import Any

from kvsim.cache.parts.held import HeldTokens
from kvsim.cache.parts.slices import SliceClass
from kvsim.cost.work import Kernel
from kvsim.entities import Batch

SCORED_QUERIES = 64  # whose attention is summed in one launch, where all of a prompt's is


class TokenPolicy(HeldTokens):
    """One policy on one model: what it holds, and what it costs."""

    def prefill_attention(self, past: int, new: int, ratio: float | None = None) -> tuple[Kernel, ...]:
        """Look. ``new`` prompt tokens behind ``past`` others, of a request that keeps ``ratio`` if not what all do."""
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
            past = round(self._kept_slices(past, ratio) / self.shape.num_slices)
        return (Kernel("prefill_attention", {"new": new, "past": past}),)

    def prompt_work(self, past: int, new: int, prompt: int, ratio: float | None = None) -> tuple[Kernel, ...]:
        """Look. Ranking and moving, with the step that computes ``new`` tokens behind ``past`` of a ``prompt``."""
        tokens, shape = self.tokens, self.shape
        kept, stays = self._kept_slices(prompt, ratio), self._mean_kept(prompt, ratio)
        if kept == prompt * shape.num_slices:
            return ()
        found: list[Kernel] = []
        if tokens.score in ("norm", "key_similarity"):
            read = new * shape.bytes_per_token // 2
            found.append(Kernel("key_statistics", {"page": 16, "tokens": new, "num_bytes": read}))
        elif tokens.score == "gate":
            found.append(Kernel("retaining_heads", {"num_bytes": 0, "flops": new * self._gate_flops}))
        elif tokens.score == "accumulated":
            before = min(past, stays) if tokens.schedule == "chunk" else past
            sizes = self._scoring(SCORED_QUERIES, before + new // 2 + 1)
            found.append(Kernel("score_reduction", sizes, calls=new / SCORED_QUERIES))
        if tokens.schedule == "chunk":
            entries, evictions = stays + tokens.block, new / tokens.block
            moved = min(tokens.block, stays) * shape.num_slices
            if past + new <= stays:
                return tuple(found)
        elif past + new < prompt:
            return tuple(found)
        else:
            entries, evictions, moved = prompt, 1, kept
        if tokens.score == "window":
            found.append(Kernel("score_reduction", self._scoring(tokens.window, entries), calls=evictions))
        if tokens.score != "position":
            rows = _choosing(shape.num_kv_heads, entries, min(stays, entries))
            found.append(Kernel("top_k_select", rows, calls=evictions * shape.num_layers))
            if tokens.compact:
                rows = {"row_bytes": 2 * shape.head_dim, "rows": 2 * moved}
                found.append(Kernel("compact_kv", rows, calls=evictions))
        if tokens.dropped == "merge":
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
            if each.kind == "share":
                found += self._share_work(each, batch, steps)
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

    def _share_work(self, each: SliceClass, batch: Batch, steps: int) -> list[Kernel]:
        """Of slices that hold a share of the context: so many of the batch's requests evict in a step, on average."""
        tokens, shape, num = self.tokens, self.shape, len(batch)
        held = batch.share(each.part, each.whole).sum_read(steps)
        evicting: Any = max(1, round(num * (1 - each.part / each.whole)))
        calls: Any = each.slices // shape.num_kv_heads
        if tokens.every > 1:  # one at a time, and several tokens of it
            evicting, calls = 1, calls * batch.pages(tokens.every).num_filled(steps)
        rows, entries = shape.num_kv_heads * evicting, held // num
        found = [Kernel("top_k_select", _choosing(rows, entries, 32), calls=calls)]
        if tokens.dropped == "merge":
            read = held * (evicting * shape.bytes_per_token // 2) // num
            sizes = {"dropped": 1, "kept": held * evicting // num, "num_bytes": read}
            found.append(Kernel("merge_tokens", sizes, calls=calls / shape.num_layers))
        return found

    @property
    def writes_scores(self) -> bool:
        """Decode attention has to give its probabilities."""
        return self.tokens.score == "accumulated" and self.tokens.generated != "append"

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


def _choosing(rows: int, entries: Any, k: int) -> dict[str, Any]:
    """Sizes of choosing the ``k`` best of each row's scores, which are of 4 bytes."""
    return {"rows": rows, "entries": entries, "k": k, "num_bytes": 4 * rows * entries}

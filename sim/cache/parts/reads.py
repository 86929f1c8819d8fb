"""Which tokens a decode step reads: the index that finds them, what of the KV lies in a tier, and the kernels.

Sizes of kernels come twice, as the axes of their tables and as bytes or FLOPs for profiles without such a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

from kvsim.cache.parts.span import KvShape, Span, mean_context
from kvsim.contexts import Ints
from kvsim.cost.work import Column, Kernel, Ramp
from kvsim.entities import Batch, Request
from kvsim.scenario.reads import Reads

META_BITS = 32  # scale and zero of a group
SVD_FLOPS = 6  # of a randomised SVD, for each element and rank
LONGEST_ROW = 16384  # bytes; longer rows are fetched as several
PAGE = 16  # tokens of a page as its scoring was measured; its cost does not depend on them


@dataclass(frozen=True)
class ReadSelector:
    """One selector on one model. Bytes are of all layers, heads and GPUs of a replica."""

    shape: KvShape
    reads: Reads

    share: float = 1.0
    """Of the layers and heads that hold all tokens: in the others there is nothing to choose from."""

    def is_neutral(self, longest: int) -> bool:
        """No request of at most ``longest`` tokens reads less than everything."""
        return min(self.reads.budget, self.reads.prefill_budget or self.reads.budget) >= longest

    # ---- bytes

    @cached_property
    def _selecting(self) -> int:
        """Layers that do not read everything."""
        return max(0, self.shape.num_layers - self.reads.dense_layers)

    @cached_property
    def entry_bytes(self) -> int:
        """Of an entry of the index, where it is held beside the KV."""
        index, shape = self.reads.index, self.shape
        if not index.held or index.kind == "none":
            return 0
        if index.kind == "codes":
            bits = 8.0 * index.parts * shape.num_kv_heads
        else:
            channels = shape.head_dim if index.channels is None else min(index.channels, shape.head_dim)
            vectors = 2 if index.kind in ("bounds", "copy") else 1
            each = index.bits + (0 if index.group is None or index.bits == 16 else META_BITS / index.group)
            bits = vectors * shape.num_kv_heads * channels * each
        return ceil(self._selecting * self.share * bits / 8 * shape.copies)

    def index_bytes(self, tokens: int) -> int:
        """Of ``tokens`` tokens, whole entries, wherever they lie."""
        return -(-tokens // self.reads.index.entry_tokens) * self.entry_bytes

    @property
    def _in_hbm(self) -> bool:
        return self.reads.index.place == "hbm"

    def block_bytes(self, block_tokens: int) -> int:
        """That a block of the KV has beside it: its part of the index, and of the keys' low-rank form."""
        per_entry = -(-block_tokens * self.entry_bytes // self.reads.index.entry_tokens)
        return per_entry * self._in_hbm + block_tokens * self._latent_bytes

    @cached_property
    def _latent_bytes(self) -> int:
        """Of a token's keys in their low-rank form."""
        offload = self.reads.offload
        if offload is None or offload.key_rank is None:
            return 0
        return ceil(2 * self._selecting * offload.key_rank * self.shape.copies)

    @cached_property
    def request_bytes(self) -> int:
        """Of a request whatever its length: the other factor of its keys."""
        offload = self.reads.offload
        if offload is None or offload.key_rank is None:
            return 0
        return ceil(2 * self._selecting * offload.key_rank * self.shape.width * self.shape.copies)

    @cached_property
    def _layer_share(self) -> float:
        """Of all layers and heads: those that choose."""
        return self.share * self._selecting / self.shape.num_layers

    @cached_property
    def leaving_bytes(self) -> int:
        """Of a token, that leave HBM."""
        offload = self.reads.offload
        if offload is None:
            return 0
        return round(self.shape.bytes_per_token * self._layer_share * (1 if offload.leaves == "kv" else 0.5))

    def freed_bytes(self, prompt: int) -> int:
        """HBM that a prompt of ``prompt`` tokens gives back when it is through, room for fetched tokens taken off."""
        offload = self.reads.offload
        if offload is None:
            return 0
        room = offload.resident + ceil(self.reads.budget * offload.buffer)
        return max(0, prompt - room) * self.leaving_bytes

    def tier_bytes(self, prompt: int) -> int:
        """What a prompt has in the tier; nothing if it would free nothing."""
        offload = self.reads.offload
        if offload is None or not self.freed_bytes(prompt):
            return 0
        both = 1 if offload.stored == "kv" else 0.5
        moved = max(0, prompt - offload.resident) * round(
            self.shape.bytes_per_token * self._layer_share * both
        )
        return moved + (0 if self._in_hbm else self.index_bytes(prompt))

    def held_bytes(self, tokens: int, prompt: int) -> int:
        """Beside (or, negative, less than) the KV of ``tokens`` tokens, of them a prompt of ``prompt``."""
        latent = tokens * self._latent_bytes
        index = self.index_bytes(tokens) if self._in_hbm else 0
        return index + latent + self.request_bytes - self.freed_bytes(prompt)

    # ---- kernels

    def prefill_attention(self, past: int, new: int) -> tuple[Kernel, ...]:
        """Look. ``new`` prompt tokens behind ``past`` others."""
        whole = Kernel("prefill_attention", {"new": new, "past": past})
        seen = self.reads.prefill_budget
        if seen is None or past + new // 2 <= seen:
            return (whole,)
        shape = self.shape
        flops = 4 * shape.num_heads * shape.head_dim * shape.num_layers * new * seen
        sizes = {"new": new, "kept": seen, "flops": flops}
        if not self.reads.dense_layers:
            return (Kernel("sparse_prefill[blocks]", sizes),)
        share = self._layer_share
        return whole._replace(calls=1 - share), Kernel("sparse_prefill[blocks]", sizes, calls=share)

    def write_work(self, new: int, prompt: int) -> tuple[Kernel, ...]:
        """Look. The index of ``new`` prompt tokens; ``prompt``: tokens of the whole prompt with its last ones, else 0."""
        index, shape, share = self.reads.index, self.shape, self._layer_share
        found: list[Kernel] = []
        if index.kind == "bounds":
            sizes = {"page": PAGE, "tokens": new, "num_bytes": new * shape.bytes_per_token // 2}
            found.append(Kernel("key_statistics", sizes, calls=share))
        elif index.kind == "copy" or (index.kind == "keys" and index.held and index.bits < 16):
            found.append(self._quantising(new))
        elif index.kind == "codes":
            found.append(self._clustering(new, 256, index.parts * share))
        if prompt and index.rounds:
            entries = max(1, prompt // index.entry_tokens)
            found.append(self._clustering(prompt, entries, index.rounds * share))
        offload = self.reads.offload
        if prompt and offload is not None and offload.key_rank is not None:
            flops = SVD_FLOPS * prompt * shape.width * offload.key_rank * self._selecting
            found.append(
                Kernel("joint_svd", {"num_bytes": prompt * shape.bytes_per_token // 2, "flops": flops})
            )
        return tuple(found)

    def _clustering(self, tokens: int, clusters: int, calls: float) -> Kernel:
        """Every key to the nearest of ``clusters`` vectors, by KV head."""
        shape = self.shape
        sizes = {"tokens": tokens, "clusters": clusters, "num_bytes": tokens * shape.bytes_per_token // 2}
        sizes["flops"] = 2 * shape.num_layers * shape.width * tokens * clusters
        return Kernel("cluster_keys", sizes, calls=calls)

    def new_tokens(self, batch: Batch) -> tuple[Kernel, ...]:
        """Look. What a decode step adds to a copy."""
        index = self.reads.index
        if index.kind != "copy":
            return ()
        return (self._quantising(len(batch)),)

    def _quantising(self, tokens: int) -> Kernel:
        sizes = {"bits": self.reads.index.bits, "tokens": tokens}
        sizes["num_bytes"] = tokens * self.shape.bytes_per_token
        return Kernel("quantise_kv", sizes, calls=self._layer_share)

    def spans(self, batch: Batch, steps: int) -> tuple[Span, ...]:
        """Look. What attention reads: everything in dense layers, the budget in the others."""
        num, share = len(batch), self._layer_share
        selected = Span(share, batch.capped(self.reads.budget).sum_read(steps))
        if share == self.share:
            return (selected,)
        first = batch.sum_context + num
        return Span(self.share - share, Ramp(first, num) if steps > 1 else first), selected

    def select_work(self, batch: Batch, steps: int) -> tuple[Kernel, ...]:
        """Look. Comparing the queries with the index, choosing, and bringing what is chosen together."""
        reads, shape, num = self.reads, self.shape, len(batch)
        beyond = batch.capped(reads.budget).num_beyond(steps)
        often = _flag(beyond) * (self._layer_share / reads.refresh)
        found: list[Kernel] = []
        index = reads.index
        if index.kind != "none":
            entries = self._entries(batch, steps)
            found.append(self._scores(num, entries, often))
            k = max(1, reads.budget // index.entry_tokens)
            rows = num * shape.num_kv_heads
            sizes = {"rows": rows, "entries": entries, "k": k, "num_bytes": entries * (4 * rows)}
            found.append(Kernel("top_k_select", sizes, calls=often * shape.num_layers))
        if reads.gathered:
            moved = beyond * (reads.budget * 2 * self._selecting * shape.num_kv_heads)
            found.append(Kernel("gather_kv", {"row_bytes": 2 * shape.head_dim, "rows": moved}))
        if reads.offload is not None:
            found += self._fetch(batch.total(self.tier_tokens), num)
        return tuple(found)

    def tier_tokens(self, request: Request) -> int:
        """Of a decoding request: tokens that each step reads of what is in the tier, or was fetched from there."""
        prompt = request.cached + request.to_compute
        return min(self.reads.budget, prompt) if self.freed_bytes(prompt) else 0

    def _entries(self, batch: Batch, steps: int) -> Column:
        """Of one sequence on average."""
        num, each = len(batch), self.reads.index.entry_tokens
        if each > 1:
            return mean_context(batch.pages(each).sum_read(steps), num, steps)
        first = batch.sum_context + num
        return mean_context(Ramp(first, num) if steps > 1 else first, num, steps)

    def _scores(self, num: int, entries: Column, often: Any) -> Kernel:
        """Of ``num`` queries against as many ``entries`` each."""
        index, shape = self.reads.index, self.shape
        if not self._in_hbm:
            num_bytes = entries * (num * self.entry_bytes)
            return Kernel("host_scores", {"num_bytes": num_bytes}, calls=often, group="host", lane="cpu")
        sizes: dict[str, Column] = {"batch": num}
        channels = index.channels or shape.head_dim
        if index.kind == "bounds":
            num_bytes = entries * (num * shape.bytes_per_token)
            sizes = {"page": PAGE, **sizes, "pages": entries, "num_bytes": num_bytes}
            return Kernel("page_scores", sizes, calls=often)
        if index.kind == "copy":  # its attention counts, so it is run in every step
            num_bytes = entries * (num * shape.bytes_per_token * index.bits // 16)
            sizes = {"bits": index.bits, **sizes, "context": entries, "num_bytes": num_bytes}
            return Kernel("dequantise_attention", sizes, calls=self._layer_share)
        if index.kind == "codes":
            num_bytes = entries * (num * index.parts * shape.num_kv_heads * shape.num_layers)
            sizes = {"parts": index.parts, **sizes, "entries": entries, "num_bytes": num_bytes}
            return Kernel("vq_scores", sizes, calls=often)
        form = {4: "int4", 2: "int2", 1: "int2"}.get(index.bits, "bfloat16")
        if index.bits == 8:  # by bytes: half of what 16 bits take
            often = often * 0.5
        num_bytes = entries * (num * channels * shape.num_kv_heads * shape.num_layers * index.bits // 8)
        sizes = {"rank": channels, **sizes, "entries": entries, "num_bytes": num_bytes}
        return Kernel(f"token_scores[{form}]", sizes, calls=often)

    def _fetch(self, chosen: int, num: int) -> list[Kernel]:
        """What the step needs of the tier: ``chosen`` tokens, less those that an earlier step fetched."""
        offload, shape = self.reads.offload, self.shape
        assert offload is not None
        if offload.attention == "cpu":
            sizes = {"batch": num, "context": chosen // num}
            sizes["num_bytes"] = chosen * (self._selecting * shape.width * self._tensors * 2)
            calls = self._layer_share * self._tensors / 2
            return [Kernel("cpu_attention", sizes, lane="cpu", group="host", calls=calls)]
        found = []
        group = {"in_turn": "fetch", "beside_keys": "fetch", "ahead": "main"}[offload.fetch]
        if offload.key_rank is not None:
            factors = 2 * shape.num_layers * offload.key_rank
            sizes = {"rank": offload.key_rank, "tokens": chosen}
            sizes |= {"num_bytes": chosen * factors, "flops": chosen * (factors * shape.width)}
            found.append(Kernel("low_rank_reconstruct", sizes, group="fetch", calls=self._layer_share))
        row = (
            2 * shape.head_dim * offload.extent_tokens * (shape.num_kv_heads if offload.heads_together else 1)
        )
        pieces = -(-row // LONGEST_ROW)
        rows = self._selecting * shape.width * self._tensors * 2 / row * (1 - offload.hit_rate) * pieces
        if offload.hit_rate < 1:
            num_rows = ceil(chosen * rows - 1e-9)
            found.append(
                Kernel("host_gather", {"row_bytes": row // pieces, "rows": num_rows}, group=group, lane="h2d")
            )
        return found

    @property
    def _tensors(self) -> int:
        """Keys and values, or values alone."""
        assert self.reads.offload is not None
        return 2 if self.reads.offload.stored == "kv" else 1


def _flag(count: int | Ints) -> Any:
    """1 where there is something, else 0."""
    return (count > 0) * 1

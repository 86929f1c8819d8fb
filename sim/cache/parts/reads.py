"""Which tokens a decode step reads: the index that finds them, what of the KV lies in a tier, and the kernels.

Sizes of kernels come twice, as the axes of their tables and as bytes or FLOPs for profiles without such a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np

from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.offload import Offloaded
from kvsim.cache.parts.span import KvShape, Span
from kvsim.contexts import Ints
from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Column, Kernel, Ramp
from kvsim.entities import Batch, Request
from kvsim.scenario.reads import Reads

META_BITS = 32  # scale and zero of a group
PAGE = 16  # tokens of a page as its scoring was measured; its cost does not depend on them


@dataclass(frozen=True)
class ReadSelector:
    """One selector on one model. Bytes are of all layers, heads and GPUs of a replica."""

    shape: KvShape
    reads: Reads

    share: float = 1.0
    """Of the layers and heads that hold all tokens: in the others there is nothing to choose from."""
    codec: PackedKv | None = None
    """How HBM holds what is read."""
    ratio: float = 1.0
    """Bytes in the tier, and on the link from it, for each byte as HBM holds it."""

    @cached_property
    def offloaded(self) -> Offloaded | None:
        """What lies below HBM."""
        if self.reads.offload is None:
            return None
        return Offloaded(self.shape, self.reads, self._selecting, self._layer_share, self.codec, self.ratio)

    def is_neutral(self, longest: int) -> bool:
        """No request of at most ``longest`` tokens reads less than everything."""
        seen = self.reads.prefill_budget or longest
        return min(self.reads.chosen(longest), seen) >= longest and not self.freed_bytes(longest)

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
        if index.kind == "history":
            bits = 16.0 * index.steps * shape.num_heads
            return ceil(self._selecting * self.share * bits / 8)
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
        latent = 0 if self.offloaded is None else block_tokens * self.offloaded.latent_bytes
        return per_entry * self._in_hbm + latent

    @property
    def request_bytes(self) -> int:
        """Of a request whatever its length."""
        return 0 if self.offloaded is None else self.offloaded.request_bytes

    @cached_property
    def _layer_share(self) -> float:
        """Of all layers and heads: those that choose."""
        return self.share * self._selecting / self.shape.num_layers

    def freed_bytes(self, prompt: int) -> int:
        """HBM that a prompt of ``prompt`` tokens gives back when it is through."""
        return 0 if self.offloaded is None else self.offloaded.freed_bytes(prompt)

    def tier_bytes(self, prompt: int) -> int:
        """What a prompt has in the tier, ``ratio`` left out; nothing if it would free nothing."""
        if self.offloaded is None or not self.freed_bytes(prompt):
            return 0
        return self.offloaded.moved_bytes(prompt) + (0 if self._in_hbm else self.index_bytes(prompt))

    def disk_bytes(self, prompt: int) -> int:
        """Of these, those on the disk."""
        return 0 if self.offloaded is None else self.offloaded.on_disk(self.tier_bytes(prompt))

    def held_bytes(self, tokens: int, prompt: int) -> int:
        """Beside (or, negative, less than) the KV of ``tokens`` tokens, of them a prompt of ``prompt``."""
        latent = 0 if self.offloaded is None else tokens * self.offloaded.latent_bytes
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

    @cached_property
    def _forms(self) -> dict[tuple[int, int, bool], Form]:
        return {}

    def write_work(self, new: int, prompt: int) -> tuple[Kernel | Formed, ...]:
        """Look. The index of ``new`` prompt tokens; ``prompt``: tokens of the whole prompt with its last ones, else 0."""
        index = self.reads.index
        found: list[Kernel | Formed] = []
        if self._writing.kernels:
            found.append(self._writing.at(new))
        if prompt and index.rounds:
            entries = max(1, prompt // index.entry_tokens)
            found.append(self._clustering(prompt, entries, index.rounds * self._layer_share))
        if prompt and self.offloaded is not None:
            found += self.offloaded.prompt_work(prompt)
        return tuple(found)

    @cached_property
    def _writing(self) -> Form:
        """The index of so many tokens."""
        index, shape, share = self.reads.index, self.shape, self._layer_share
        new: Any = Size()
        found: list[Kernel] = []
        if index.kind == "bounds":
            sizes = {"page": PAGE, "tokens": new, "num_bytes": new * shape.bytes_per_token // 2}
            found.append(Kernel("key_statistics", sizes, calls=share))
        elif index.kind == "copy" or (index.kind == "keys" and index.held and index.bits < 16):
            found.append(self._quantising(new))
        elif index.kind == "codes":
            found.append(self._clustering(new, 256, index.parts * share))
        return Form(found)

    def chunk_work(self, past: int, new: int, prompt: int) -> tuple[Kernel, ...]:
        """Look. What ``new`` tokens of a prompt behind ``past`` ones move over the link."""
        if self.offloaded is None:
            return ()
        return self.offloaded.chunk_work(past, new, prompt, self.reads.prefill_budget)

    def _clustering(self, tokens: Any, clusters: int, calls: float) -> Kernel:
        """Every key to the nearest of ``clusters`` vectors, by KV head."""
        shape = self.shape
        sizes = {"tokens": tokens, "clusters": clusters, "num_bytes": tokens * shape.bytes_per_token // 2}
        sizes["flops"] = 2 * shape.num_layers * shape.width * tokens * clusters
        return Kernel("cluster_keys", sizes, calls=calls)

    def new_tokens(self, batch: Batch) -> tuple[Formed, ...]:
        """Look. What a decode step adds to a copy."""
        index = self.reads.index
        if index.kind != "copy":
            return ()
        return (self._writing.at(len(batch)),)

    def _quantising(self, tokens: Any) -> Kernel:
        sizes = {"bits": self.reads.index.bits, "tokens": tokens}
        sizes["num_bytes"] = tokens * self.shape.bytes_per_token
        return Kernel("quantise_kv", sizes, calls=self._layer_share)

    def spans(self, batch: Batch, steps: int) -> tuple[Span, ...]:
        """Look. What attention reads: everything in dense layers, the budget in the others."""
        num, share = len(batch), self._layer_share
        selected = Span(share, self._read(batch, steps))
        if share == self.share:
            return (selected,)
        first = batch.sum_context + num
        return Span(self.share - share, Ramp(first, num) if steps > 1 else first), selected

    def _read(self, batch: Batch, steps: int) -> Column:
        """Tokens that the layers read which choose, of all requests together; a share of them is rounded down."""
        below = self.offloaded
        if self.reads.budget is not None:
            read = batch.capped(self.reads.budget).sum_read(steps)
            if below is None or below.keys.attention != "disk":
                return read
            there = batch.total(self.tier_tokens)
            return Ramp(read.start - there, read.step) if isinstance(read, Ramp) else read - there
        num, part = len(batch), self.reads.part
        first = batch.sum_context + num
        if steps == 1:
            return int(part * first)
        return (part * Ramp(first, num).array(steps)).astype(np.int64)

    def select_work(self, batch: Batch, steps: int) -> list[Kernel | Formed]:
        """Look. Comparing the queries with the index, choosing, and bringing what is chosen together."""
        reads, index, num = self.reads, self.reads.index, len(batch)
        budget = reads.budget
        beyond = num if budget is None else batch.capped(budget).num_beyond(steps)
        found: list[Kernel | Formed] = []
        if index.kind != "none":
            # of a share the mean of the prompts', as what a choice takes hardly depends on it
            chosen = batch.total(self._chosen_tokens) // num if budget is None else budget
            k = max(1, chosen // index.entry_tokens)
            tokens = self._compared(batch, steps)
            if type(beyond) is int:
                form = self._forms.get((num, k, beyond > 0))
                if form is None:
                    form = Form(self._choosing(num, Size() // num, k, (beyond > 0) * 1))
                    self._forms[num, k, beyond > 0] = form
                found.append(form.at(tokens))
            else:
                found += self._choosing(num, (Size() // num).of(tokens, steps), k, (beyond > 0) * 1)
            if index.place == "disk":
                assert self.offloaded is not None
                often = _flag(beyond) * (self._layer_share / reads.refresh)
                found.append(self.offloaded.index_from_disk(batch.total(self._index_on_disk), often))
        if reads.gathered:
            found.append(self._gathering.at(self._read(batch, steps) if budget is None else beyond * budget))
        if self.offloaded is not None:
            found += self.offloaded.fetch(batch.total(self.tier_tokens), num)
        return found

    def _choosing(self, num: int, entries: Any, k: int, often: Any) -> list[Kernel]:
        """Scores of ``entries`` for each of ``num`` queries, and the ``k`` best of them; ``often``: 0 or 1."""
        often = often * (self._layer_share / self.reads.refresh)
        rows = num * self.shape.num_kv_heads
        sizes = {"rows": rows, "entries": entries, "k": k, "num_bytes": entries * (4 * rows)}
        best = Kernel("top_k_select", sizes, calls=often * self.shape.num_layers)
        return [self._scores(num, entries, often), best]

    @cached_property
    def _gathering(self) -> Form:
        """Bringing so many tokens together."""
        shape, tokens = self.shape, Size()
        sizes: dict[str, Any] = {
            "row_bytes": 2 * shape.head_dim,
            "rows": tokens * (2 * self._selecting * shape.num_kv_heads),
        }
        found = [Kernel("gather_kv", sizes)]
        if self.reads.rotated:  # keys, read and written
            sizes = {"tokens": tokens, "num_bytes": tokens * shape.bytes_per_token}
            found.append(Kernel("rotate_keys", sizes, calls=self._layer_share))
        return Form(found)

    def tier_tokens(self, request: Request) -> int:
        """Of a decoding request: tokens that each step reads of what is in the tier, or was fetched from there."""
        prompt = request.cached + request.to_compute
        return self.reads.chosen(prompt) if self.freed_bytes(prompt) else 0

    def _chosen_tokens(self, request: Request) -> int:
        """Of a decoding request's prompt, padding included."""
        return self.reads.chosen(request.pad_input + request.cached + request.to_compute)

    def _index_on_disk(self, request: Request) -> int:
        """Bytes of a decoding request."""
        prompt = request.cached + request.to_compute
        if self.offloaded is None or not self.freed_bytes(prompt):
            return 0
        return self.offloaded.on_disk(self.index_bytes(prompt))

    def _compared(self, batch: Batch, steps: int) -> Any:
        """Entries of all sequences: a column, or a number for each step."""
        each = self.reads.index.entry_tokens
        if each > 1:
            return batch.pages(each).sums_read(steps)
        num = len(batch)
        first = batch.sum_context + num
        return Ramp(first, num) if steps > 1 else first

    def _scores(self, num: int, entries: Any, often: Any) -> Kernel:
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
        if index.kind == "history":  # read, and the scores of this step written
            num_bytes = entries * (num * (self.entry_bytes + self.entry_bytes // index.steps))
            return Kernel("forecast_scores", {"num_bytes": num_bytes}, calls=often)
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


def _flag(count: int | Ints) -> Any:
    """1 where there is something, else 0."""
    return (count > 0) * 1

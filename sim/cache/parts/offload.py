"""What of a prompt lies below HBM, and what steps bring back of it (``cache.reads.offload``).

Rows of a tier have the form in which HBM holds the KV (``codec``), and beyond that ``ratio`` bytes for each byte; what is packed
on the way is unpacked where it arrives, or by the host's cores before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

from kvsim.cache.parts.codec import PackedKv, decomposition
from kvsim.cache.parts.span import KvShape
from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Column, Kernel
from kvsim.scenario.reads import Offload, Reads

LONGEST_ROW = 16384  # bytes; longer rows are fetched as several
LONGEST_COPY = 1 << 28  # bytes; a longer copy is several
LONGEST_DISK_ROW = 1 << 17  # bytes; what lies together on a disk is read in such requests


@dataclass(frozen=True)
class Offloaded:
    """Bytes are of all layers, heads and GPUs of a replica.

    ``num_layers`` layers choose what they read, which is ``share`` of all layers and heads.
    """

    shape: KvShape
    reads: Reads
    num_layers: int
    share: float
    codec: PackedKv | None = None
    ratio: float = 1.0

    @cached_property
    def keys(self) -> Offload:
        assert self.reads.offload is not None
        return self.reads.offload

    # ---- bytes

    @cached_property
    def latent_bytes(self) -> int:
        """Of a token's keys in their low-rank form."""
        if self.keys.key_rank is None:
            return 0
        return ceil(2 * self.num_layers * self.keys.key_rank * self.shape.copies)

    @cached_property
    def request_bytes(self) -> int:
        """Of a request whatever its length: the other factor of its keys."""
        if self.keys.key_rank is None:
            return 0
        return ceil(2 * self.num_layers * self.keys.key_rank * self.shape.width * self.shape.copies)

    def _token_bytes(self, what: str) -> int:
        """Of a token in the layers that choose: ``kv`` or ``values``."""
        plain = self.shape.bytes_per_token if self.codec is None else self.codec.token_bytes
        values = 0.5 if self.codec is None else self.codec.values_share
        return round(plain * self.share * (1 if what == "kv" else values))

    @cached_property
    def leaving_bytes(self) -> int:
        """Of a token, that leave HBM."""
        return self._token_bytes(self.keys.leaves)

    @cached_property
    def stored_bytes(self) -> int:
        """Of a token, that come to the tier, ``ratio`` left out."""
        return self._token_bytes(self.keys.stored)

    def freed_bytes(self, prompt: int) -> int:
        """HBM that a prompt of ``prompt`` tokens gives back when it is through, room for fetched tokens taken off."""
        chosen = self.reads.budget or self.reads.chosen(prompt)
        room = self.keys.resident + ceil(chosen * self.keys.buffer)
        return max(0, prompt - room) * self.leaving_bytes

    def moved_bytes(self, prompt: int) -> int:
        """What of a prompt's KV lies in the tier; nothing if it would free nothing."""
        if not self.freed_bytes(prompt):
            return 0
        return max(0, prompt - self.keys.resident) * self.stored_bytes

    def on_disk(self, num_bytes: int) -> int:
        """Of so many bytes below HBM those that lie on the disk."""
        return 0 if self.keys.disk is None else round(num_bytes * self.keys.disk.share)

    # ---- a prompt that leaves as it is computed (``trigger: chunk``)

    def staging_bytes(self, prompt: int) -> int:
        """HBM through which the layers of a prompt pass while it is computed: one is attended to, the next is fetched."""
        if self.keys.trigger == "prefill" or not self.freed_bytes(prompt):
            return 0
        tokens = prompt if self.keys.staging is None else min(prompt, self.keys.staging)
        return ceil(2 * tokens * self.leaving_bytes / self.num_layers)

    def staging_blocks(self, prompt: int, block_bytes: int) -> int:
        return -(-self.staging_bytes(prompt) // block_bytes)

    def prefill_blocks(self, prompt: int, block_bytes: int) -> int:
        """Blocks beyond those of all its tokens that a prompt takes at most until it is through; below zero: it does without."""
        freed = self.freed_bytes(prompt) // block_bytes
        rounding = 1 if freed else 0  # a shorter part of it may have freed one less
        return self.staging_blocks(prompt, block_bytes) + rounding - freed

    def chunk_work(self, past: int, new: int, prompt: int, seen: int | None) -> tuple[Kernel, ...]:
        """Look. ``new`` tokens of a prompt go out, layer by layer, and what they see of ``past`` ones comes back, at most
        ``seen`` tokens."""
        if self.keys.trigger == "prefill" or not self.freed_bytes(prompt):
            return ()
        resident = self.keys.resident
        below = max(0, past - resident)
        out = max(0, past + new - resident) - below
        back = below if seen is None else min(below, seen)
        found = [self._copy("d2h", out), self._copy("h2d", back)]
        return tuple(kernel for kernels in found for kernel in kernels)

    def _copy(self, lane: str, tokens: int) -> tuple[Kernel, ...]:
        """Contiguous copies beside the step, in pieces of at most :data:`LONGEST_COPY`."""
        stored = tokens * self.stored_bytes
        num_bytes = round(stored * self.ratio)
        if not num_bytes:
            return ()
        pieces = -(-num_bytes // LONGEST_COPY)
        sizes = {"num_bytes": -(-num_bytes // pieces), "pieces": 1}
        copy = Kernel(f"host_copy[{lane},pinned]", sizes, pieces, lane=lane)
        if self.ratio == 1 or lane == "d2h":
            return (copy,)
        return copy, Kernel("unpack_kv", {"num_bytes": stored + num_bytes})

    # ---- kernels of steps

    def prompt_work(self, prompt: int) -> tuple[Kernel, ...]:
        """Look. What is done to a prompt when it is through."""
        rank, shape = self.keys.key_rank, self.shape
        if rank is None:
            return ()
        return (decomposition(prompt, shape.width, rank, self.num_layers),)

    @cached_property
    def _rebuilding(self) -> Form:
        """The keys of so many tokens."""
        shape, rank, tokens = self.shape, self.keys.key_rank, Size()
        assert rank is not None
        factors = 2 * shape.num_layers * rank
        sizes: dict[str, Any] = {"rank": rank, "tokens": tokens}
        sizes |= {"num_bytes": tokens * factors, "flops": tokens * (factors * shape.width)}
        return Form([Kernel("low_rank_reconstruct", sizes, group="fetch", calls=self.share)])

    def fetch(self, chosen: int, num: int) -> list[Kernel | Formed]:
        """Look. What a step of ``num`` requests needs of the tier: ``chosen`` tokens, less those that an earlier step fetched."""
        keys = self.keys
        if keys.attention == "disk":
            return [*self._from_disk(chosen, "fetch")]
        if keys.attention == "cpu":
            return self._on_the_host(chosen, num)
        found: list[Kernel | Formed] = []
        group = {"in_turn": "fetch", "beside_keys": "fetch", "ahead": "main"}[keys.fetch]
        if keys.key_rank is not None:
            found.append(self._rebuilding.at(chosen))
        if keys.hit_rate == 1:
            return found
        found += self._from_disk(ceil(chosen * (1 - keys.hit_rate) - 1e-9), group)
        on_host = keys.unpack == "host"
        found.append(self._gather(chosen, group, 1.0 if on_host else self.ratio))
        if self.ratio < 1:
            fetched = ceil(chosen * (1 - keys.hit_rate) - 1e-9) * self.stored_bytes
            num_bytes = fetched + round(fetched * self.ratio)  # written, and read
            if on_host:
                found.append(Kernel("host_unpack", {"num_bytes": num_bytes}, group=group, lane="cpu"))
            else:
                found.append(Kernel("unpack_kv", {"num_bytes": num_bytes}))
        return found

    @cached_property
    def _gathers(self) -> dict[float, tuple[float, Form]]:
        return {}

    def _gather(self, chosen: int, group: str, ratio: float) -> Formed:
        """Rows over the link, of ``ratio`` bytes for each byte in HBM's form."""
        found = self._gathers.get(ratio)
        if found is None:
            found = self._gathers[ratio] = self._gathering(group, ratio)
        rows, form = found
        return form.at(ceil(chosen * rows - 1e-9))

    def _gathering(self, group: str, ratio: float) -> tuple[float, Form]:
        """Rows of a token, and what some rows take."""
        keys = self.keys
        plain = self._row_bytes
        row = plain * ratio * self._form
        pieces = ceil(row / LONGEST_ROW)
        rows = self._plain_bytes / plain * (1 - keys.hit_rate) * pieces
        sizes: dict[str, Any] = {"row_bytes": max(1, round(row / pieces)), "rows": Size()}
        return rows, Form([Kernel("host_gather", sizes, group=group, lane="h2d")])

    def _on_the_host(self, chosen: int, num: int) -> list[Kernel | Formed]:
        """The host's cores attend to what lies there, at 16 bits."""
        plain = chosen * self._plain_bytes
        # calls: what of K and V of all layers it attends to
        whole = chosen * 4 * self.shape.num_layers * self.shape.width
        sizes = {"batch": num, "context": chosen // num, "num_bytes": whole}
        calls = self.share * self._tensors / 2
        attention = Kernel("cpu_attention", sizes, lane="cpu", group="host", calls=calls)
        found: list[Kernel | Formed] = [attention]
        found += self._from_disk(chosen, "host")
        if self.ratio * self._form < 1:
            num_bytes = plain + round(plain * self.ratio * self._form)
            found.append(Kernel("host_unpack", {"num_bytes": num_bytes}, lane="cpu", group="host"))
        return found

    def _from_disk(self, tokens: int, group: str) -> list[Kernel]:
        """Of ``tokens`` tokens that lie below HBM, those that the disk holds: its reads stream beside the link."""
        disk = self.keys.disk
        if disk is None:
            return []
        rows = (
            tokens * self._plain_bytes / self._row_bytes * (disk.share if disk.reads is None else disk.reads)
        )
        row = max(1, round(self._row_bytes * self._form * self.ratio))
        return [self._disk_reads(row, ceil(rows - 1e-9), group)]

    def index_from_disk(self, num_bytes: int, calls: Column) -> Kernel:
        """Look. Reading so many bytes of an index, which lie together."""
        rows = -(-round(num_bytes * self.ratio) // LONGEST_DISK_ROW)
        return self._disk_reads(LONGEST_DISK_ROW, rows, "host")._replace(calls=calls)

    def _disk_reads(self, row_bytes: int, rows: int, group: str) -> Kernel:
        """``waits``: one after another, as a layer's choice is made when the layer before it is through."""
        waits = 1 if self.keys.fetch == "ahead" else self.num_layers
        sizes = {"row_bytes": row_bytes, "waits": waits, "rows": rows}
        return Kernel("disk_gather", sizes, group=group, lane="disk")

    @cached_property
    def _row_bytes(self) -> int:
        """Of what lies together below HBM, at 16 bits."""
        heads = self.shape.num_kv_heads if self.keys.heads_together else 1
        return 2 * self.shape.head_dim * self.keys.extent_tokens * heads

    @cached_property
    def _plain_bytes(self) -> int:
        """Of what is below HBM of a token, at 16 bits."""
        return self.num_layers * self.shape.width * self._tensors * 2

    @property
    def _tensors(self) -> int:
        """Keys and values, or values alone."""
        return 2 if self.keys.stored == "kv" else 1

    @cached_property
    def _form(self) -> float:
        """Bytes of a row as HBM holds it, for each byte at 16 bits."""
        if self.codec is None:
            return 1.0
        if self.keys.stored == "kv":
            return self.codec.ratio
        return 2 * self.codec.ratio * self.codec.values_share

"""What the attention kernels share: paged KV caches in one large pool, queries that tell a wrong mask, references.

A cache is laid out as vLLM's: (block, K or V, token in the block, KV head, head_dim), blocks of 16 tokens in
random order. The sets of a launch are block tables over the same pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Plan

BLOCK_SIZE = 16  # tokens; vLLM's default
MOST_SETS = 64
POOL_BYTES = 40e9  # of KV that one point may hold over all its sets
MAX_CONTEXT = 131072
TORCH_DTYPE = {"bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
Heads = tuple[int, int, int]  # (heads, KV heads, head_dim)
Axes = tuple[tuple[int, ...], tuple[int, ...]]  # values of a grid's two axes


@dataclass(frozen=True)
class PagedCache:
    """K and V of one batch of sequences, ``sets`` times over."""

    blocks: torch.Tensor  # (num_blocks, 2, BLOCK_SIZE, kv_heads, head_dim): the whole pool
    tables: Sequence[torch.Tensor]  # of each set: (sequences, blocks of the longest), int32
    contexts: Sequence[int]  # tokens of each sequence
    lengths: torch.Tensor  # the same on the device, int32

    @property
    def sets(self) -> int:
        return len(self.tables)

    @property
    def kv_heads(self) -> int:
        return int(self.blocks.shape[3])

    @property
    def head_dim(self) -> int:
        return int(self.blocks.shape[4])

    def read(self, sequence: int, kv_head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of one sequence of set 0 and one head: (context, head_dim) each, float32."""
        context = self.contexts[sequence]
        table = self.tables[0][sequence, : -(-context // BLOCK_SIZE)].long()
        found = _indexable(self.blocks)[:, :, :, kv_head][table]  # (blocks, 2, BLOCK_SIZE, head_dim)
        both = (
            found.view(self.blocks.dtype).transpose(0, 1).reshape(2, -1, self.head_dim)[:, :context].float()
        )
        return both[0], both[1]

    def keys_at(self, sequences: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """K of set 0 at (sequence, position) pairs: (pairs, kv_heads, head_dim), float32."""
        block = self.tables[0][sequences, positions // BLOCK_SIZE].long()
        found = _indexable(self.blocks)[block, 0, positions % BLOCK_SIZE]
        return found.view(self.blocks.dtype).float()


def paged_cache(
    bench: Bench,
    contexts: Sequence[int],
    kv_heads: int,
    head_dim: int,
    dtype: str = "bfloat16",
    cold_tokens: int | None = None,
    least_pool_bytes: float = 0.0,
) -> PagedCache:
    """Random KV of sequences with these contexts, cold in L2.

    ``cold_tokens``: how many of them the engine finds cold (all by default); they decide the number of sets.
    ``least_pool_bytes``: the pool's size on a GPU if the sets need no more, so that neighbouring points share it.
    """
    needed = [-(-context // BLOCK_SIZE) for context in contexts]
    torch_dtype = TORCH_DTYPE[dtype]
    token_bytes = 2 * kv_heads * head_dim * torch_dtype.itemsize
    sets = cold_sets(bench, token_bytes * (sum(contexts) if cold_tokens is None else cold_tokens))
    block = 2 * BLOCK_SIZE * kv_heads * head_dim
    least = 0
    if bench.on_gpu:
        least = int(min(least_pool_bytes, bench.facts.memory_bytes / 2)) // torch_dtype.itemsize
    pool = flat_pool(bench, max(sets * sum(needed) * block, least), torch_dtype)
    blocks = pool[: pool.numel() // block * block].view(-1, 2, BLOCK_SIZE, kv_heads, head_dim)
    order = bench.permutation(blocks.shape[0])[: sets * sum(needed)].to(torch.int32).view(sets, -1)
    columns = torch.arange(max(needed), device=bench.device)
    used = columns[None] < torch.tensor(needed, device=bench.device)[:, None]
    tables = []
    for i in range(sets):
        table = torch.zeros(used.shape, dtype=torch.int32, device=bench.device)
        table[used] = order[i]
        tables.append(table)
    lengths = torch.tensor(list(contexts), dtype=torch.int32, device=bench.device)
    return PagedCache(blocks, tables, list(contexts), lengths)


def flat_pool(bench: Bench, elements: int, dtype: torch.dtype) -> torch.Tensor:
    """``elements`` random numbers or more, kept for the next points; it grows when one needs more."""
    piece = 1 << 28
    largest = bench.keep("pool size", dtype, lambda: [1 << 16])
    if elements > largest[0]:
        largest[0] = -(-elements // piece) * piece if elements > piece else 1 << (elements - 1).bit_length()
    size = largest[0]

    def make() -> torch.Tensor:
        pool = torch.empty(size, dtype=dtype, device=bench.device)
        for start in range(0, size, piece):  # in pieces: fp8 numbers are drawn in bfloat16
            pool[start : start + piece] = bench.randn(min(piece, size - start), dtype=dtype)
        return pool

    return bench.keep("pool", (dtype, size), make)


def cold_sets(bench: Bench, num_bytes: float) -> int:
    """Sets that outgrow L2 four times over.

    Twice is not enough for a cache that is read once and in order: with random replacement 12 % of it would
    still be found in L2 (the hit rate h solves h = exp(-2.4 (1 - h))), of four times 2 %.
    """
    return bench.sets(num_bytes / 2, most=MOST_SETS)


def cold_bytes(bench: Bench, num_bytes: float, sets: int) -> float:
    """``num_bytes`` if ``sets`` of them cannot stay in L2, else 0: what may be counted as read from HBM."""
    return num_bytes if sets * num_bytes >= 2 * bench.facts.l2_bytes else 0.0


def pointed_queries(bench: Bench, heads: int, visible: torch.Tensor, *keys: torch.Tensor) -> torch.Tensor:
    """Random queries that lean towards given keys, so that a key lost or seen too much shows: (rows, heads, head_dim).

    Each of ``keys`` (rows, kv_heads, head_dim) gets a weight that balances the random sum over the ``visible``
    (rows,) keys of its row: exp(score) = e sqrt(visible), since the weights exp(N(0, 1)) of the others add up to
    e sqrt(visible) as a random walk. Plain random queries over 128k keys would hide a missing one below 0.3 %.
    """
    rows, kv_heads, head_dim = keys[0].shape
    queries = bench.randn(rows, heads, head_dim, dtype=torch.float32)
    lean = (1 + 0.5 * visible.float().log()) / math.sqrt(head_dim)
    for key in keys:
        queries += lean[:, None, None] * key.float().repeat_interleave(heads // kv_heads, 1)
    return queries.to(torch.bfloat16)


def reference(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of (rows, head_dim) over (context, head_dim), float32; row i sees the first ``visible[i]`` keys."""
    return probabilities(queries, keys, visible) @ values.float()


def probabilities(
    queries: torch.Tensor, keys: torch.Tensor, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax of the scores of :func:`reference`: (rows, context), float32."""
    scores = queries.float() @ keys.float().T / math.sqrt(queries.shape[-1])
    if visible is not None:
        hidden = torch.arange(keys.shape[0], device=keys.device)[None] >= visible[:, None]
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(-1)


def decode_error(
    found: torch.Tensor, queries: torch.Tensor, cache: PagedCache, sequences: Sequence[int]
) -> float:
    """Worst relative error of (sequences, heads, head_dim) over sampled sequences, first and last KV head."""
    group = queries.shape[1] // cache.kv_heads
    errors = []
    for sequence in sequences:
        for kv_head in sample(cache.kv_heads, 2):
            own = slice(kv_head * group, (kv_head + 1) * group)
            expected = reference(queries[sequence, own], *cache.read(sequence, kv_head))
            errors.append(relative_error(found[sequence, own], expected))
    return worst(errors)


def chunk_error(
    found: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
) -> float:
    """Relative error of sampled rows of one head: row i of (rows, head_dim) sees keys up to ``positions[i]``."""
    rows = torch.tensor(sample(len(positions), 8), device=positions.device)
    expected = reference(queries.float()[rows], keys, values, positions[rows] + 1)
    return worst([relative_error(found[row], expected[i]) for i, row in enumerate(rows.tolist())])


def sample(count: int, most: int) -> list[int]:
    """At most ``most`` of 0 .. count - 1, evenly spread, with the first and the last."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)})


def plain_decode(queries: torch.Tensor, cache: PagedCache, i: int) -> torch.Tensor:
    """What the Triton kernel computes, in torch, for a CPU: (sequences, heads, head_dim) of set ``i``."""
    group = queries.shape[1] // cache.kv_heads
    held = cache.blocks[cache.tables[i].long()]  # (sequences, blocks, 2, BLOCK_SIZE, kv_heads, head_dim)
    keys, values = held.permute(2, 0, 4, 1, 3, 5).flatten(3, 4).repeat_interleave(group, 2).float()
    mask = torch.arange(keys.shape[2], device=keys.device)[None] < cache.lengths[:, None]
    found = torch.nn.functional.scaled_dot_product_attention(
        queries[:, :, None].float(), keys, values, attn_mask=mask[:, None, None]
    )
    return found[:, :, 0].to(queries.dtype)


def first_heads(plan: Plan) -> Heads:
    """Of the plan's first model on one GPU: what the dense grids are for."""
    shape = plan.shapes[0]
    return shape.heads, shape.kv_heads, shape.model.head_dim


def heads_by_rank(plan: Plan) -> list[Heads]:
    """Every combination of heads, that of :func:`first_heads` first."""
    first = first_heads(plan)
    others = plan.heads(split=plan.size == "full")
    return [first, *(heads for heads in others if heads != first)]


def fits(heads: Heads, batch: int, context: int, most_bytes: float = POOL_BYTES) -> bool:
    """Whether the bfloat16 KV of these sequences fits ``most_bytes``."""
    return batch * context * 2 * heads[1] * heads[2] * 2 <= most_bytes


def num_sms(bench: Bench) -> int:
    """Streaming multiprocessors of the GPU; 2 on a CPU, where it only decides what a test covers."""
    if not bench.on_gpu:
        return 2
    return int(torch.cuda.get_device_properties(bench.device).multi_processor_count)


def _indexable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor  # not every torch indexes fp8

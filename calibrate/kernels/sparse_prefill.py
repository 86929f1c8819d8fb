"""Prefill attention over some blocks of keys: sinks and a sliding window, or blocks that were chosen for each head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import Heads, first_heads, flat_pool, heads_by_rank, reference, sample

TILE, BLOCK = 128, 64  # queries that share a list of blocks; keys of a block
DIAGONAL = TILE // BLOCK + 1
NEW = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
KEPT = (256, 512, 1024, 2048, 4096, 8192, 16384)
COARSE = ((128, 1024, 8192), (256, 2048, 16384))
PATTERNS = ("window", "blocks")
SIZES = ("heads", "kv_heads", "head_dim", "new", "kept")


class SparsePrefill(Kernel):
    """The last ``new`` tokens of a context; each tile of 128 of them sees ``kept`` tokens in blocks of 64.

    ``window``: the first block and the newest ones (StreamingLLM, LServe, DuoAttention's streaming heads). ``blocks``:
    the first, the newest two or three, and others at random, other ones for each head and tile (MInference, XAttention).
    """

    name = "sparse_prefill"
    columns = ("pattern", "head_dim", "heads", "kv_heads", "new", "kept")
    needs = ("triton",)
    summary = "prefill attention over a window or over chosen blocks, so many tokens for each tile of queries"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(pattern, (4, 2, 32), 200, 256) for pattern in PATTERNS]
        found: list[Point] = []
        for heads in plan.pick(heads_by_rank(plan), [first_heads(plan)], []):
            news, kept = plan.pick((NEW, KEPT), COARSE, COARSE) if heads == first_heads(plan) else COARSE
            found += [_point(p, heads, n, k) for p in PATTERNS for n in news for k in kept]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, new, kept = (int(point[name]) for name in SIZES)
        # as far back again as is kept, so that every tile finds so much before it
        past = -(-2 * kept // BLOCK) * BLOCK
        context = past + new
        size = context * kv_heads * head_dim
        pool = flat_pool(bench, 2 * size, torch.bfloat16)
        keys, values = pool[: 2 * size].view(2, context, kv_heads, head_dim)
        queries = bench.randn(new, heads, head_dim)
        lists = block_lists(bench, str(point["pattern"]), heads, new, past, kept)
        counts = torch.full(lists.shape[:2], lists.shape[2], dtype=torch.int32, device=bench.device)
        own = torch.arange(past, context, device=bench.device)

        def seen(head: int, row: int) -> torch.Tensor:
            """Keys that one query sees."""
            found = (
                lists[head, row // TILE, :, None].long() * BLOCK + torch.arange(BLOCK, device=bench.device)
            ).flatten()
            return found[found <= own[row]]

        def alone(head: int, row: int) -> torch.Tensor:
            kv, at = head * kv_heads // heads, seen(head, row)
            return reference(queries[row : row + 1, head], keys[at, kv], values[at, kv])[0]

        mask = None if bench.on_gpu else visible(lists, new, context)

        def run(i: int) -> torch.Tensor:
            if bench.on_gpu:
                from kvsim.calibrate.triton.sparse_prefill import sparse_prefill

                return sparse_prefill(queries, keys, values, lists, counts)
            found = scaled_dot_product_attention(
                queries.transpose(0, 1),
                *(part.transpose(0, 1).repeat_interleave(heads // kv_heads, 0) for part in (keys, values)),
                attn_mask=mask,
            )
            return found.transpose(0, 1)

        def error() -> float:
            found = run(0)
            some = [(row, head) for row in sample(new, 8) for head in sample(heads, 2)]
            return worst([relative_error(found[row, head], alone(head, row)) for row, head in some])

        before = (
            _last_block(new, past, bench.device) - DIAGONAL + 1
        ) * BLOCK  # where the newest blocks begin
        pairs = float((own - before + 1 + (kept // BLOCK - DIAGONAL) * BLOCK).sum())
        return Launch(run, error, tolerance=1e-2, flops=4.0 * heads * head_dim * pairs)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        return [
            _point(
                PATTERNS[i % 2],
                first_heads(plan),
                min(max(new, NEW[0]), NEW[-1]),
                min(max((new + past) // 4 // BLOCK * BLOCK, KEPT[0]), KEPT[-1]),
            )
            for i, (new, past) in enumerate(draw.chunks)
        ]

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.sparse_prefill"


def _last_block(new: int, past: int, device: torch.device) -> torch.Tensor:
    """Of each query: the last block that its tile's last query sees."""
    row = torch.arange(new, device=device)
    return (past + (row // TILE * TILE + TILE - 1).clamp_max(new - 1)) // BLOCK


def visible(lists: torch.Tensor, new: int, context: int) -> torch.Tensor:
    """(heads, new, context): which keys each query sees."""
    tile = torch.arange(new, device=lists.device) // TILE
    block = torch.arange(context, device=lists.device) // BLOCK
    listed = (lists[..., None] == block[::BLOCK]).any(2)[:, tile][..., block]
    own = torch.arange(context - new, context, device=lists.device)
    return listed & (torch.arange(context, device=lists.device) <= own[:, None])


def block_lists(bench: Bench, pattern: str, heads: int, new: int, past: int, kept: int) -> torch.Tensor:
    """(heads, tiles, kept / 64) int32, ascending: the first block, the tile's newest three, and the pattern's others."""
    last = _last_block(new, past, bench.device)[::TILE]
    count = kept // BLOCK
    others = count - 1 - DIAGONAL
    newest = last[:, None] - torch.arange(DIAGONAL - 1, -1, -1, device=bench.device)
    if pattern == "window":
        before = newest[:, :1] - torch.arange(others, 0, -1, device=bench.device)
        chosen = before.expand(heads, -1, -1)
    else:
        span = past // BLOCK - DIAGONAL  # blocks 1 .. span lie before every tile's newest
        draw = bench.randn(heads, len(last), span, dtype=torch.float32)
        chosen = draw.topk(others, dim=-1).indices.sort(dim=-1).values + 1
    first = torch.zeros(heads, len(last), 1, dtype=torch.int64, device=bench.device)
    return torch.cat([first, chosen, newest.expand(heads, -1, -1)], -1).to(torch.int32).contiguous()


def _point(pattern: str, heads: Heads, new: int, kept: int) -> Point:
    return {
        "pattern": pattern,
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "new": new,
        "kept": kept,
    }

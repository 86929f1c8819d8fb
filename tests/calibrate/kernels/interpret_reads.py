"""Run by test_kv_triton.py under TRITON_INTERPRET=1; prints the name of every kernel that gave the right result."""

from __future__ import annotations

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import hadamard_keys as rotation
from kvsim.calibrate.kernels import hash_scores as hashes
from kvsim.calibrate.kernels import prune_kv, sparse_prefill, token_scores, vq_scores
from kvsim.calibrate.kernels.paged import reference
from kvsim.calibrate.kernels.quantise_kv import GROUP, dequantise, quantise
from kvsim.calibrate.triton import bitmap_attention, code_scores, hadamard_keys, nearest_rows, ragged_decode
from kvsim.calibrate.triton import sparse_prefill as sparse
from kvsim.calibrate.triton import token_scores as scores
from kvsim.calibrate.triton.dequantise_attention import dequantise_attention

BENCH = Bench(find_device("cpu"))
FLOAT = torch.float32
NAN = float("nan")


def check_ragged_decode() -> None:
    cache, heads, kv_heads, head_dim = BENCH.randn(40, 2, 16, 32, dtype=FLOAT), 6, 2, 32
    lengths = torch.tensor([[300, 20], [1, 129]], dtype=torch.int32)
    tables = BENCH.permutation(40)[:38].to(torch.int32).repeat(4)[: 2 * 2 * 19].view(2, 2, 19)
    queries = BENCH.randn(2, heads, head_dim, dtype=FLOAT)
    for each in (64, 128, 320):
        found = ragged_decode.ragged_decode(queries, cache, tables, lengths, 300, each)
        for b in range(2):
            for h in range(kv_heads):
                length = int(lengths[b, h])
                kv = (
                    cache[tables[b, h, : -(-length // 16)].long()]
                    .transpose(0, 1)
                    .reshape(2, -1, head_dim)[:, :length]
                )
                mine = slice(3 * h, 3 * h + 3)
                assert relative_error(found[b, mine], reference(queries[b, mine], *kv)) < 1e-5, (each, b, h)


def check_sparse_prefill() -> None:
    heads, kv_heads, head_dim, kept = 4, 2, 16, 320
    for pattern, new in (("window", 200), ("blocks", 130), ("blocks", 30)):
        past = 2 * kept
        keys, values = BENCH.randn(2, past + new, kv_heads, head_dim, dtype=FLOAT)
        queries = BENCH.randn(new, heads, head_dim, dtype=FLOAT)
        lists = sparse_prefill.block_lists(BENCH, pattern, heads, new, past, kept)
        assert lists.diff(dim=-1).min() > 0  # no block twice
        counts = torch.full(lists.shape[:2], lists.shape[2], dtype=torch.int32)
        found = sparse.sparse_prefill(queries, keys, values, lists, counts)
        for row in (0, 1, 29, new - 1):
            for head in (0, heads - 1):
                seen = (lists[head, row // 128, :, None].long() * 64 + torch.arange(64)).flatten()
                seen = seen[seen <= past + row]
                kv = head // 2
                expected = reference(queries[row, head][None], keys[seen, kv], values[seen, kv])[0]
                assert relative_error(found[row, head], expected) < 1e-5, (pattern, row, head)


def check_token_scores() -> None:
    queries = BENCH.randn(2, 6, 64, dtype=FLOAT)
    for bits in (16, 4, 2):
        keys = BENCH.randn(2, 2, 300, 64, dtype=FLOAT)
        if bits < 16:
            keys = BENCH.randint(256, 2, 2, 300, 64 * bits // 8, dtype=torch.uint8)
        found = scores.token_scores(queries, keys, 2, bits, torch.full((2, 2, 300), NAN))
        assert relative_error(found, token_scores.plain(queries, keys, bits)) < 1e-6, bits


def check_hash_scores() -> None:
    for words in (1, 4):
        queries, codes = hashes.random_words(BENCH, 2, 6, words), hashes.random_words(BENCH, 2, 2, 300, words)
        found = code_scores.hash_scores(queries, codes, 2, torch.full((2, 2, 300), NAN))
        assert torch.equal(found, hashes.plain(queries, codes))


def check_vq_scores() -> None:
    codes = BENCH.randint(256, 2, 2, 3, 300, dtype=torch.uint8)
    tables = BENCH.randn(2, 2, 3, 3, 256, dtype=FLOAT)
    found = code_scores.vq_scores(tables.view(2, 6, 3, 256), codes, torch.full((2, 2, 300), NAN))
    assert relative_error(found, vq_scores.plain(tables, codes)) < 1e-6


def check_nearest_rows() -> None:
    rows, centres = BENCH.randn(2, 150, 32, dtype=FLOAT), BENCH.randn(2, 70, 32, dtype=FLOAT)
    bias = BENCH.randn(2, 70, dtype=FLOAT)
    nearest = nearest_rows.nearest_rows(rows, centres, bias, torch.full((2, 150), -1, dtype=torch.int32))
    assert torch.equal(nearest.long(), (rows @ centres.mT + bias[:, None]).argmax(-1))
    sums, numbers = torch.zeros(2, 70, 32), torch.zeros(2, 70)
    nearest_rows.add_rows(rows, nearest, sums, numbers)
    chosen = torch.nn.functional.one_hot(nearest.long(), 70).float()
    assert relative_error(sums, chosen.mT @ rows) < 1e-6
    assert torch.equal(numbers, chosen.sum(1))


def check_hadamard_keys() -> None:
    rows = BENCH.randn(70, 64, dtype=FLOAT)
    found = hadamard_keys.hadamard_keys(rows, rotation.hadamard(64), torch.full_like(rows, NAN))
    assert relative_error(found, rotation.butterflies(rows)) < 1e-6


def check_choose() -> None:
    for kept in (38, 64):
        rows = BENCH.randn(50, 128, dtype=torch.float16)
        keep, padded = torch.full((50,), NAN), torch.zeros(50, 2, dtype=torch.int32)
        bitmap_attention.choose(rows, keep, padded, kept, 8)
        least = torch.topk(rows.abs(), kept, dim=-1).values.amin(-1)
        assert torch.equal(keep, least.float())
        numbers = (rows.abs() >= least[:, None]).view(50, 2, 64).sum(-1)
        assert torch.equal(padded.long(), -(-numbers // 8) * 8)


def check_bitmaps() -> None:
    batch, heads, kv_heads, head_dim, context = 2, 6, 2, 128, 150
    kv = []
    for _ in range(2):
        rows = BENCH.randn(batch * kv_heads * context, head_dim, dtype=FLOAT)
        rows[5, :64] = 100 + rows[5, :64].abs()  # a tile that is kept whole, and one that is not at all
        plain = prune_kv.prune(BENCH, rows, 50)
        least = torch.topk(rows.abs(), 64, dim=-1).values.amin(-1).repeat_interleave(2)
        bitmaps, values = torch.empty_like(plain.bitmaps), torch.empty_like(plain.values)
        bitmap_attention.pack(rows.view(-1, 64), least, plain.starts, bitmaps, values)
        assert torch.equal(bitmaps, plain.bitmaps)
        assert bitmaps[10] == -1
        assert bitmaps[11] == 0
        tiles = torch.arange(len(bitmaps))
        back = prune_kv.unpack(prune_kv.Pruned(bitmaps, plain.starts, values), tiles)
        kept = rows.abs() >= least[::2, None]
        assert torch.equal(back.view(rows.shape), torch.where(kept, rows, 0.0))
        kv.append(([bitmaps, plain.starts, values], back.view(batch, kv_heads, context, head_dim)))
    queries = BENCH.randn(batch, heads, head_dim, dtype=FLOAT)
    for splits in (1, 2, 4):
        found = bitmap_attention.bitmap_attention(queries, kv[0][0], kv[1][0], context, kv_heads, splits)
        for b in range(batch):
            for h in range(kv_heads):
                mine = slice(3 * h, 3 * h + 3)
                expected = reference(queries[b, mine], kv[0][1][b, h], kv[1][1][b, h])
                assert relative_error(found[b, mine], expected) < 1e-5, (splits, b, h)


def check_outliers() -> None:
    batch, kv_heads, head_dim, packed = 2, 2, 64, 96
    queries = BENCH.randn(batch, 6, head_dim, dtype=FLOAT)
    window = [BENCH.randn(batch, kv_heads, GROUP, head_dim, dtype=FLOAT) for _ in range(2)]
    contexts = torch.full((batch,), packed + 7, dtype=torch.int32)
    for bits in (4, 2):
        kv = [quantise(BENCH.randn(batch, kv_heads, packed, head_dim), bits, j == 0) for j in range(2)]
        which = BENCH.randint(head_dim, 2, batch, kv_heads, packed, 3, dtype=torch.uint8)
        more = BENCH.randn(2, batch, kv_heads, packed, 3, dtype=FLOAT)
        whole = []
        for j in range(2):
            held = dequantise(kv[j], bits, j == 0).scatter_add_(-1, which[j].long(), more[j])
            whole.append(torch.cat([held, window[j][:, :, :7]], 2))
        for splits in (1, 3):
            scratch = (torch.empty(batch, 6, splits, head_dim), torch.empty(batch, 6, splits))
            found = dequantise_attention(
                bits, queries, [*kv[0]], [*kv[1]], window, contexts, splits, torch.empty_like(queries), *scratch,
                [which[0], more[0], which[1], more[1]],
            )  # fmt: skip
            for b in range(batch):
                for h in range(kv_heads):
                    mine = slice(3 * h, 3 * h + 3)
                    expected = reference(queries[b, mine], whole[0][b, h], whole[1][b, h])
                    assert relative_error(found[b, mine], expected) < 1e-5, (bits, splits)


CHECKS = (
    check_ragged_decode,
    check_sparse_prefill,
    check_token_scores,
    check_hash_scores,
    check_vq_scores,
    check_nearest_rows,
    check_hadamard_keys,
    check_choose,
    check_bitmaps,
    check_outliers,
)

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(check.__name__.removeprefix("check_"))

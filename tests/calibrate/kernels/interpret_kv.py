"""Run by test_kv_triton.py under TRITON_INTERPRET=1; prints the name of every kernel that gave the right result."""

from __future__ import annotations

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import low_rank_reconstruct as latents
from kvsim.calibrate.kernels import page_scores as pages
from kvsim.calibrate.kernels import rematerialise_kv
from kvsim.calibrate.kernels import rotate_keys as rotation
from kvsim.calibrate.kernels.dequantise_attention import plain
from kvsim.calibrate.kernels.quantise_kv import GROUP, dequantise, empty, packed_error, quantise
from kvsim.calibrate.triton.dequantise_attention import dequantise_attention
from kvsim.calibrate.triton.dequantise_rows import dequantise_rows
from kvsim.calibrate.triton.low_rank_reconstruct import low_rank_reconstruct
from kvsim.calibrate.triton.move_rows import gather_rows, move_rows
from kvsim.calibrate.triton.page_scores import page_scores
from kvsim.calibrate.triton.quantise_kv import quantise_kv
from kvsim.calibrate.triton.rotate_keys import rotate_keys

BENCH = Bench(find_device("cpu"))
FLOAT = torch.float32


def check_quantise_kv() -> None:
    for bits in (8, 4, 2):
        keys, values = BENCH.randn(64, 2, 64), BENCH.randn(64, 2, 64)
        packed = [empty(bits, (2, 64, 64), by_channel, BENCH) for by_channel in (True, False)]
        quantise_kv(bits, keys, values, [*packed[0]], [*packed[1]])
        for new, found, by_channel in ((keys, packed[0], True), (values, packed[1], False)):
            new = new.transpose(0, 1)
            assert packed_error(new, found, bits, by_channel, range(2)) < 5e-3
            plainly = quantise(new, bits, by_channel)
            assert (plainly.codes != found.codes).double().mean() < 0.01  # ties aside


def check_dequantise_attention() -> None:
    batch, kv_heads, head_dim, room = 2, 2, 64, 192
    queries = BENCH.randn(batch, 6, head_dim, dtype=FLOAT)
    window = [BENCH.randn(batch, kv_heads, GROUP, head_dim, dtype=FLOAT) for _ in range(2)]
    for bits in (8, 4, 2):
        keys, values = (
            quantise(BENCH.randn(batch, kv_heads, room, head_dim), bits, by_channel)
            for by_channel in (True, False)
        )
        for splits, lengths in ((1, (224, 70)), (3, (223, 33)), (4, (40, 161))):
            contexts = torch.tensor(lengths, dtype=torch.int32)
            partial, sums = torch.empty(batch, 6, splits, head_dim), torch.empty(batch, 6, splits)
            found = torch.empty_like(queries)
            dequantise_attention(
                bits, queries, [*keys], [*values], window, contexts, splits, found, partial, sums
            )
            for b, context in enumerate(lengths):
                fresh = (context - 1) % GROUP + 1
                k = torch.cat(
                    [dequantise(keys, bits, True)[b, :, : context - fresh], window[0][b, :, :fresh]], 1
                )
                v = torch.cat(
                    [dequantise(values, bits, False)[b, :, : context - fresh], window[1][b, :, :fresh]], 1
                )
                expected = torch.nn.functional.scaled_dot_product_attention(
                    queries[b].unsqueeze(1), k, v, enable_gqa=True
                )
                assert relative_error(found[b], expected.squeeze(1)) < 1e-5, (bits, splits, b)
        full = plain(bits, queries, keys, values, *window, GROUP)
        assert full.shape == queries.shape


def check_dequantise_rows() -> None:
    for bits in (8, 4, 2):
        codes = BENCH.randint(256, 21, 256 * bits // 8, dtype=torch.uint8)
        scale, zero = BENCH.randn(21, 2, dtype=FLOAT), BENCH.randn(21, 2, dtype=FLOAT)
        found = dequantise_rows(bits, codes, scale, zero, torch.full((21, 256), float("nan")))
        assert relative_error(found, rematerialise_kv.plain(bits, (codes, scale, zero))) < 1e-6


def check_page_scores() -> None:
    queries = BENCH.randn(2, 6, 64, dtype=FLOAT)
    lows, highs = (BENCH.randn(2, 2, 70, 64, dtype=FLOAT) for _ in range(2))
    found = page_scores(queries, lows, highs, torch.full((2, 2, 70), float("nan")))
    assert relative_error(found, pages.plain(queries, lows, highs)) < 1e-6


def check_move_rows() -> None:
    for row_bytes in (128, 2560, 4096):
        pool = BENCH.randint(1 << 30, 200, row_bytes // 4, dtype=torch.int32)
        before, order = pool.clone(), BENCH.permutation(200).to(torch.int32)
        source, target = order[:70], order[100:170]
        found = gather_rows(pool, source, torch.empty(70, row_bytes // 4, dtype=torch.int32))
        assert torch.equal(found, pool[source.long()])
        move_rows(pool, source, target)
        before[target.long()] = before[source.long()]
        assert torch.equal(pool, before)


def check_rotate_keys() -> None:
    cache = BENCH.randn(6, 16, 3, 64, dtype=FLOAT)
    expected = cache.clone()
    pages, shifts = torch.tensor([5, 0, 2], dtype=torch.int32), BENCH.randint(50, 37, dtype=torch.int32)
    angles = rotation.tables(64, torch.device("cpu"), 50)
    rotate_keys(cache, pages, shifts, *angles)
    rotation.plain(expected, pages, shifts, *angles)
    assert relative_error(cache, expected) < 1e-6


def check_low_rank_reconstruct() -> None:
    latent, weight = BENCH.randn(75, 128, dtype=FLOAT), BENCH.randn(128, 3 * 64, dtype=FLOAT)
    positions = BENCH.randint(50, 75, dtype=torch.int32)
    angles = rotation.tables(64, torch.device("cpu"), 50)
    found = low_rank_reconstruct(latent, weight, positions, *angles, torch.empty(75, 3, 64))
    assert relative_error(found, latents.plain(latent, weight, positions, *angles)) < 1e-6


CHECKS = (
    check_quantise_kv,
    check_dequantise_attention,
    check_dequantise_rows,
    check_page_scores,
    check_move_rows,
    check_rotate_keys,
    check_low_rank_reconstruct,
)

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(check.__name__.removeprefix("check_"))

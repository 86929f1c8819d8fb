"""Kernels of sparse, merged and coded KV: by hand, their bytes, and that a wrong result is seen."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import (
    hadamard_keys,
    hash_scores,
    merge_tokens,
    prune_kv,
    token_scores,
    vq_scores,
)
from kvsim.calibrate.kernels.ragged_decode import RaggedDecode, num_full
from kvsim.calibrate.kernels.sparse_prefill import SparsePrefill, block_lists

BENCH = Bench(find_device("cpu"))


def test_products_of_codes_by_hand() -> None:
    queries = torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]])  # one sequence, one head
    keys = torch.tensor([[[[0b11_10_01_00]]]], dtype=torch.uint8)  # channels 0, 1, 2, 3 at two bits
    assert token_scores.plain(queries, keys, 2).tolist() == [[[0 + 10 + 200 + 3000]]]
    halves = torch.tensor([[[[0x21, 0x43]]]], dtype=torch.uint8)  # byte c holds channels c and c + 2
    assert token_scores.plain(queries, halves, 4).tolist() == [[[1 + 30 + 200 + 4000]]]


def test_bits_that_agree_by_hand() -> None:
    queries = torch.tensor([[[0], [-1]]], dtype=torch.int32)  # two heads of one KV head
    codes = torch.tensor([[[[0b111], [-1], [-2]]]], dtype=torch.int32)
    assert hash_scores.plain(queries, codes).tolist() == [[[29.0, 32.0, 31.0]]]


def test_looked_up_products_by_hand() -> None:
    tables = torch.zeros(1, 1, 1, 2, 256)
    tables[0, 0, 0, 0, 7], tables[0, 0, 0, 1, 9] = 3.0, 4.0
    codes = torch.tensor([[[[7, 7], [9, 0]]]], dtype=torch.uint8)  # parts before entries
    assert vq_scores.plain(tables, codes).tolist() == [[[7.0, 3.0]]]


def test_butterflies_are_the_matrix() -> None:
    assert hadamard_keys.hadamard(4).tolist() == [
        [1, 1, 1, 1],
        [1, -1, 1, -1],
        [1, 1, -1, -1],
        [1, -1, -1, 1],
    ]
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).double()
    expected = rows @ hadamard_keys.hadamard(64).double() / 8
    assert torch.allclose(hadamard_keys.butterflies(rows), expected)


def test_a_worse_centre_and_a_wrong_mean_are_seen() -> None:
    rows = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]])
    centres, bias = torch.eye(2)[None], torch.zeros(1, 2)
    nearest = torch.zeros(1, 3, dtype=torch.int32)
    merge_tokens.find(BENCH, rows, centres, bias, nearest)
    assert nearest.tolist() == [[0, 1, 0]]
    assert merge_tokens.choice_error(rows, centres, bias, nearest) == 0.0
    assert merge_tokens.choice_error(rows, centres, bias, 1 - nearest) > 0.5
    held = centres.repeat(2, 1, 1, 1)
    merged = torch.tensor([[[[2.9 / 3, 0.1 / 3], [0.0, 1.0]]]] * 2)
    gone = rows.repeat(2, 1, 1, 1)
    assert max(merge_tokens.sums_errors(merged, gone, held, nearest)) < 1e-6
    assert max(merge_tokens.sums_errors(held, gone, held, nearest)) > 0.01


@pytest.mark.parametrize("kept", prune_kv.KEPT)
def test_pruned_rows_come_back_and_take_what_their_form_says(kept: int) -> None:
    rows = BENCH.randn(20, 128)
    pruned = prune_kv.prune(BENCH, rows, kept)
    back = prune_kv.unpack(pruned, torch.arange(40)).view(20, 128)
    count = prune_kv.channels(kept, 128)
    assert count == {30: 38, 50: 64}[kept]
    stays = back != 0
    assert (stays.sum(1) >= count).all()  # ties stay
    assert torch.equal(back[stays], rows[stays])
    assert (pruned.starts % 8 == 0).all()  # a tile's non-zeros are padded to eight
    smallest = torch.where(stays, rows.abs().float(), torch.inf).amin(1)
    assert (torch.where(stays, 0.0, rows.abs().float()).amax(1) < smallest).all()


def test_lists_of_blocks_are_what_the_patterns_say() -> None:
    window = block_lists(BENCH, "window", 2, 200, 640, 320)
    # tiles end at positions 640 + 127 and 640 + 199: blocks 11 and 13
    assert window[0].tolist() == [[0, 8, 9, 10, 11], [0, 10, 11, 12, 13]]
    chosen = block_lists(BENCH, "blocks", 2, 200, 1280, 640)
    assert chosen.shape == (2, 2, 10)
    assert (chosen[..., 0] == 0).all()
    assert (chosen.diff(dim=-1) > 0).all()
    assert not torch.equal(chosen[0], chosen[1])  # each head its own


def test_bytes_and_flops_are_those_of_what_is_read() -> None:
    point = {"head_dim": 32, "heads": 8, "kv_heads": 4, "full": 25, "batch": 2, "context": 400}
    launch = RaggedDecode().prepare(point, BENCH)
    assert num_full(4, 25) == 1
    tokens = 2 * (400 + 3 * 320)
    assert launch.flops == tokens * 2 * 4 * 32  # of the group's two query heads
    point = {"pattern": "window", "head_dim": 32, "heads": 4, "kv_heads": 2, "new": 128, "kept": 256}
    launch = SparsePrefill().prepare(point, BENCH)
    # one tile at 512 .. 639: all see the block of sinks, query i the newest 192 keys but 127 - i
    assert launch.flops == 4 * 4 * 32 * sum(64 + 192 - (127 - i) for i in range(128))

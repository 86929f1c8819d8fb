"""Attention kernels: the shared reference against torch's, what the check catches, figures by hand, vLLM's call."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import contiguous_decode, flash_layouts, paged, vllm_flash
from kvsim.calibrate.kernels.contiguous_decode import ContiguousDecode
from kvsim.calibrate.kernels.decode_attention import DecodeAttention, uneven
from kvsim.calibrate.kernels.kernel import Draw, Plan, Shape
from kvsim.calibrate.kernels.prefill_attention import PrefillAttention
from kvsim.calibrate.kernels.score_reduction import ScoreReduction
from kvsim.calibrate.kernels.shared_prefix_decode import SharedPrefixDecode
from kvsim.model.load import load_model

CPU = find_device("cpu")
LLAMA = Shape(load_model("llama-3.1-8b"), 1)
HEADS = {"kv_dtype": "bfloat16", "head_dim": 32, "heads": 6, "kv_heads": 2}
DECODE = {"backend": "triton", "contexts": "uneven", **HEADS, "batch": 5, "context": 40}
PREFILL = {"backend": "torch", **HEADS, "new": 20, "past": 37}


@pytest.fixture
def bench() -> Bench:
    return Bench(CPU)


@pytest.fixture
def vllm_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What the kernels pass to vllm's functions, which a stand-in computes."""
    path = Path(__file__).with_name("fake_vllm.py")
    spec = importlib.util.spec_from_file_location("fake_vllm", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.install(monkeypatch)


def test_reference_is_causal_attention() -> None:
    queries, keys, values = torch.randn(5, 16), torch.randn(9, 16), torch.randn(9, 16)
    found = paged.reference(queries, keys, values, torch.arange(5, 10))
    mask = torch.ones(5, 9).tril(4).bool()
    expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    assert torch.allclose(found, expected, atol=1e-6)
    two = paged.probabilities(torch.tensor([[2.0]]), torch.tensor([[0.0], [math.log(3) / 2]]))
    assert torch.allclose(two, torch.tensor([[0.25, 0.75]]))  # e^0 to e^(ln 3)


def test_cache_reads_what_its_tables_name(bench: Bench) -> None:
    cache = paged.paged_cache(bench, [3, 33], kv_heads=2, head_dim=8)
    keys, values = cache.read(1, 1)
    for position in (0, 16, 32):
        block = cache.tables[0][1, position // 16]
        assert torch.equal(keys[position], cache.blocks[block, 0, position % 16, 1].float())
        assert torch.equal(values[position], cache.blocks[block, 1, position % 16, 1].float())
    used = [*cache.tables[0][0, :1].tolist(), *cache.tables[0][1].tolist()]
    assert len(set(used)) == 4
    assert torch.equal(cache.keys_at(torch.tensor([1]), torch.tensor([32]))[0, 1], keys[32])


@pytest.mark.parametrize("lost", ["last key", "first block"])
def test_decode_check_sees_lost_keys(bench: Bench, lost: str) -> None:
    contexts = [4000, 50, 700]
    cache = paged.paged_cache(bench, contexts, 2, 32)
    last = cache.keys_at(torch.arange(3), cache.lengths - 1)
    queries = paged.pointed_queries(bench, 4, cache.lengths, last)
    assert paged.decode_error(paged.plain_decode(queries, cache, 0), queries, cache, range(3)) < 5e-3
    if lost == "last key":
        wrong = replace(cache, lengths=cache.lengths - 1)
    else:
        wrong = replace(cache, tables=[torch.cat([t[:, 1:2], t[:, 1:]], 1) for t in cache.tables])
    found = paged.plain_decode(queries, wrong, 0)
    assert paged.decode_error(found, queries, cache, range(3)) > 3e-2
    assert math.isnan(paged.decode_error(found * math.nan, queries, cache, range(3)))


@pytest.mark.parametrize("shift", [-1, 1])
def test_prefill_check_sees_a_mask_that_is_off_by_one(bench: Bench, shift: int) -> None:
    cache = paged.paged_cache(bench, [3000], 1, 32)
    positions = torch.arange(2900, 3000)
    zero = torch.zeros_like(positions)
    after = (positions + 1).clamp_max(2999)
    own, next_ = cache.keys_at(zero, positions), cache.keys_at(zero, after)
    queries = paged.pointed_queries(bench, 1, positions + 1, own, next_)[:, 0]
    keys, values = cache.read(0, 0)
    right, wrong = (paged.reference(queries, keys, values, positions + 1 + s) for s in (0, shift))
    assert paged.chunk_error(right.bfloat16(), queries, keys, values, positions) < 5e-3
    assert paged.chunk_error(wrong.bfloat16(), queries, keys, values, positions) > 1e-1


def test_figures_of_a_point_by_hand(bench: Bench) -> None:
    prefill = PrefillAttention().prepare({**PREFILL, "new": 4, "past": 2}, bench)
    # queries see 3, 4, 5 and 6 keys; 2 products of 2 FLOPs a head dimension, 6 heads of 32
    assert prefill.flops == 4 * 6 * 32 * (3 + 4 + 5 + 6)
    assert prefill.num_bytes == 2 * 2 * 2 * 32 * 2  # two tokens, K and V, two heads of 32, two bytes
    decode = DecodeAttention().prepare(DECODE, bench)
    assert decode.num_bytes == 5 * 40 * 2 * 2 * 32 * 2
    assert decode.flops == 4 * 5 * 40 * 6 * 32


def test_uneven_contexts_average_exactly_what_was_asked() -> None:
    lengths = uneven(32, 4096)
    assert sum(lengths) == 32 * 4096 and lengths == uneven(32, 4096)
    assert min(lengths) < 4096 / 4 and max(lengths) > 2 * 4096
    assert sorted(lengths) != lengths


def test_off_grid_points_stay_on_the_grid() -> None:
    plan = Plan("full", (LLAMA,))
    draw = Draw(tokens=[9], chunks=[(3, 70), (2011, 999_999)], decodes=[(600, 999_999), (3, 1234)])
    prefills = [(p["new"], p["past"]) for p in PrefillAttention().off_grid(plan, draw)]
    assert prefills == [(16, 70), (2011, 114688)]
    clipped, kept = DecodeAttention().off_grid(plan, draw)
    assert paged.fits((32, 8, 128), int(clipped["batch"]), int(clipped["context"]))
    assert (kept["batch"], kept["context"]) == (3, 1234)


def test_vllm_is_called_as_its_engine_calls_it(bench: Bench, vllm_calls: list[dict[str, object]]) -> None:
    for kernel, point in ((DecodeAttention(), DECODE), (PrefillAttention(), PREFILL)):
        launch = kernel.prepare({**point, "backend": "vllm"}, bench)
        assert launch.error() <= launch.tolerance
    schedule, decode, _, prefill = vllm_calls
    assert schedule["page_size"] == 16 and schedule["num_splits"] == decode["num_splits"] == 32
    assert schedule["max_seqlen_k"] == max(uneven(5, 40)) and decode["max_seqlen_k"] == 131072
    assert decode["scheduler_metadata"] is not None and decode["max_seqlen_q"] == 1
    assert (prefill["max_seqlen_q"], prefill["max_seqlen_k"], prefill["causal"]) == (20, 57, True)
    grid = DecodeAttention().points(Plan("full", (LLAMA,)))
    assert grid[0]["backend"] == "vllm" and {p["kv_dtype"] for p in grid} == {"bfloat16", "fp8"}
    long = PrefillAttention().prepare({**PREFILL, "backend": "vllm", "new": 513}, bench)
    long.run(0)
    assert vllm_calls[-1]["num_splits"] == 0  # more tokens than a CUDA graph holds


def test_score_reduction_by_hand(bench: Bench) -> None:
    """Two heads of one KV head, one query each, keys of equal score: every key gets 1/9 of each query."""
    launch = ScoreReduction().prepare(
        {"head_dim": 16, "heads": 2, "kv_heads": 1, "window": 1, "context": 9}, bench
    )
    kept = bench.keep("pool", bench._kept["pool"][0], list)
    kept.zero_()
    assert torch.allclose(launch.run(0).float(), torch.full((1, 8), 1 / 9), atol=1e-3)
    assert launch.error() <= launch.tolerance
    kept[4 * 16 : 5 * 16] = (
        1.0  # key 4 alone differs; the pooling spreads the largest over 3 keys on either side
    )
    found = launch.run(0)[0].float()
    assert launch.error() <= launch.tolerance
    assert found[1:8].max() - found[1:8].min() < 1e-6


@pytest.mark.parametrize("form", ["padded", "hf"])
def test_contiguous_decode_sees_the_newest_token(bench: Bench, form: str) -> None:
    point = {"form": form, "head_dim": 32, "heads": 6, "kv_heads": 2, "batch": 2, "context": 500}
    launch = ContiguousDecode().prepare(point, bench)
    assert launch.error() <= launch.tolerance and launch.num_bytes == 2 * 500 * 2 * 2 * 32 * 2
    found = launch.run(0)
    assert found.shape == (2, 6, 1, 32)
    repeated = contiguous_decode._repeated(torch.arange(2.0).view(1, 2, 1, 1), 3)
    assert repeated.flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_shared_prefix_counts_the_prefix_once(bench: Bench) -> None:
    point = {"head_dim": 32, "heads": 6, "kv_heads": 2, "batch": 3, "prefix": 64, "context": 40}
    launch = SharedPrefixDecode().prepare(point, bench)
    assert launch.num_bytes == (64 + 3 * 40) * 2 * 2 * 32 * 2
    assert launch.flops == 4 * 3 * (64 + 40) * 6 * 32


@pytest.mark.parametrize("flash", [2, 3])
@pytest.mark.parametrize(("new", "context"), [(1, 40), (24, 70)])
def test_flash_attention_over_pages_is_that_over_one_piece(
    bench: Bench,
    vllm_calls: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    flash: int,
    new: int,
    context: int,
) -> None:
    """The same K and V in either layout; FlashAttention 2 has no schedule."""
    monkeypatch.setattr(vllm_flash, "version", lambda: flash)
    cache = paged.paged_cache(bench, [context] * 3, kv_heads=2, head_dim=32)
    whole = torch.stack(
        [torch.stack([torch.stack(cache.read(s, h)) for h in range(2)], 2).bfloat16() for s in range(3)], 1
    )[None]
    queries, lens = bench.randn(3 * new, 6, 32), [new] * 3
    by_pages = vllm_flash.flash_attention(queries, cache, lens, new == 1)(0).clone()
    in_one = vllm_flash.contiguous_attention(queries, whole, lens)(0)
    assert torch.equal(by_pages, in_one)
    schedules = [call for call in vllm_calls if "page_size" in call]
    assert [call["page_size"] for call in schedules] == ([] if flash == 2 else [16, None])


def test_layouts_are_checked_against_the_reference(bench: Bench) -> None:
    """A chunk of 24 behind 40."""
    for layout in flash_layouts.LAYOUTS:
        launch = flash_layouts.layout_launch(bench, layout, (4, 2, 32), 1, 24, 64)
        assert launch.error() < 1e-2
        assert launch.flops == 4 * 4 * 32 * (24 * 40 + 24 * 25 / 2)

"""Prices done by hand on a profile with a dozen points (see the fixture ``tiny``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Column, Kernel, Ramp, StepWork
from kvsim.errors import CalibrationError

from .conftest import TINY_MODEL

Make = Callable[..., KernelCostModel]

LAYERS = 2
# 2 layers x 4 GEMMs x 10 us + LM head 10 us, up to 16 rows
LINEAR = 90_000


def decode(num_seqs: Column, sum_context: Column, steps: int = 1) -> StepWork:
    sizes = {"num_seqs": num_seqs, "sum_context": sum_context}
    return StepWork(steps, 1, 1, (Kernel("decode_attention", sizes),))


def prefill(*chunks: tuple[int, int], also: tuple[Kernel, ...] = ()) -> StepWork:
    kernels = tuple(Kernel("prefill_attention", {"new": new, "past": past}) for new, past in chunks)
    return StepWork(1, 1, 1, (*kernels, *also))


def times(model: KernelCostModel, work: StepWork) -> list[int]:
    return [int(step) for step in model.price(work).step_ns]


def test_decode_is_exact_on_grid_points_and_straight_between(tiny: Make) -> None:
    assert times(tiny(), decode(1, Ramp(1, 50), 3)) == [LINEAR + 8_000, LINEAR + 12_000, LINEAR + 16_000]


def test_decode_goes_on_beyond_its_longest_context(tiny: Make) -> None:
    model = tiny()
    assert times(model, decode(2, 2 * 51)) == [LINEAR + 32_000]
    assert times(model, decode(2, 2 * 101)) == [
        LINEAR + 52_000
    ]  # 0.4 us more a token of mean context, 2 layers


def test_decode_beyond_the_largest_batch_grows_with_it(tiny: Make) -> None:
    assert times(tiny(), decode(4, 4 * 1)) == [LINEAR + 24_000]


def test_a_prompt_is_exact_on_grid_points_and_a_power_between(tiny: Make) -> None:
    model = tiny()
    assert times(model, prefill((4, 0))) == [LINEAR + 16_000]
    assert times(model, prefill((16, 0))) == [LINEAR + 64_000]
    assert times(model, prefill((8, 0))) == [LINEAR + 32_000]  # 8 us at 4 to 32 at 16: proportional
    assert times(model, prefill((32, 0))) == [LINEAR + 256_000]  # beyond: quadratic


def test_a_chunk_over_a_past_is_the_difference_of_two_prompts_plus_a_launch(tiny: Make) -> None:
    # T(16) - T(8) + T(1) = 32 - 16 + 4 us
    assert times(tiny(), prefill((8, 8))) == [LINEAR + LAYERS * 20_000]


def test_a_chunk_costs_no_less_than_the_same_tokens_alone(tiny: Make) -> None:
    model = tiny()
    for new in (1, 3, 8):
        assert times(model, prefill((new, 5))) >= times(model, prefill((new, 0)))


def test_attention_of_one_step_is_launched_once(tiny: Make) -> None:
    model = tiny()
    # 8 + 8 us, less one launch of 4 us
    assert times(model, prefill((4, 0), (4, 0))) == [LINEAR + LAYERS * 12_000]
    both = decode(1, 101).kernels
    assert times(model, prefill((4, 0), also=both)) == [LINEAR + LAYERS * 12_000]


def test_gemm_rows_between_grid_points(tiny: Make) -> None:
    model = tiny()
    assert times(model, StepWork(1, 24, 0, ())) == [LAYERS * 4 * 15_000]
    assert times(model, StepWork(1, 64, 0, ())) == [LAYERS * 4 * 40_000]  # beyond the grid: by rows


def test_engine_terms(tiny: Make) -> None:
    terms = EngineTerms(step_ns=1_000, prefill_factor=1.25, mixed_attention_factor=2.0)
    model = tiny(terms=terms)
    assert times(model, decode(1, 1)) == [LINEAR + 8_000 + 1_000]  # a decode step is not scaled
    mixed = prefill((4, 0), also=decode(1, 1).kernels)
    # linear + 2 x (8 - 4) us + 2 x decode, in whole steps x 1.25
    kernels_ns = LINEAR + 8_000 + 2 * 8_000
    assert times(model, mixed) == [1.25 * kernels_ns + 1_000]


def test_measured_decode_terms(tiny: Make) -> None:
    """A multiple of the roofline by CUDA graph size and a KV read rate stand in for the table."""
    terms = EngineTerms(
        step_ns=7,
        graph_factors=((1, 2.0), (5, 4.0)),
        kv_read_bytes_per_s=1e9,
        uneven_factors=((2, 1.25), (4, 1.75)),
    )
    model = tiny(terms=terms)
    floor = model.setting.roofline.time_ns(0, 2 * model._weights)
    (first,), (second,) = times(model, decode(1, 0)), times(model, decode(1, 100))
    assert first == pytest.approx(2 * floor, abs=1)
    per_token = (second - first) / 100  # bytes of a token at 1 byte a ns
    assert times(model, decode(3, 100)) == pytest.approx([3 * floor + 150 * per_token], abs=1)
    assert times(model, decode(9, 0)) == pytest.approx([4 * floor], abs=1)
    mixed = prefill((4, 0), also=decode(1, 1).kernels)
    table = tiny(terms=EngineTerms(step_ns=7, kv_read_bytes_per_s=1e9))
    assert times(model, mixed) == times(table, mixed)  # not one graph


def test_another_model_takes_beyond_its_kernels_what_the_fitted_one_does(tiny: Make) -> None:
    """Its own kernels, and not those of the fitted model's constant as well."""
    engine = EngineTerms(stall_ns=300, graph_factors=((1, 1.0), (2, 1.0)), kv_read_bytes_per_s=1e9)
    fitted = replace(TINY_MODEL, num_layers=4)
    model = tiny(terms=replace(engine, kv_read_bytes_per_s=0, fitted=(fitted, engine)))
    # 1,024 tokens of 1,024 bytes at 1 byte a ns; 17 GEMMs and 4 layers of attention
    beyond_ns = 1024 * 1024 - 17 * 10_000 - 4 * (4_000 + 1023 * 40)
    assert times(model, decode(1, 1)) == pytest.approx([LINEAR + 8_000 + beyond_ns + 300], abs=1)
    twice = StepWork(1, 2, 2, decode(2, 2).kernels)
    beyond_ns = 2 * 1024 * 1024 - 17 * 10_000 - 4 * (6_000 + 1023 * 200)
    assert times(model, twice) == pytest.approx([LINEAR + 12_000 + beyond_ns + 300], abs=1)
    many = StepWork(1, 9, 9, decode(2, 2).kernels)  # more than any graph
    assert times(model, many) == times(model, twice)


def test_uneven_contexts_add_less_to_more_kv_heads_than_were_fitted() -> None:
    engine = EngineTerms(uneven_factors=((4, 1.4), (8, 1.2)))
    other = replace(engine, fitted=(replace(TINY_MODEL, num_kv_heads=2), engine))
    assert other.uneven_factor(2, 2) == engine.uneven_factor(2, 2) == 1.4
    assert other.uneven_factor(2, 8) == pytest.approx(1.1)
    assert other.uneven_factor(4, 1) == engine.uneven_factor(4, 1) == 1.4  # no fewer


def test_a_decode_step_waits_for_stalls(tiny: Make) -> None:
    """On average; a step with prefill does not, and a CUDA graph has no other constant."""
    terms = EngineTerms(step_ns=1_000, stall_ns=300)
    model = tiny(terms=terms)
    assert times(model, decode(1, Ramp(1, 50), 2)) == [LINEAR + 9_300, LINEAR + 13_300]
    mixed = prefill((4, 0), also=decode(1, 1).kernels)
    assert times(model, mixed) == times(tiny(terms=EngineTerms(step_ns=1_000)), mixed)
    graphs = EngineTerms(step_ns=1_000, graph_factors=((1, 2.0),))
    both = [times(tiny(terms=found), decode(1, 1))[0] for found in (graphs, replace(graphs, stall_ns=300))]
    assert both[1] == both[0] + 300


def test_the_price_of_shared_kv_goes_by_its_bytes(tiny: Make) -> None:
    model = tiny(terms=EngineTerms(shared_factors=((1024, 0.2), (3072, 0.6))))
    assert model.spared_tokens(50, 8) == 30  # 256 bytes of a token and layer
    assert model.spared_tokens(50, 0) == 40 and model.spared_tokens(50, 10**6) == 20
    assert tiny().spared_tokens(50, 2) == 0


def test_lanes_run_side_by_side_and_groups_in_turn(tiny: Make) -> None:
    model = tiny()
    copy = Kernel("copy_h2d", {"num_bytes": 1e6}, lane="h2d")  # 20 us at 50 GB/s
    slow = Kernel("gather_h2d", {"rows": 1000, "row_bytes": 1e4}, lane="h2d")  # 200 us
    after = Kernel("quant_kv", {"num_bytes": 1e10}, group="after")  # 10 us at 1e15 B/s
    plain = decode(1, 1)
    assert times(model, plain._replace(kernels=(*plain.kernels, copy))) == [LINEAR + 8_000]
    assert times(model, plain._replace(kernels=(*plain.kernels, slow))) == [200_000]
    assert times(model, plain._replace(kernels=(*plain.kernels, slow, after))) == [210_000]
    shared = model.price(plain._replace(kernels=(*plain.kernels, slow)), {"h2d": 0.5})
    assert list(shared.step_ns) == [400_000]


def test_hidden_lanes_do_not_count(tiny: Make) -> None:
    model = tiny()
    slow = Kernel("gather_h2d", {"rows": 1000, "row_bytes": 1e4}, lane="h2d")
    plain = decode(1, 1)
    work = plain._replace(kernels=(*plain.kernels, slow))
    model.account(model.price(work), 0, 1)
    assert model.used_ns() == {("gather_h2d", "extrapolated"): 200_000}


def test_calls_scale_a_kernel(tiny: Make) -> None:
    half = Kernel("decode_attention", {"num_seqs": 1, "sum_context": 1}, calls=0.5)
    by_step = half._replace(calls=np.array([1, 2]))
    model = tiny()
    assert times(model, StepWork(1, 1, 1, (half,))) == [LINEAR + 4_000]
    assert times(model, StepWork(2, 1, 1, (by_step,))) == [LINEAR + 8_000, LINEAR + 16_000]


def test_used_time_by_kernel_and_provenance(tiny: Make) -> None:
    model = tiny(terms=EngineTerms(step_ns=500))
    model.account(model.price(decode(1, Ramp(95, 1), 10)), 0, 10)
    used = model.used_ns()
    assert used[("engine", "measured")] == 5_000
    assert used[("qkv_proj", "imported")] == 10 * LAYERS * 10_000
    # one sequence was run up to 101 tokens, and no batch read more than 2 x 51: 7 steps, 1 step, 2 steps
    decodes = {key[1]: time_ns for key, time_ns in used.items() if key[0] == "decode_attention"}
    steps = times(model, decode(1, Ramp(95, 1), 10))
    attention = [time_ns - LINEAR - 500 for time_ns in steps]
    assert decodes == {
        "imported": sum(attention[:7]),
        "derived": attention[7],
        "extrapolated": sum(attention[8:]),
    }


@pytest.mark.parametrize(
    "work",
    [
        decode(4, 4),
        decode(1, 100_000),
        decode(1, Ramp(90, 1), 20),
        prefill((17, 0)),
        prefill((4, 13)),
        StepWork(1, 64, 0, ()),
        StepWork(2, 1, 1, (Kernel("copy_h2d", {"num_bytes": 8}, lane="h2d"),)),
    ],
)
def test_strict_refuses_extrapolation(tiny: Make, work: StepWork) -> None:
    tiny().price(work)
    with pytest.raises(CalibrationError, match="would be extrapolated") as caught:
        tiny(strict=True).price(work)
    assert "\n" not in str(caught.value)


def test_strict_accepts_what_was_run(tiny: Make) -> None:
    model = tiny(strict=True)
    assert times(model, decode(1, 101)) == [LINEAR + 16_000]
    assert times(model, prefill((4, 4))) > [LINEAR]


def test_a_kernel_without_sizes_is_refused(tiny: Make) -> None:
    work = StepWork(1, 1, 1, (Kernel("topk_page_select", {"pages": 12}),))
    with pytest.raises(CalibrationError, match=r"topk_page_select: .* found pages"):
        tiny().price(work)


def test_heads_must_divide(tiny: Make) -> None:
    with pytest.raises(CalibrationError, match="3 does not divide the 2 heads of tiny"):
        tiny(tensor_parallel=3)

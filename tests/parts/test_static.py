"""Parts in static batches, over a cache that grows by copies: laws, times and bytes by hand, peaks as measured.

The toy cluster of test_stories.py: 16 bytes a token, 4 layers of 2 KV heads of 8, so 8 tensors of 2 bytes a token. A step costs
100 ns + 10 a token + new * past / 50 + new * new / 100 for each prefilled prompt + calls x the sum of all sizes (bytes only
where there are no others) of every other kernel; so a copy costs its bytes, in 8 launches.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import (
    BOUNDS,
    EVERYTHING,
    LATENT,
    PACKED,
    POLICIES,
    SCORED,
    SHAPE,
    SLOTS,
    STREAMING,
    WHOLE_READ,
    cache_of,
    simulate,
    times,
    trace_of,
    with_parts,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_engine

from kvsim.cache.concatenated import Concatenated
from kvsim.cost.kernels import kernel_pricers  # with those that register themselves
from kvsim.cost.work import Kernel, column
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError
from kvsim.model.load import load_model
from kvsim.model.memory import unfused_token_bytes

ALWAYS = {"repeats_kv": "always"}
FITS: dict[str, dict[str, Any]] = {
    "packed": {"codec": PACKED},
    "packed, window copied": {"codec": PACKED, "copies": "window"},
    "latent": {"codec": LATENT},
    **{
        name: {"tokens": keys}
        for name, keys in POLICIES.items()
        if "ratios" not in keys and keys.get("compact", True)
    },
    "window, heads repeated": {"tokens": POLICIES["window"], **ALWAYS},
    "slots packed": {"tokens": SLOTS, "codec": PACKED},
    "streaming packed": {"tokens": STREAMING, "codec": PACKED},
    "bounds": {"reads": BOUNDS},
    "bounds, heads repeated": {"reads": BOUNDS, **ALWAYS},
    "scored": {"reads": SCORED},
    "bounds packed": {"reads": BOUNDS, "codec": PACKED},
    "bounds of heads": {"reads": BOUNDS, "tokens": STREAMING},
}
NEUTRAL: dict[str, dict[str, Any]] = {
    "codec": {"codec": {"window": 3}},
    "tokens": {"tokens": EVERYTHING},
    "reads": WHOLE_READ,
}
make = with_parts("concatenated")
rows = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=9
)
engines = st.builds(
    lambda most, deep: toy_engine(static_batch=True, max_num_seqs=most, async_scheduling=deep),
    st.integers(1, 4),
    st.booleans(),
)
BLOCKS = 25  # of 4 tokens: one request of 70 tokens or a batch of small ones


@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
@settings(max_examples=20, deadline=None)
@given(rows=rows, engine=engines)
def test_fused_steps_are_single_steps(options: dict[str, Any], rows, engine) -> None:  # type: ignore[no-untyped-def]
    trace, cache = trace_of(sorted(rows)), cache_of(BLOCKS, options, tiers=0)
    fused = simulate(make, trace, cache, engine)
    single = simulate(make, trace, cache, engine, unfused=True)
    assert list(fused.recorder.requests) == list(single.recorder.requests)


@pytest.mark.parametrize("options", NEUTRAL.values(), ids=NEUTRAL)
@settings(max_examples=20, deadline=None)
@given(rows=rows, engine=engines, repeats=st.sampled_from([{}, ALWAYS]))
def test_a_neutral_part_changes_nothing(options: dict[str, Any], rows, engine, repeats) -> None:  # type: ignore[no-untyped-def]
    trace = trace_of(sorted(rows))
    neutral, plain = (
        simulate(make, trace, cache_of(BLOCKS, {**part, **repeats}, tiers=0), engine)
        for part in (options, {})
    )
    assert list(neutral.recorder.requests) == list(plain.recorder.requests)
    assert neutral.recorder.rejected == plain.recorder.rejected


@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
@settings(max_examples=30, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    steps=st.integers(2, 60),
    cut=st.integers(1, 59),
)
def test_shift_law(options: dict[str, Any], prompts: list[int], steps: int, cut: int) -> None:
    """Rows j.. of decode_work(b, k) equal decode_work(b after commit(b, j), k - j)."""
    cut = min(cut, steps - 1)
    manager, batch = make(cache_of(10_000, options, tiers=0)), Batch(1)
    for index, tokens in enumerate(prompts):
        request = Request(index, 0, tokens, 100, [], [], order=index, pad_input=max(prompts) - tokens)
        assert manager.admit(request, manager.match(request))
        request.to_compute = request.computed = tokens
        batch.add(request, max(prompts), 99)
    whole = manager.decode_work(batch, steps)
    manager.commit(batch, cut)
    batch.round += cut
    rest = manager.decode_work(batch, steps - cut)
    assert [kernel.name for kernel in whole] == [kernel.name for kernel in rest]
    for before, after in zip(whole, rest, strict=True):
        assert before.args.keys() == after.args.keys()
        for name in before.args:
            shifted = column(before.args[name], steps)[cut:]
            assert np.array_equal(shifted, column(after.args[name], steps - cut)), (before.name, name)
        assert np.array_equal(column(before.calls, steps)[cut:], column(after.calls, steps - cut)), before


STATIC = toy_engine(static_batch=True)
FOUR = {"keys": {"bits": 4}, "values": {"bits": 4}}  # 4 bytes a token, half a byte in each of 8 tensors
EIGHT = {"keys": {"bits": 8}, "values": {"bits": 8}}  # 8 bytes, 1 in each


def test_packed_kv_is_copied_packed() -> None:
    """Two requests of 10 + 3 tokens, in 8 bits with 4 tokens at 16."""
    trace = trace_of([(0, 10, 3), (0, 10, 3)])
    cache = cache_of(20, {"codec": {"window": 4, **EIGHT}}, tiers=0)
    # prompts: 100 + 200 + 2 + packing 2 * (8 bits + 10 tokens) -> 338
    # step over 11: 100 + 20; copies, 8 launches of 22 bytes packed and of 8 tokens' other byte: 240; attention 8 + 2 + 11 + 4
    # (4 tokens count twice); packing 8 + 2 -> 395; over 12: 8 * 2 + 1 more -> 412
    found = simulate(make, trace, cache, STATIC)
    assert times(found) == {0: (338, 338 + 395 + 412), 1: (338, 338 + 395 + 412)}
    # the window alone: 8 launches of 8 tokens of 2 bytes, in place of 240: 128
    own = simulate(
        make, trace, cache_of(20, {"codec": {"window": 4, **EIGHT}, "copies": "window"}, tiers=0), STATIC
    )
    assert times(own)[0] == (338, 338 + (395 - 240 + 128) + (395 - 240 + 128 + 1))


def test_packed_kv_is_repeated_packed() -> None:
    """As above, with 2 query heads for a KV head: also 8 launches of 2 x (22 + 8) bytes, in the next step 2 x (24 + 8)."""
    trace = trace_of([(0, 10, 3), (0, 10, 3)])
    cache = cache_of(60, {"codec": {"window": 4, **EIGHT}, **ALWAYS}, tiers=0)
    found = simulate(make, trace, replace(cache, heads_per_kv_head=2), STATIC)
    assert times(found)[0] == (338, 338 + (395 + 480) + (412 + 512))


def test_what_a_policy_keeps_is_copied_and_read() -> None:
    """Budget 8 of prompts of 20, of which one is padded by 8: both keep 8 and what they generate."""
    trace = trace_of([(0, 20, 3), (0, 12, 3)])
    tokens = {"score": "window", "window": 3, "budget": 8}
    found = simulate(make, trace, cache_of(30, {"tokens": tokens}, tiers=0), STATIC)
    # prompts: 100 + 400 + 8; each: scores 3 + 20, 4 layers of choosing 8 of 20 in 2 heads 4 * 30, moving 16 + 128 -> 1082
    # a mask, so heads are repeated, and the copies are in it: 120 + 2 + 9 -> 131, then 132
    assert times(found)[0] == (1082, 1082 + 131 + 132)


def test_what_fills_a_prompt_up_is_no_generated_token() -> None:
    """Prompts of 20 and 12, padded by 8, that keep 8 and 4 of what they generate: both have 8 + 3 in the third step."""
    tokens = {"score": "window", "window": 3, "budget": 8, "generated": "evict", "generated_budget": 4}
    manager, batch = make(cache_of(30, {"tokens": tokens}, tiers=0)), Batch(1)
    for index, own in enumerate((20, 12)):
        request = Request(index, 0, own, 9, [], [], order=index, pad_input=20 - own, to_compute=own)
        assert manager.admit(request, manager.match(request))
        batch.add(request, 20, 9)
    assert isinstance(manager, Concatenated) and manager.policy is not None
    (span,) = manager.policy.spans(batch, 3)
    assert column(span.tokens, 3).tolist() == [2 * 9, 2 * 10, 2 * 11]


def test_a_step_copies_everything_and_reads_the_budget() -> None:
    trace = trace_of([(0, 20, 2)])
    reads = {"index": {"kind": "none"}, "budget": 6}
    found = simulate(make, trace, cache_of(30, {"reads": reads}, tiers=0), STATIC)
    # 100 + 200 + 4; 110 + 8 * 21 tokens of 2 bytes + 1 + 6
    assert times(found)[0] == (304, 304 + 110 + 336 + 7)


def test_room_is_that_of_the_padded_batch() -> None:
    """Prompts of 10 and 12 that answer with 3 and 5: 2 x 16 tokens of 16 bytes at the end, and K of one of 4 layers twice."""
    trace = trace_of([(0, 10, 3), (0, 12, 5)])

    def batches(num_bytes: int, options: dict[str, Any], beside: int = 0) -> int:
        """In how many batches the two run."""
        config = replace(cache_of(1, options, tiers=0), capacity_bytes=num_bytes, prompt_token_bytes=beside)
        found = times(simulate(make, trace, config, STATIC))
        return len({first for first, _ in found.values()})

    end = 2 * 16 * 16
    assert batches(end + end // 8, {}) == 1 and batches(end + end // 8 - 1, {}) == 2
    packed = {"codec": {"window": 4, **FOUR}}
    end = 2 * (16 * 4 + 4 * 12)
    assert batches(end + end // 8, packed) == 1 and batches(end + end // 8 - 1, packed) == 2
    late = {"codec": {**FOUR, "trigger": "prefill"}}  # 2 x 12 prompt tokens at 16 bits
    assert batches(2 * 12 * 16, late) == 1 and batches(2 * 12 * 16 - 1, late) == 2
    kept = {"tokens": {"score": "window", "window": 3, "budget": 6}}
    assert batches(2 * 12 * 16, kept) == 1 and batches(2 * 12 * 16 - 1, kept) == 2
    activations = 2 * 12 * (4 + 50)  # beside the packed prompts
    assert (
        batches(activations + 2 * 4 * 12, packed, 50) == 1
        and batches(activations + 2 * 4 * 12 - 1, packed, 50) == 2
    )


def test_repeated_heads_take_room() -> None:
    """2 query heads for a KV head: K and V of a layer, twice as wide, beside what is held."""
    request = Request(0, 0, 1, 100, [], [])
    config = replace(cache_of(1, ALWAYS, tiers=0), heads_per_kv_head=2)
    need = 100 * 16 + 2 * 2 * 100 * 2
    fits = [Concatenated(replace(config, capacity_bytes=need + more)).fits(request) for more in (0, -1)]
    assert fits == [True, False]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"copies": "window"}, "nothing is packed"),
        ({"tokens": {"score": "norm", "ratios": [0.1, 0.5]}}, "are one tensor"),
        ({"tokens": POLICIES["pages"]}, "a tensor without pages"),
        ({"copies": "some"}, "cache.options.copies"),
        ({"reserve_tokens": 5}, "cache.options.reserve_tokens"),
        ({"reads": {**BOUNDS, "offload": {"tier": "ddr"}}}, "moves nothing to a tier"),
    ],
)
def test_what_makes_no_sense_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        make(cache_of(10, options))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_peaks_are_those_of_transformers() -> None:
    """Allocated memory beside the weights, of ``generate`` on an H100; 40 MB beside it are workspaces."""
    folder = Path(__file__).parents[2] / "calibrate" / "engines" / "transformers-5.17_h100-sxm"
    lines = (folder / "generate.csv").read_text(encoding="utf-8").splitlines()
    measured = [
        row for row in csv.DictReader(lines[1:]) if row["attention"] == "sdpa" and row["padded"] == "0"
    ]
    assert len(measured) > 40
    for row in measured:
        model, batch, prompt = load_model(row["model"]), int(row["batch"]), int(row["prompt"])
        config = replace(
            cache_of(1, tiers=0),
            bytes_per_token=model.kv_bytes_per_token,
            num_layers=model.num_layers,
            capacity_bytes=1 << 40,
            prompt_token_bytes=unfused_token_bytes(model, 1),
        )
        manager = Concatenated(config)
        for index in range(batch):
            request = Request(index, 0, prompt, 24, [], [])
            assert manager.admit(request, manager.match(request))
        predicted = manager.room_bytes / 1e9
        assert predicted == pytest.approx(float(row["peak_gb"]), rel=0.01, abs=0.06)


def test_every_kernel_of_a_static_step_has_sizes_to_price_it_by() -> None:
    """So that GPUs without tables of contiguous caches have a price, too."""
    for options in FITS.values():
        manager, batch = make(cache_of(10_000, options, tiers=0)), Batch(1)
        request = Request(0, 0, 40, 20, [], [])
        manager.admit(request, manager.match(request))
        request.to_compute = request.computed = 40
        batch.add(request, 40, 19)
        kernels: tuple[Kernel, ...] = manager.decode_work(batch, 1)
        assert not [each for each in kernels if each.name == "decode_attention"]
        named = [each for each in kernels if each.name not in kernel_pricers]
        assert all({"num_bytes", "rows", "flops"} & each.args.keys() for each in named)
    assert SHAPE.num_slices == 8

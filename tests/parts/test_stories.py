"""Requests under a codec or a token policy, every time by hand.

The toy cluster: blocks of 4 tokens, 16 bytes a token, 4 layers of 2 KV heads, 64 tokens a step, one step in flight. A step
costs 100 ns + 10 a token + 1 per token that decode attention reads + new * past / 50 + new * new / 100 per prefilled
chunk + calls x the sum of all sizes of every other kernel.
"""

from __future__ import annotations

from harness import SHAPE, cache_of, simulate, times, trace_of, with_parts

from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.cost.form import written_out
from kvsim.entities import Batch, Request
from kvsim.scenario.codec import Codec
from kvsim.scenario.tokens import Tokens


def test_packed_blocks_and_a_window() -> None:
    """4 bits in all for 16: 4 bytes a token, 16 a block, so 48 blocks where there were 12; 8 tokens at 16 bits take 6 more."""
    four = {"bits": 2, "group": 4, "metadata_bits": 8}
    codec = {"trigger": "group", "window": 8, "keys": {**four, "axis": "channel"}, "values": four}
    trace = trace_of([(0, 30, 3), (0, 30, 2), (0, 4, 1)])
    simulation = simulate(with_parts("paged"), trace, cache_of(12, {"codec": codec}))
    manager = simulation.replicas[0].manager
    assert manager.capacity_blocks == 48  # type: ignore[attr-defined]
    # 0: A, B and C: 100 + 640 + 9 + 9 + 0.16; packing (bits and tokens) 2 + 30, 2 + 30, 2 + 4 -> 828
    # 828: A and B: 100 + 20; bits, batch, and 31 tokens each, of which 8 count for 4: 2 + 2 + 31 + 24; no group fills -> 1007
    # 1007: A: 100 + 10 + 2 + 1 + 32 + 24; its 32nd token fills a group: 2 + 4 -> 1182
    assert times(simulation) == {0: (828, 1182), 1: (828, 1007), 2: (828, 828)}


def test_factors_are_found_once_for_a_prompt_and_what_is_generated_is_projected_to_them() -> None:
    """Keys of rank 4 in pairs of layers: two decompositions of (tokens, 2 layers of 2 heads); a rank of 2 for each layer. A new
    token of three requests each: one projection."""
    codec = Codec.model_validate(
        {"trigger": "prefill", "joint_layers": 2, "factors": "request", "keys": {"rank": 4}}
    )
    packed = PackedKv(SHAPE, codec)
    (svd,) = written_out(packed.write_work(20), 1)
    assert (svd.name, svd.calls) == ("joint_svd", 2)
    sizes = {key: svd.args[key] for key in ("width", "rank", "tokens")}
    assert sizes == {"width": 2 * SHAPE.width, "rank": 4, "tokens": 20}
    (projected,) = written_out(packed.write_work(3, generated=True), 1)
    assert (
        projected.name == "low_rank_project" and projected.args["rank"] == 2 and projected.args["tokens"] == 3
    )


def test_a_prompt_that_is_packed_at_its_end_needs_room_for_all_of_it() -> None:
    """Two prompts of 16 tokens, 4 blocks each at 16 bits, in 6 blocks: the second waits until the first is packed."""
    eight = {"bits": 8}
    trace = trace_of([(0, 16, 3), (0, 16, 1)])
    late, early = (
        {"codec": {"trigger": trigger, "keys": eight, "values": eight}} for trigger in ("prefill", "chunk")
    )
    # 0: A: 100 + 160 + 2.56; 8 + 16 of packing -> 287; B needs 8 blocks of 8 bytes a token, of 12 A has 8
    # 287: A holds 4 + 1, B takes 7... 8 are not left: it has to wait until A has ended
    waits = times(simulate(with_parts("paged"), trace, cache_of(6, late)))
    assert waits[0][0] == 287 and waits[1][0] > waits[0][1]
    # together: 100 + 320 + 2 * (2.56 + 24) -> 473
    assert times(simulate(with_parts("paged"), trace, cache_of(6, early)))[1] == (473, 473)


def test_tokens_that_the_end_of_the_prompt_attends_to() -> None:
    """Budget 8: the room of what goes lets C in while A and B decode."""
    tokens = {"score": "window", "window": 3, "budget": 8}
    trace = trace_of([(0, 20, 3), (0, 8, 2), (400, 12, 2)])
    simulation = simulate(with_parts("paged"), trace, cache_of(9, {"tokens": tokens}))
    # 0: A (5 blocks) and B (2): 100 + 280 + 4 + 0.64; A's scores 3 + 20, 4 layers of choosing 8 of 20 in 2 heads: 4 * 30,
    #    moving 2 * 8 * 8 rows of 16 bytes: 16 + 128 -> 672
    # 672: A has 2 blocks left; A and B begin one each, C takes the last 3: 100 + 140 + 9 + 9 + 1.44; its scores 3 + 12,
    #    4 * (2 + 12 + 8), 16 + 128 -> 1178: B ends
    # 1178: A reads 10, C 9: 139 -> 1317
    assert times(simulation) == {0: (672, 1317), 1: (672, 1178), 2: (1178, 1317)}


def test_two_classes_of_heads_have_pages_of_their_own() -> None:
    """Half of the 8 slices keep everything, the others 8 tokens: 40 pages hold a prompt of 21, which takes 6 blocks else."""
    tokens = {
        "score": "position",
        "schedule": "chunk",
        "block": 4,
        "heads": {"full": 0.5, "sinks": 2, "recent": 6},
    }
    simulation = simulate(with_parts("paged"), trace_of([(0, 21, 2)]), cache_of(5, {"tokens": tokens}))
    manager = simulation.replicas[0].manager
    assert manager.capacity_blocks == 40  # type: ignore[attr-defined]
    # 0: 4 * 6 pages, and 4 * 3 for 8 tokens and a block of 4: 100 + 210 + 4.41 -> 314
    # 314: half of 22 tokens and half of 8: 100 + 10 + 11 + 4 -> 439
    assert times(simulation) == {0: (314, 439)}
    shared = {**tokens, "pages": "shared"}
    refused = simulate(with_parts("paged"), trace_of([(0, 21, 2)]), cache_of(5, {"tokens": shared}))
    assert len(refused.recorder.rejected) == 1, "a page is freed only where no head needs it"


def test_a_share_of_a_growing_context() -> None:
    """Half of 10 tokens leaves room for B; then A holds half of whatever its context has become."""
    tokens = {"score": "position", "ratio": 0.5, "generated": "share"}
    simulation = simulate(
        with_parts("paged"), trace_of([(0, 10, 4), (0, 8, 1)]), cache_of(4, {"tokens": tokens})
    )
    # 0: A has 3 blocks of 4: 100 + 100 + 1 -> 201
    # 201: A holds 5 tokens, 2 blocks, and reads 6 of 11; B computes 8: 100 + 90 + 6 + 0.64 -> 398
    # 398: A reads 6 of 12 -> 514; 7 of 13 -> 631
    assert times(simulation) == {0: (201, 631), 1: (398, 398)}


def test_what_is_not_kept_stays_in_four_bits() -> None:
    """A quarter of 16 tokens in one block of 4, the others in one of 16: with B's two blocks that is all there is."""
    tokens = {"score": "position", "ratio": 0.25, "dropped": {"bits": 4, "group": None}}
    simulation = simulate(
        with_parts("paged"), trace_of([(0, 16, 3), (0, 8, 1)]), cache_of(5, {"tokens": tokens})
    )
    # 0: A has 4 blocks: 100 + 160 + 2.56; 12 tokens to 4 bits: 4 + 12 -> 279
    # 279: A begins a third block, reads 5, and 12 in 4 bits: 4 + 1 + 12; B computes 8, 6 of them to 4 bits:
    #    100 + 90 + 5 + 17 + 0.64 + 10 -> 502
    # 502: A: 100 + 10 + 6 + 17 -> 635
    assert times(simulation) == {0: (279, 635), 1: (502, 502)}


def test_what_goes_lies_in_a_tier_and_some_of_it_comes_back() -> None:
    """A quarter of 16 tokens stays; 12 are under way until 455, and until then their three blocks are taken."""
    tokens = {"score": "position", "ratio": 0.25, "dropped": {"tier": "ddr", "tokens": 2}}
    simulation = simulate(
        with_parts("paged"), trace_of([(0, 16, 4), (0, 8, 1)]), cache_of(6, {"tokens": tokens})
    )
    # 0: A has a block for what comes back and 4: 100 + 160 + 2.56 -> 263; then 12 * 16 bytes go out
    # 263: A begins a block and reads 4 + 1 + 2, the two by 32 rows of 16: 100 + 10 + 7 + 48 -> 428; then 166 -> 594
    # 594: B has 3 blocks: 100 + 90 + 9 + 0.64 + 48 -> 842; of its tokens 6 go out
    assert times(simulation) == {0: (263, 842), 1: (842, 842)}
    assert simulation.replicas[0].links.written_bytes == [0, 288]


def test_no_more_comes_back_than_went() -> None:
    """Of 16 tokens a quarter stays, so 12 can come back; of 4 tokens 3. What was not dropped does not."""
    keys = {"score": "position", "ratio": 0.25, "dropped": {"tier": "ddr", "tokens": 10.5}}
    policy, batch = TokenPolicy(SHAPE, Tokens.model_validate(keys)), Batch(4)
    found = []
    for index, prompt in enumerate((16, 4, 1)):
        request = Request(index, 0, prompt, 9, [], [], order=index, to_compute=prompt)
        batch.add(request, prompt, 9)
        found.append(policy.num_recalled(batch))
    assert found == [11, 14, 14]  # 10.5, 13.5 and 13.5, rounded up


def test_a_budget_for_what_is_generated() -> None:
    """Half of 8 tokens, and the newest two."""
    tokens = {"score": "position", "ratio": 0.5, "generated": "evict", "generated_budget": 2}
    simulation = simulate(with_parts("paged"), trace_of([(0, 8, 5)]), cache_of(3, {"tokens": tokens}))
    # 100 + 80 + 0.64 -> 181; 100 + 10 + 4 + 1 -> 296; then it reads 6: 412, 528, 644
    assert times(simulation) == {0: (181, 644)}


def test_a_curve_over_the_prompt() -> None:
    policy = TokenPolicy(SHAPE, Tokens(score="norm", curve=((10, 8), (40, 14), (50, 12))))
    kept = {prompt: policy.kept(prompt)[0] for prompt in (5, 8, 10, 11, 25, 40, 44, 50, 900)}
    assert kept == {5: 5, 8: 8, 10: 8, 11: 9, 25: 11, 40: 14, 44: 14, 50: 12, 900: 12}, (
        "rounded up, level beyond the ends"
    )


def test_requests_draw_what_they_keep() -> None:
    """Of 1,000 prompts of 1,000 tokens: between the quantiles, half of them below the middle one, the same in each run."""
    keys = Tokens(score="norm", ratios=(0.1, 0.2, 0.8))
    policy = TokenPolicy(SHAPE, keys)
    requests = [Request(i, 0, 1000, 1, [], []) for i in range(1000)]
    kept = [policy.kept(1000, policy.ratio_of(request))[0] for request in requests]
    assert min(kept) >= 100 and max(kept) <= 800 and len(set(kept)) > 400
    assert 450 < sum(each < 200 for each in kept) < 550
    assert abs(sum(kept) / 1000 - 325) < 15, "the mean of the quantiles is what the report of bytes takes"
    assert policy.kept(1000)[0] == 325
    again = [policy.kept(1000, policy.ratio_of(request))[0] for request in requests]
    other = TokenPolicy(SHAPE, keys, seed=1)
    assert kept == again != [other.kept(1000, other.ratio_of(request))[0] for request in requests]


def test_holes_in_pages_free_nothing() -> None:
    tokens = {"score": "norm", "ratio": 0.5, "compact": False}
    pages = {**tokens, "granularity": 4}
    trace = trace_of([(0, 20, 9), (400, 16, 1)])
    holes, freed = (
        times(simulate(with_parts("paged"), trace, cache_of(7, {"tokens": keys}))) for keys in (tokens, pages)
    )
    assert holes[1][0] > holes[0][1], "the second prompt waits for the end of the first"
    assert freed[1][0] < freed[0][1]

"""A few requests for each way of reuse, every time by hand.

The toy cluster of tests/fits: blocks of 4 tokens, 4 layers, 64 tokens a step, one step in flight, a link of 1 byte a
nanosecond, loaded layer by layer. A step costs 100 ns + 10 a token + 1 per token that decode attention reads +
new * past / 50 + new * new / 100 per prefilled run + calls x sizes of every other kernel; rounded once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness import CHUNK, LINK, USER, cache_of, simulate, times, trace_of

from kvsim.cache.chunks.manager import ChunkManager
from kvsim.cluster.simulation import Simulation

SYSTEM, FIRST, SECOND = (9, 4, USER), (1, 12, CHUNK), (2, 20, CHUNK)


def reuse(simulation: Simulation) -> list[tuple[int, int]]:
    """(exact, approximate) tokens of each request."""
    rows = sorted(simulation.recorder.requests)
    return [(row.cached_tokens, row.approximate_tokens) for row in rows]


def test_recompute_from_a_tier() -> None:
    """CacheBlend: chunks in another order are loaded and a quarter of them computed again, load and work overlapped."""
    trace = trace_of(
        [(0, 40, 1), (600, 40, 2), (700, 40, 1)],
        [[SYSTEM, FIRST, SECOND], [SYSTEM, SECOND, FIRST], [SYSTEM, SECOND, FIRST]],
    )
    simulation = simulate(ChunkManager, trace, cache_of(100, {"share": 0.25}, bytes_per_token=2))
    # 0: A computes 40 tokens: 100 + 400 + 40 * 40 / 100 = 516 -> 516
    #    then its chunks go to DDR: 24 bytes until 540, 40 bytes until 580
    # 600: B finds the system prompt (4 tokens, exact) and both chunks: 15 of 20 and 9 of 12 tokens are kept;
    #    64 bytes are under way until 664, the first of 4 layers until 616
    #    12 tokens: 5 at 4 .. 24 and 3 at 24 .. 36 see (5 * 14 + 3 * 30) / 8 = 20 tokens, as of a context of 40: 8 + 40
    #    4 over 36: 3.04; 32 keys turned: 32; 100 + 120 + 48 + 3.04 + 32 = 303.04
    #    layer by layer: max(616 + 303, 664 + 303 / 4) -> 919
    # 919: B's second token, and C with B's prompt, which finds what B found: load until 983, layer one 935
    #    100 + 10 * 13 + (40 + 1) + 48 + 3.04 + 32 = 354.04
    #    max(935 + 354, 983 + 88) -> 1289
    assert times(simulation) == {0: (516, 516), 1: (919, 1289), 2: (1289, 1289)}
    assert reuse(simulation) == [(0, 0), (4, 24), (4, 24)]
    links = simulation.replicas[0].links
    assert (links.written_bytes, links.loaded_bytes) == ([0, 64], [0, 128])


def test_recompute_from_a_slow_disk() -> None:
    """The same from a disk at an eighth of the rate: now the load is what takes the time."""
    trace = trace_of([(0, 40, 1), (2000, 40, 1)], [[SYSTEM, FIRST, SECOND], [SYSTEM, SECOND, FIRST]])
    cache = cache_of(100, {"share": 0.25}, bytes_per_token=2)
    disk = replace(LINK, name="disk", read_bytes_per_s=0.125e9)
    simulation = simulate(ChunkManager, trace, cache, link=disk)
    # 2000: 64 bytes until 2512, the first layer until 2128; 303 of work as above
    #    max(2128 + 303, 2512 + 303 // 4) = 2587
    assert times(simulation)[1] == (2587, 2587)
    assert simulation.replicas[0].joins == [(64, 512, 303, 284)]
    waits = replace(cache, tiers=(replace(cache.tiers[0], load="before"),))
    simulation = simulate(ChunkManager, trace, waits, link=disk)
    # one after the other: 2512 + 303
    assert times(simulation)[1] == (2815, 2815)


def test_first_layers_in_full() -> None:
    """One layer of four computes all of a chunk, the others half of it: 5/8 on average."""
    trace = trace_of([(0, 24, 1), (1000, 24, 1)], [[(3, 4), (2, 16, CHUNK)], [(4, 4), (2, 16, CHUNK)]])
    simulation = simulate(
        ChunkManager, trace, cache_of(100, {"share": 0.5, "full_layers": 1}, bytes_per_token=2)
    )
    # 16 tokens at the place where they were made: 10 are computed, nothing is turned
    # 1000: 18 tokens; 4 over 0: 0.16; 4 over 20: 1.76; 10 see 12, as of a context of 24: 34; 315.92
    #    32 bytes until 1032, layer one 1008: 1008 + 316
    assert times(simulation)[1] == (1324, 1324)
    assert reuse(simulation)[1] == (0, 6)


def test_exact_behind_the_same_context() -> None:
    """A chunk that HBM has lost comes back from the tier as exact reuse, behind the context that it was made in."""
    first = [(7, 4), (1, 12, CHUNK)]
    trace = trace_of([(0, 20, 1), (1000, 40, 1), (2000, 20, 1), (3000, 20, 1)], [first, [], first, first])
    simulation = simulate(ChunkManager, trace, cache_of(10, {"share": 0.25}, bytes_per_token=2))
    # B's 10 blocks drive A's out of HBM.
    # 2000: C computes 4 + 4 tokens: 4 over 0: 0.16; 4 over 16: 1.44; 100 + 80 + 1.6 = 181.6
    #    24 bytes until 2024, layer one 2006: 2006 + 182 = 2188
    # 3000: D's blocks are exact prefixes in HBM again: 4 over 16: 100 + 40 + 1.44 -> 141
    assert times(simulation)[2] == (2188, 2188)
    assert times(simulation)[3] == (3141, 3141)
    assert reuse(simulation) == [(0, 0), (0, 0), (12, 0), (16, 0)]
    assert simulation.recorder.requests[2].hits_by_tier == (0, 12)


def test_modules_in_hbm() -> None:
    """Prompt Cache: modules are encoded by themselves at places of their own, kept in HBM and copied."""
    trace = trace_of([(0, 24, 1), (1000, 28, 1)], [[SYSTEM, (1, 16, CHUNK)], [(8, 8), (1, 16, CHUNK)]])
    options = {"hit": "attach", "made": "alone", "hbm": "64 B"}
    simulation = simulate(ChunkManager, trace, cache_of(100, options, bytes_per_token=2, tiers=0))
    # 0: 4 over 0: 0.16; the module by itself 16 over 0: 2.56; 4 over 20: 1.76; 100 + 240 + 4.48 -> 344
    # 1000: 8 over 0: 0.64; 4 over 24: 2.08; the module: 2 * 4 * 16 = 128 rows of 2 // 8 -> 1 byte are copied: 129
    #    100 + 120 + 2.72 + 129 = 351.72
    assert times(simulation) == {0: (344, 344), 1: (1352, 1352)}
    assert reuse(simulation) == [(0, 0), (0, 16)]
    assert simulation.replicas[0].manager.used_bytes[0] >= 32


def test_variants_by_context() -> None:
    """Cache-Craft: of two variants the one whose context is most like the new one; a bad match makes a third."""
    a, b, c = (1, 8, CHUNK), (2, 8, CHUNK), (3, 8, CHUNK)
    trace = trace_of(
        [(0, 20, 1), (1000, 20, 1), (2000, 28, 1), (3000, 20, 1)], [[a, c], [b, c], [b, a, c], [(4, 8), c]]
    )
    options = {"share": 1, "fix": "by_context", "variants": 3, "max_share": 0.6, "kinds": ["chunk"]}
    simulation = simulate(ChunkManager, trace, cache_of(100, options, bytes_per_token=2))
    # request 1: c behind b: nothing of a's context, share 1 > 0.6: computed, a second variant
    # request 2: b is an exact prefix in HBM; a behind b: share 1, computed; c behind b and a: half of either context,
    #    share 0.5: 4 of 8 tokens
    # request 3: nothing in common: a third variant
    assert reuse(simulation) == [(0, 0), (0, 0), (8, 4), (0, 0)]
    entries = simulation.replicas[0].manager.store.places[1].entries  # type: ignore[attr-defined]
    assert {key[1]: len(found) for key, found in entries.items()} == {1: 2, 2: 1, 3: 3}


def test_an_edit_in_the_middle() -> None:
    """PIE: behind the edit the keys of what stays are turned, nothing of it is computed."""
    head, old, new, tail = (1, 8, CHUNK), (2, 4, CHUNK), (3, 8, CHUNK), (4, 16, CHUNK)
    trace = trace_of([(0, 29, 1), (1000, 33, 1)], [[head, old, tail], [head, new, tail]])
    options = {"hit": "rotate", "hbm": "128 B"}
    simulation = simulate(ChunkManager, trace, cache_of(40, options, bytes_per_token=2, tiers=0))
    # 1000: 8 are an exact prefix; 8 over 8: 1.28 + 0.64; 1 over 32: 0.65; 16 keys turned: 16; 2 * 4 * 16 + 1 copied: 129
    #    100 + 90 + 2.57 + 145 = 337.57
    assert times(simulation)[1] == (1338, 1338)
    assert reuse(simulation)[1] == (8, 16)


def test_a_compressed_entry_stays_compressed() -> None:
    """KVzip: a quarter of a chunk's tokens is kept, loaded, held in blocks and read by every step."""
    trace = trace_of([(0, 68, 1), (1000, 68, 3)], [[(1, 64, CHUNK)], [(1, 64, CHUNK)]])
    options = {"hit": "attach", "kept": 0.25, "preload": "ddr", "made": "alone"}
    simulation = simulate(ChunkManager, trace, cache_of(40, options, bytes_per_token=2), trace_engine())
    # 0: 16 of 64 tokens: 32 bytes until 32, layer one 8; 4 over 16: 1.44; 100 + 40 + 1.44 = 141 -> 149
    # 1000: the same -> 1149; then 16 + 4 + 1 tokens are read: 100 + 10 + 21 = 131 -> 1280, 132 -> 1412
    assert times(simulation) == {0: (149, 149), 1: (1149, 1412)}
    assert reuse(simulation) == [(0, 64), (0, 64)]
    assert simulation.replicas[0].manager.used_bytes == (0, 32)


def test_an_entry_is_repeated_to_find_what_is_kept() -> None:
    """KVzip's pass: 64 tokens behind a prompt of 25 go through the model again, over the 64; a known entry costs nothing."""
    trace = trace_of([(0, 68, 1), (2000, 68, 1)], [[(1, 64, CHUNK)], [(1, 64, CHUNK)]])
    options = {"hit": "attach", "kept": 0.25, "made": "alone"}
    plain, repeated = (
        simulate(ChunkManager, trace, cache_of(40, {**options, **more}, bytes_per_token=2), trace_engine())
        for more in ({}, {"reconstruct": True})
    )
    # forward pass of 89 tokens: 89; attention of 89 over 64: 113.92 + 79.21; a launch of scores, 64 queries over 64 keys: 128
    (before, _), (after, _) = times(plain)[0], times(repeated)[0]
    assert after - before == 410
    assert times(plain)[1][0] - 2000 == times(repeated)[1][0] - 2000, "it is there already"


def trace_engine() -> Any:
    from toys import toy_engine

    return toy_engine(max_num_batched_tokens=128)

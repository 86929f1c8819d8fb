"""Small sequences whose misses and evictions were worked out by hand. Letters are blocks, each prompt a string of them."""

from __future__ import annotations

import pytest
from driving import story

from kvsim.cache.eviction import EvictionSpec

# What is cached before each eviction, in the order of the policy; the one that goes stands first.
#   lru       d: b a c      b: c d a      e: d a b      d: b e a
#   fifo      d: a b c      a: b c d      b: c d a      e: d a b    d: a b e
#   lfu       d: b1 c1 a2   b: c1 d1 a3   e: d1 b1 a3   d: b1 e1 a4
#   sieve     the hand clears a and takes b, then takes c, d and b where it stands; a stays marked
#   arc       d: b leaves T1   b is remembered: target 1, c leaves T1   e: T1 is on target, a leaves T2
#             a is remembered: target 0, d leaves T1   d is remembered: target 1, b leaves T2
#   gdsf      priorities  d: b1 c1 a2   b: c1 d2 a4   e: d2 b2 a4 (clock 1)   d: b2 e3 a6
#   belady    d: c is never needed again   e: b is not either
#   one_bit   phases of 6 tokens are two requests long; (phase + bit)  d: b0 c1 a2   b: c1 d2 a2   e: d2 a2 b3   d: b3 e3 a4
#   sparse    every other victim is Belady's: b by age, c by oracle, d by age, and of what is never needed the newest, a
GOLDEN: list[tuple[EvictionSpec, int, str]] = [
    ("lru", 7, "bcdb"),
    ("fifo", 8, "abcda"),
    ("lfu", 7, "bcdb"),
    ("sieve", 7, "bcdb"),
    ("arc", 8, "bcadb"),
    ("gdsf", 7, "bcdb"),
    ("prefix_gdsf", 7, "bcdb"),
    ("belady", 5, "cb"),
    ("one_bit_oracle", 7, "bcdb"),
    ({"policy": "sparse_oracle", "every": 2}, 7, "bcda"),
    ({"policy": "sparse_oracle", "every": 1}, 5, "cb"),
    ({"policy": "belady", "noise": 0}, 5, "cb"),
]


@pytest.mark.parametrize(("eviction", "misses", "gone"), GOLDEN, ids=str)
def test_one_sequence_by_hand(eviction: EvictionSpec, misses: int, gone: str) -> None:
    assert story(eviction, "abacdabead", 3) == (misses, gone)


def test_fifo_differs_from_sieve_by_what_was_used() -> None:
    # the queue a b c d: SIEVE spares a and c, which were used, and takes b and d
    assert story("fifo", "abcdacef", 4) == (6, "ab")
    assert story("sieve", "abcdacef", 4) == (6, "bd")


def test_s3fifo_by_hand() -> None:
    # small 1, main 3, remembered 3. Until something goes, main takes what small has no room for: small a, main b c d.
    # e: a was used twice and moves to main; small is empty, so main's first, b, goes. small e, main c d a.
    # b: e goes and is remembered. f: b goes. c is used. g: f goes. small g, main c1 d a.
    # e comes back: it is remembered, so main takes it, after g has gone. h: main has 4, c has a second round, d goes.
    assert story({"policy": "s3fifo", "small": 0.25}, "abaacdebfcgeh", 4) == (10, "bebfgd")


def test_gdsf_weighs_cost_against_size() -> None:
    """Costs with 2 tokens where attention takes as much as matrix products: (1 + (past + new / 2) / 2) a token."""
    # a run of 4 blocks (8 tokens) costs 3 a token, one block 1.5
    assert story("gdsf", ["abcd", "x", "y", "z"], 6, 2.0) == (7, "x")
    assert story("lru", ["abcd", "x", "y", "z"], 6, 2.0) == (7, "d")


def test_prefix_gdsf_counts_what_stands_before_a_run() -> None:
    # cd: 2 a token as a prompt of its own, 4 after ab; uvwx 3
    prompts = ["ab", "abcd", "uvwx", "q"]
    assert story("gdsf", prompts, 8, 2.0)[1] == "d"
    assert story("prefix_gdsf", prompts, 8, 2.0)[1] == "x"


def test_flops_per_byte_lets_dear_runs_live_longer() -> None:
    # x goes at age 3; ab is used again as request 6 and gets 3 more, as the dearest run: 9, behind v (7) but before w (8)
    prompts = ["x", "ab", "y", "z", "u", "ab", "v", "w", "s", "t"]
    assert story({"policy": "flops_per_byte", "alpha": 0}, prompts, 5, 2.0)[1] == "xyzub"
    assert story({"policy": "flops_per_byte", "alpha": 1}, prompts, 5, 2.0)[1] == "xyzuv"
    assert story("flops_per_byte", prompts, 5)[1] == "xyzub"  # where all runs cost the same it is LRU


def test_ttl_counts_from_the_last_use() -> None:
    ttl = {"policy": "ttl", "seconds": 30}
    # a is renewed at 20 s and there at 49; b, let go at 10 s, has gone by 45; both have gone at 80
    assert story(ttl, "ababa", 9, at_s=[0, 10, 20, 45, 49]) == (3, "b")
    assert story(ttl, "aa", 9, at_s=[0, 29.999]) == (1, "")
    assert story(ttl, "aa", 9, at_s=[0, 30]) == (2, "a")
    # short of room it is LRU
    assert story(ttl, "abca", 2, at_s=[0, 1, 2, 3]) == (4, "ab")


def test_pinned_content_goes_last() -> None:
    prompts = ["sa", "x", "y", "z", "sa"]
    assert story("lru", prompts, 3, kinds={"s": 0}) == (7, "asxy")
    assert story("pinned", prompts, 3, kinds={"s": 0}) == (6, "axy")
    assert story({"policy": "pinned", "kinds": ["image"]}, prompts, 3, kinds={"s": 0}) == (7, "asxy")
    # with nothing else left it goes too: no request waits for ever
    assert story("pinned", ["s", "abc"], 3, kinds={"s": 0}) == (4, "s")


def test_closed_sessions_go_first() -> None:
    # session 1 ends with b
    assert story("lru", "abca", 2, sessions=[0, 1, 2, 0]) == (4, "ab")
    assert story("explicit_free", "abca", 2, sessions=[0, 1, 2, 0]) == (3, "b")
    # session 0 has ended, but session 1 uses its content as well; session 2 ends with x, which goes before it
    assert story("explicit_free", "ssxys", 2, sessions=[0, 1, 2, 1, 1]) == (3, "x")


def test_what_is_continued_waits_for_its_descendants() -> None:
    # a came first, but stands before b and c; with both gone it is the next
    assert story("fifo", ["ab", "ac", "d", "e", "f"], 3) == (6, "bca")


def test_belady_splits_a_run_where_its_future_changes() -> None:
    # of abcd only ab is needed again, and later than x; without the split all four blocks would count as needed
    assert story("belady", ["abcd", "x", "y", "x", "ab"], 5) == (6, "d")
    assert story("belady", ["abcd", "x", "yz", "x", "ab"], 5) == (7, "dc")

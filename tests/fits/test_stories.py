"""Three requests for each manager, every time by hand.

The toy cluster: blocks of 4 tokens, 4 layers, 64 tokens a step, one step in flight, a link of 1 byte a
nanosecond. A step costs 100 ns + 10 a token + 1 per token that decode attention reads + new * past / 50 +
new * new / 100 per prefilled chunk + calls x sizes of every other kernel; rounded once.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import FITS, cache_of, simulate, times, trace_of
from managers.h2o import H2O
from managers.kivi import Kivi
from managers.quest import Quest
from managers.shadowkv import ShadowKV
from managers.snapkv import SnapKV


def test_kivi() -> None:
    """2 bits + 2 of scales for 16: 768 bytes hold two prompts of 30 tokens where 16 bits hold one."""
    trace = trace_of([(0, 30, 3), (0, 30, 2), (0, 4, 1)])
    options = {"bits": 2, "group": 16, "window": 0}
    simulation = simulate(Kivi, trace, cache_of(12, options))
    # 4 bytes a token, 64 a block of 16: 12 blocks; a request has 4 of them for 16 tokens that are not packed
    # 0: A and B: 2 + 4 blocks each; C has no room. Each fills one group (16 tokens of 16 bytes):
    #    100 + 10 * 60 + 9 + 9 + 2 * 256 = 1230 -> 1230
    # 1230: decode A and B: 100 + 20 + 4 * (31 + 31) = 368 -> 1598: B ends
    # 1598: A's 32nd token fills a group, C has room (1 + 4 blocks):
    #    100 + 10 * 5 + 4 * 32 + 256 + 4 * 4 / 100 = 534.16 -> 2132
    assert times(simulation) == {0: (1230, 2132), 1: (1230, 1598), 2: (2132, 2132)}
    plain = times(simulate(Kivi, trace, cache_of(12, FITS["kivi"].neutral)))
    assert plain[1][0] > plain[0][1]  # one after the other


def test_snapkv() -> None:
    """After prefill a prompt keeps its budget of 8 tokens; the room lets C in while A and B decode."""
    trace = trace_of([(0, 20, 3), (0, 8, 2), (400, 12, 2)])
    simulation = simulate(SnapKV, trace, cache_of(9, {"budget": 8}, bytes_per_token=2))
    # 0: A (5 blocks) and B (2): 100 + 10 * 28 + 4 + 0.64; A's scores read 20 keys of 1 byte, and 8 tokens are moved
    #    (read and written, 2 bytes): 20 + 32 = 436.64 -> 437
    # 437: A has dropped 12 tokens, 3 blocks; A and B begin a block each; C takes the last 3
    #    100 + 10 * 14 + (9 + 9) + 1.44 + 12 + 32 = 303.44 -> 740: B ends
    # 740: C has dropped 4: 100 + 20 + (10 + 9) = 139 -> 879
    assert times(simulation) == {0: (437, 879), 1: (437, 740), 2: (740, 879)}
    plain = times(simulate(SnapKV, trace, cache_of(9, {"budget": 10_000}, bytes_per_token=2)))
    assert plain[2][0] > plain[1][1]  # with whole prompts C has to wait until B has ended


def test_quest() -> None:
    """Budget 8 of 14 tokens in three layers of four; the pages' keys take a fifth of the room."""
    trace = trace_of([(0, 14, 3), (0, 4, 3), (150, 14, 3)], [[(7, 14)], [], [(7, 12)]])
    cache = cache_of(10, {"budget": 8, "page": 4, "dense_layers": 1}, bytes_per_token=2)
    simulation = simulate(Quest, trace, cache)
    assert simulation.replicas[0].manager.capacity_blocks == 8  # type: ignore[attr-defined]
    # 0: A and B: 100 + 180 + 1.96 + 0.16 = 282.12 -> 282
    # 282: select among 4 + 2 pages of 2 bytes in 3 of 4 layers: 9; read 15 + 5 in one layer: 5, 8 + 5 in three: 9.75
    #    C computes 2 tokens over 12: 0.48 + 0.04; 100 + 40 + 23.75 + 0.52 = 164.27 -> 446
    # 446: 10 pages: 15; 16 + 6 + 15 in one layer: 9.25; 8 + 6 + 8 in three: 16.5; 100 + 30 = 170.75 -> 617
    # 617: C alone: 4 pages: 6; 16 in one layer: 4; 8 in three: 6; 100 + 10 = 126 -> 743
    assert times(simulation) == {0: (282, 617), 1: (282, 617), 2: (446, 743)}
    assert [row.cached_tokens for row in sorted(simulation.recorder.requests)] == [0, 0, 12]


def test_shadowkv() -> None:
    """Three quarters of a prompt's blocks move to DDR behind the decodes, which lets C in."""
    trace = trace_of([(0, 16, 3), (0, 5, 3), (200, 8, 2)])
    options = {"share": 0.25, "budget": 8, "hit_rate": 0.25}
    simulation = simulate(ShadowKV, trace, cache_of(7, options, bytes_per_token=8))
    # 0: A (4 blocks) and B (2): 100 + 210 + 2.56 + 0.25 = 312.81 -> 313
    #    3 of A's blocks, 96 bytes, leave until 409 (B's one full block is too little)
    # 313: A begins a block, none is left for C; read 8 + 6 = 14 tokens: rebuild 14 * 2 beside fetch 14 * 4 * 3/4
    #    100 + 20 + max(28, 42) + 14 = 176 -> 489
    # 489: C takes 2 of A's 3 blocks; read 8 + 7 = 15: 100 + 100 + max(30, 45) + 15 + 0.64 = 260.64 -> 750
    # 750: C alone reads 8: 100 + 10 + max(16, 24) + 8 = 142 -> 892
    assert times(simulation) == {0: (313, 750), 1: (313, 750), 2: (750, 892)}
    assert simulation.replicas[0].links.written_bytes == [0, 96 + 32]
    assert simulation.replicas[0].manager.used_bytes == (0, 0)


def test_h2o() -> None:
    """8 slots a sequence: what is beyond them after prefill is freed, and decoding takes no more room."""
    trace = trace_of([(0, 12, 3), (0, 6, 4), (100, 8, 2)])
    simulation = simulate(H2O, trace, cache_of(6, {"budget": 8}, bytes_per_token=2))
    # 0: A (3 blocks) and B (2): 100 + 180 + 1.44 + 0.36 = 281.8 -> 282
    # 282: A gives one back, C takes 2; read (8 + 7) * 2 bytes; A overwrites one slot of 2 bytes:
    #    100 + 100 + 30 + 2 + 0.64 = 232.64 -> 515
    # 515: read 3 * 8 * 2; A and C overwrite: 100 + 30 + 48 + 4 = 182 -> 697
    # 697: B alone: 100 + 10 + 16 + 2 = 128 -> 825
    assert times(simulation) == {0: (282, 697), 1: (282, 825), 2: (515, 697)}

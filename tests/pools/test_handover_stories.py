"""Requests through prefill and decode replicas, every time by hand.

Toy steps (tests/engine/toys.py): 100 ns + 10 a token + n * n / 100 for a prefill of n tokens + 1 per token of context that a
decode reads, itself included. 4 layers, 1 byte a token.
"""

from __future__ import annotations

import pytest
from disaggregated import disaggregated
from toys import ToyCost, toy_cache, toy_engine, toy_trace

from kvsim.cache.load import load_manager
from kvsim.cluster.disaggregation import KvTransfer
from kvsim.cluster.router import RoundRobin
from kvsim.cluster.simulation import PoolParts, Simulation, build_cluster, play
from kvsim.hardware.spec import LinkSpec


def rows(simulation: Simulation) -> list[tuple[int, ...]]:
    """Of each request: TTFT, wait for room, transfer, end to end."""
    use = simulation.cluster.disaggregation.use
    return [
        (
            row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns,
            int(use.wait_ns[row.request]),
            int(use.transfer_ns[row.request]),
            row.e2e_ns,
        )
        for row in sorted(simulation.recorder.requests)
    ]


def test_one_request_sent_after_its_prefill() -> None:
    """Prefill 100 + 200 + 4 = 304; 20 B at 0.1 B/ns and 7 ns of latency = 207; decodes over 21 and 22 tokens."""
    simulation = disaggregated(toy_trace([(0, 20, 3)]), 1e8, latency_ns=7)
    assert rows(simulation) == [(304, 0, 207, 304 + 207 + (110 + 21) + (110 + 22))]
    assert [row.replica for row in simulation.recorder.requests] == [0]
    assert simulation.cluster.disaggregation.use.decode_replica.tolist() == [1]


def test_one_request_sent_layer_by_layer() -> None:
    """Each of 4 layers, the first at 76, takes 5 B / 0.1 + 7 ns of latency = 57 ns; the last one is there at 304."""
    simulation = disaggregated(toy_trace([(0, 20, 3)]), 1e8, latency_ns=7, layerwise=True)
    assert rows(simulation) == [(304, 0, 57, 304 + 57 + 131 + 132)]


def test_a_slow_link_streams_from_the_first_layer_on() -> None:
    """20 B at 0.01 B/ns = 2,000 ns from 76 on: the link is what takes the time."""
    assert rows(disaggregated(toy_trace([(0, 20, 3)]), 1e7, layerwise=True)) == [
        (304, 0, 76 + 2000 - 304, 76 + 2000 + 131 + 132)
    ]


def test_chunks_are_streamed_one_by_one() -> None:
    """Steps of 64 and 36 tokens: 781 ns (780.96), and 100 + 360 + 36 * 64 / 50 + 12.96 = 519 (519.04).

    The last layer of the second chunk is there at 1,300, and takes 36 / 4 = 9.
    """
    simulation = disaggregated(toy_trace([(0, 100, 2)]), 1e9, layerwise=True)
    assert rows(simulation) == [(1300, 0, 9, 1309 + 110 + 101)]
    write, read = (link for i in (0, 1) for link in simulation.cluster.disaggregation.network.use(i))
    assert (write.num_bytes, write.num_transfers) == (read.num_bytes, read.num_transfers) == (100, 8)


def test_streams_from_two_replicas_share_the_decode_sides_link_layer_by_layer() -> None:
    """Both steps end at 304; each layer takes 5 B / 0.1 = 50 of the 76 ns between two, so that the second one's waits 24 more
    each time: 76, 126, then 176, 226, 276, ... without a gap. Eight layers from 76 on end at 476."""
    simulation = disaggregated(toy_trace([(0, 20, 2), (0, 20, 2)]), 1e8, prefill=2, layerwise=True)
    assert rows(simulation) == [(304, 0, 426 - 304, 426 + 131), (304, 0, 476 - 304, 426 + 131 + 131)]


def test_a_single_output_token_stays_where_it_is() -> None:
    simulation = disaggregated(toy_trace([(0, 20, 1)]))
    assert rows(simulation) == [(304, -1, -1, 304)]
    assert simulation.cluster.disaggregation.network.use(0) == []


def test_two_transfers_queue_on_the_decode_sides_link() -> None:
    """Two prefill replicas are through at 304 and 324 (20 and 20 tokens, the second 20 ns later); 20 B take 200 ns."""
    simulation = disaggregated(toy_trace([(0, 20, 2), (20, 20, 2)]), 1e8, prefill=2)
    # the second one waits until 504; the first decodes alone, over 21 tokens, from 504 to 635
    assert rows(simulation) == [(304, 0, 200, 635), (304, 0, 704 - 324, 704 + 131 - 20)]


def test_two_transfers_queue_on_the_prefill_sides_link() -> None:
    """Both in one step of 40 tokens: 100 + 400 + 2 * 4 = 508. To two decode replicas, one after the other."""
    simulation = disaggregated(toy_trace([(0, 20, 2), (0, 20, 2)]), 1e8, decode=2)
    assert rows(simulation) == [(508, 0, 200, 508 + 200 + 131), (508, 0, 400, 508 + 400 + 131)]


def test_a_full_decode_pool_lets_kv_wait_where_it_was_computed() -> None:
    """The decode replica has 8 blocks of 4 tokens: room for one request of 20 + 5 tokens, not for another prompt.

    The first decodes over 21 .. 24 tokens: 131 + 132 + 133 + 134 from 304 + 20 on, so until 854. Then there is room for
    the second, which was prefilled at 608.
    """
    simulation = disaggregated(toy_trace([(0, 20, 5), (304, 20, 3)]), blocks=(1000, 8))
    first, second = rows(simulation)
    assert first == (304, 0, 20, 854)
    assert second == (304, 854 - 608, 20, 854 + 20 + 131 + 132 - 304)


def test_a_request_decodes_where_it_can_ever_have_room() -> None:
    """One decode replica has 7 blocks of 4: only the short request goes there, whoever's turn it is."""
    kinds = [("prefill", "p", 100), ("decode", "small", 8), ("decode", "large", 100)]
    pools = [
        PoolParts(toy_engine(), toy_cache(blocks), (), ToyCost(), name=name, role=role)
        for role, name, blocks in kinds
    ]
    simulation = build_cluster(
        toy_trace([(0, 10, 3), (0, 60, 3), (0, 60, 3), (5, 60, 3)]),
        pools,
        lambda config: load_manager("paged", config),
        RoundRobin(),
        kv_transfer=KvTransfer(LinkSpec("net", 1e9, 1e9, 0)),
        decode_router=RoundRobin(),
    )
    play(simulation)
    assert simulation.cluster.disaggregation is not None
    assert simulation.cluster.disaggregation.use.decode_replica.tolist() == [1, 2, 2, 2]


def test_kv_is_held_on_the_prefill_side_until_it_has_been_sent() -> None:
    """6 blocks there: the second prompt of 20 tokens (5 blocks) has to wait for the end of the first one's transfer."""
    simulation = disaggregated(toy_trace([(0, 20, 2), (1, 20, 2)]), 1e8, blocks=(6, 1000))
    first, second = sorted(simulation.recorder.requests)
    assert (first.prefill_ns, second.queue_ns) == (304, 304 + 200 - 1)


def test_layerwise_waits_for_room_before_the_prefill() -> None:
    """As with a full decode pool above, but the second prompt is not computed before 854 + 1 decision."""
    simulation = disaggregated(toy_trace([(0, 20, 5), (304, 20, 3)]), blocks=(1000, 8), layerwise=True)
    first, second = sorted(simulation.recorder.requests)
    through = first.arrival_ns + first.e2e_ns
    assert second.queue_ns == through - 304
    assert rows(simulation)[1][:3] == (through - 304 + 304, 0, 5)


def test_the_decode_side_fetches_what_its_own_cache_lacks() -> None:
    """Two prompts begin with the same 16 tokens: the second is computed from token 16 on, and so much is fetched."""
    trace = toy_trace([(0, 20, 2), (5000, 22, 2)], [[(7, 16)], [(7, 16)]])
    simulation = disaggregated(trace, 1e8)
    first, second = sorted(simulation.recorder.requests)
    assert (first.cached_tokens, second.cached_tokens) == (0, 16)
    assert simulation.cluster.disaggregation.use.cached_tokens.tolist() == [0, 16]
    assert simulation.cluster.disaggregation.use.transfer_ns.tolist() == [200, 60]
    assert second.prefill_ns == round(100 + 60 + 6 * 16 / 50 + 36 / 100)


def test_a_preempted_decode_computes_again_where_it_is() -> None:
    """10 blocks of 4 for two requests of 16 prompt and 12 output tokens: the last one in gives way, and recomputes."""
    simulation = disaggregated(toy_trace([(0, 16, 12), (0, 16, 12)]), blocks=(1000, 10))
    assert sum(row.preemptions for row in simulation.recorder.requests) >= 1
    prefill, decode = simulation.replicas
    assert decode.recomputed_tokens > 0 and prefill.recomputed_tokens == 0
    use = simulation.cluster.disaggregation
    assert [link.num_transfers for link in use.network.use(0)] == [2]  # nothing is sent twice


def test_prompts_that_hold_all_room_do_not_block_each_other() -> None:
    """2 blocks of 4 for two prompts of 4 tokens: both have their KV, and neither has room for its next token.

    The last one gives way, and computes its prompt and first token again when the other is through.
    """
    simulation = disaggregated(toy_trace([(0, 4, 3), (0, 4, 3)]), blocks=(1000, 2))
    first, second = sorted(simulation.recorder.requests)
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert simulation.replicas[1].recomputed_tokens == 5


@pytest.mark.parametrize("layerwise", [False, True])
def test_gaps_between_tokens_hold_the_transfer_once(layerwise: bool) -> None:
    simulation = disaggregated(toy_trace([(0, 20, 4), (40, 20, 6)]), 1e8, layerwise=layerwise)
    spans = [
        row.e2e_ns - row.queue_ns - row.load_ns - row.prefill_ns - row.host_ns
        for row in simulation.recorder.requests
    ]
    gaps = simulation.recorder.inter_token
    assert gaps.total == 3 + 5
    assert gaps.mean_ns() * gaps.total == pytest.approx(sum(spans))

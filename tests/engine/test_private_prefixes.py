"""Without content in the workload ``prefix_tree`` only counts blocks: nothing that a run shows may tell."""

from __future__ import annotations

from hypothesis import given, settings
from test_fused_equals_reference import BLOCK, setups, workloads
from toys import toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.private import PrivatePrefixes


@settings(max_examples=150, deadline=None)
@given(workloads(), setups())
def test_counting_gives_what_the_tree_gives(workload, setup) -> None:  # type: ignore[no-untyped-def]
    """Rows, timeline and evictions, also where preempted requests find their own blocks again."""
    (rows, _), (engine, extra, _) = workload, setup
    blocks = -(-max(i + o for _, i, o in rows) // BLOCK) + extra % 12
    runs = [
        toy_simulation(
            toy_trace(rows),
            engine=toy_engine(**engine),
            cache=toy_cache(blocks, BLOCK, names_content=names_content),
        )
        for names_content in (True, False)
    ]
    managers = [run.replicas[0].manager for run in runs]
    assert [type(manager) for manager in managers] == [PrefixTreeManager, PrivatePrefixes]
    assert runs[0].recorder.requests == runs[1].recorder.requests
    assert runs[0].recorder.timeline == runs[1].recorder.timeline
    assert managers[0].evicted_tokens() == managers[1].evicted_tokens()
    assert runs[0].replicas[0].num_events == runs[1].replicas[0].num_events


def test_a_preempted_request_finds_its_blocks() -> None:
    """Two requests of 8 + 9 tokens in 7 blocks of 4: the second one starts again, from what is left of its blocks."""
    simulation = toy_simulation(
        toy_trace([(0, 8, 9), (0, 8, 9)]), cache=toy_cache(7, BLOCK, names_content=False)
    )
    assert isinstance(simulation.replicas[0].manager, PrivatePrefixes)
    assert [row.preemptions for row in simulation.recorder.requests] == [0, 1]
    assert simulation.replicas[0].recomputed_tokens > 0

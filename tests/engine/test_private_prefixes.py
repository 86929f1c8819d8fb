"""Without content in the workload ``prefix_tree`` and its subclasses only count blocks: nothing that a run shows may tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from test_fused_equals_reference import BLOCK, setups, workloads
from toys import toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.load import load_manager
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.private import PrivatePrefixes
from kvsim.cache.private_tree import PrivateTree
from kvsim.cache.snapshots import SnapshotManager
from kvsim.cache.tree import PrefixTree


def plain(config):  # type: ignore[no-untyped-def]
    return load_manager("prefix_tree", config)


class Subclass(PrefixTreeManager):
    """Changes nothing."""


class Roomy(PrefixTreeManager):
    """Each request holds one block more, of which the tree does not know."""

    def fits(self, request):  # type: ignore[no-untyped-def]
        return request.kv_tokens <= (self.capacity_blocks - 1) * self.block_tokens

    def admit(self, request, plan):  # type: ignore[no-untyped-def]
        need = -(-request.prompt_tokens // self.block_tokens) + 1 - plan.detail.blocks
        path = self.tree.evictable_on_path(plan.detail.node, plan.detail.blocks)
        if need > self.num_free_blocks - path or not super().admit(request, plan):
            return False
        self._take(1)
        return True

    def _let_go(self, request):  # type: ignore[no-untyped-def]
        super()._let_go(request)
        self.private_blocks -= 1
        self.free_blocks += 1


@pytest.mark.parametrize(
    ("make_manager", "counting"), [(plain, PrivatePrefixes), (Subclass, PrivateTree), (Roomy, PrivateTree)]
)
@settings(max_examples=150, deadline=None)
@given(workload=workloads(), setup=setups())
def test_counting_gives_what_the_tree_gives(make_manager, counting, workload, setup) -> None:  # type: ignore[no-untyped-def]
    """Rows, timeline and evictions, also where preempted requests find their own blocks again."""
    (rows, _), (engine, extra, _) = workload, setup
    blocks = -(-max(i + o for _, i, o in rows) // BLOCK) + extra % 12
    runs = [
        toy_simulation(
            toy_trace(rows),
            engine=toy_engine(**engine),
            cache=toy_cache(blocks, BLOCK, names_content=names_content),
            make_manager=make_manager,
        )
        for names_content in (True, False)
    ]
    managers = [run.replicas[0].manager for run in runs]
    assert type(managers[0].tree) is PrefixTree
    assert counting in (type(managers[1]), type(getattr(managers[1], "tree", None)))
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


def test_who_keeps_the_tree() -> None:
    """A manager that looks at nodes, an eviction policy that ranks them, contents."""
    counts = toy_cache(7, BLOCK, names_content=False)
    assert type(Subclass(counts).tree) is PrivateTree
    assert type(SnapshotManager(replace(counts, options={"snapshot": "8 B"})).tree) is PrefixTree
    assert type(Subclass(toy_cache(7, BLOCK, names_content=False, eviction="fifo")).tree) is PrefixTree
    assert type(Subclass(toy_cache(7, BLOCK)).tree) is PrefixTree

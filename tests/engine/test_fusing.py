"""How many events a story takes, what a manager has to say before its steps are fused, and what they must not see."""

from __future__ import annotations

import pytest
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.none import NoReuse
from kvsim.cache.paged import Paged
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.private import PrivatePrefixes
from kvsim.engine.clocks import PowerLimit
from kvsim.engine.steps import Steps
from kvsim.entities import Batch


class Nosy(Paged):
    """Overrides a method that a run of steps relies on, and says nothing about it."""

    def commit(self, batch: Batch, steps: int) -> None:
        super().commit(batch, steps)


def test_a_subclass_that_changes_steps_has_to_say_that_they_stay_steady() -> None:
    assert Paged.steady_work and PrefixTreeManager.steady_work and NoReuse.steady_work
    assert not Nosy.steady_work


@pytest.mark.parametrize(("manager", "events"), [(Paged, 5), (Nosy, 7)])
def test_a_run_goes_on_through_the_output_before_it(manager: type[Paged], events: int) -> None:
    """Two requests at once: admit both, 4 decodes of both (through their first tokens), 10 of the longer one (through
    the end of the other), then nothing, twice: the last output is taken when its step has ended."""
    trace = toy_trace([(0, 4, 5), (0, 4, 15)])
    simulation = toy_simulation(trace, engine=toy_engine(async_scheduling=True), make_manager=manager)
    replica = simulation.replicas[0]
    assert replica.num_steps == 1 + 4 + 10
    assert replica.num_events == events


def test_what_a_run_lets_go_is_ranked_by_the_future_as_it_was_then() -> None:
    """Belady; requests go to two replicas in turn. Replica 0 lets A go at 1655, in the middle of a run of request 4.
    Row 5 needs A next, so B goes, which row 6 needs. Row 5 comes at 2500, to replica 1, before the run ends: then only
    row 8 would need A."""
    a, b = (1, 8), (2, 8)
    rows = [(0, 9, 1), (0, 5, 1), (1000, 9, 4), (1000, 5, 1), (1000, 5, 24), (2500, 9, 1)]
    rows += [(20_000, 9, 1), (20_000, 5, 1), (30_000, 9, 1)]
    trace = toy_trace(rows, [[b], [], [a], [], [], [a], [b], [], [a]])
    engine, cache = toy_engine(async_scheduling=True), toy_cache(9, eviction="belady")
    fused, _ = fused_and_unfused(lambda: toy_simulation(trace, engine=engine, cache=cache, num_replicas=2))
    found = {row.request: row for row in fused.recorder.requests}
    assert 1000 + found[2].e2e_ns == 1655 < 2500 < 1000 + found[4].e2e_ns
    assert [found[row].cached_tokens for row in (6, 8)] == [0, 8]


@pytest.mark.parametrize(("lives_ns", "hit"), [(3344, 0), (3345, 0), (3346, 8)])
def test_what_a_run_lets_go_ages_from_then_on(lives_ns: int, hit: int) -> None:
    """A is let go at 655, in the middle of a run that ends at 3225, and asked for again at 4000."""
    trace = toy_trace([(0, 9, 4), (0, 5, 24), (4000, 9, 1)], [[(1, 8)], [], [(1, 8)]])
    cache = toy_cache(100, eviction={"policy": "ttl", "seconds": lives_ns / 1e9})
    engine = toy_engine(async_scheduling=True)
    fused, _ = fused_and_unfused(lambda: toy_simulation(trace, engine=engine, cache=cache))
    found = {row.request: row for row in fused.recorder.requests}
    assert (found[0].e2e_ns, found[1].e2e_ns) == (655, 3225)
    assert found[2].cached_tokens == hit


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("blocks", [400, 45])  # in 45 requests are preempted
def test_a_step_that_only_goes_on_with_a_prompt_is_decided_the_short_way(
    monkeypatch: pytest.MonkeyPatch, blocks: int, deep: bool
) -> None:
    """Prompts of many chunks beside decodes, some of which end meanwhile, at a power limit."""
    taken: list[bool] = []
    short = Steps._next_chunk

    def counted(self: Steps, now: int) -> bool:
        taken.append(short(self, now))
        return taken[-1]

    monkeypatch.setattr(Steps, "_next_chunk", counted)
    limit = PowerLimit(((15, 1.5),), credit_ns=200, recovery_ns=1_000)
    engine = toy_engine(max_num_batched_tokens=16, graph_tokens=12, power_limit=limit, async_scheduling=deep)
    rows = [(0, 20, 40), (100, 150, 3), (900, 120, 60), (1_000, 9, 5), (4_000, 130, 2), (4_100, 140, 9)]
    cache = toy_cache(blocks, names_content=False)
    fused, unfused = fused_and_unfused(lambda: toy_simulation(toy_trace(rows), engine=engine, cache=cache))
    assert isinstance(fused.replicas[0].manager, PrivatePrefixes)
    assert taken.count(True) > 20 and False in taken
    assert any(row.preemptions for row in fused.recorder.requests) == (blocks == 45)
    for one in (fused, unfused):
        assert one.pools[0].cost.accounted == one.replicas[0].busy_ns == fused.replicas[0].busy_ns
    assert fused.recorder.inter_token.mean_ns() == unfused.recorder.inter_token.mean_ns()


def test_a_subclass_has_to_say_that_it_steps_at_once() -> None:
    class Counting(PrivatePrefixes):
        pass

    assert PrivatePrefixes.steps_at_once and not Counting.steps_at_once

"""How many events a story takes, and what a manager has to say before its steps are fused."""

from __future__ import annotations

import pytest
from toys import toy_engine, toy_simulation, toy_trace

from kvsim.cache.none import NoReuse
from kvsim.cache.paged import Paged
from kvsim.cache.prefix_tree import PrefixTreeManager
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

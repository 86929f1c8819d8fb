"""Clients who do not wait for ever: exact times, whatever the request is doing, and nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.tiers import TierConfig
from kvsim.cluster.clients import BY_USER, NO_FIRST_TOKEN, NO_LAST_TOKEN, Patience
from kvsim.cluster.router import make_router
from kvsim.cluster.simulation import Simulation
from kvsim.hardware.spec import LinkSpec
from kvsim.scenario.clients import Cancel, Clients
from kvsim.workloads.trace import Trace


def clients(**values: object) -> Clients:
    """Times in plain nanoseconds."""
    return Clients.model_construct(**values)  # type: ignore[arg-type]


def play(trace: Trace, setting: Clients, seed: int = 0, **options: object) -> Simulation:
    def prepare(simulation: Simulation) -> None:
        simulation.cluster.wait(Patience(setting, len(trace), seed))

    return toy_simulation(trace, prepare=prepare, **options)  # type: ignore[arg-type]


def waits(simulation: Simulation) -> dict[int, int]:
    return {row.request: row.queue_ns for row in simulation.recorder.requests}


# ---- stories: one slot, a prompt of 20 tokens and one output token takes 304 ns


def queue_of_three(**setting: object) -> Simulation:
    rows = [(0, 20, 1), (10, 20, 1), (20, 20, 1)]
    return play(toy_trace(rows), clients(**setting), engine=toy_engine(max_num_seqs=1))


def test_who_has_waited_too_long_leaves_the_queue() -> None:
    """Request 1 is through at 608, 598 after it came, and request 2 at 892 - 20 without it."""
    assert waits(queue_of_three(first_token_timeout=1000)) == {0: 0, 1: 294, 2: 588}
    simulation = queue_of_three(first_token_timeout=598)  # just in time for 1; 2 would have to wait 892
    assert waits(simulation) == {0: 0, 1: 294}
    assert simulation.recorder.cancelled == [(2, NO_FIRST_TOKEN)]
    simulation = queue_of_three(first_token_timeout=597)
    # 1 gives up at 608, when its token is taken, too late; 2 at 618, before it has begun
    assert waits(simulation) == {0: 0}
    assert simulation.recorder.cancelled == [(1, NO_FIRST_TOKEN), (2, NO_FIRST_TOKEN)]


def test_the_slot_of_who_gives_up_is_taken_at_the_next_boundary() -> None:
    """Request 0 decodes: 100 + 200 + 4 for the prompt, then 100 + 10 + context a token: 131, 132, ... Its timeout ends at 500,
    in the second decode (304 + 131 + 132 = 567); there request 1 gets in."""
    rows = [(0, 20, 50), (400, 20, 1)]
    simulation = play(toy_trace(rows), clients(timeout=500), engine=toy_engine(max_num_seqs=1))
    assert waits(simulation) == {1: 567 - 400}
    assert simulation.recorder.cancelled == [(0, NO_LAST_TOKEN)]
    assert simulation.replicas[0].num_steps == 4


def test_with_two_steps_in_flight_the_decided_one_still_runs() -> None:
    """Each step is decided when the one before it starts. The client leaves at 610, in the third decode (567 to 700): the
    fourth, to 834, was decided at 567. At 700 request 1 is decided; it starts at 834."""
    rows = [(0, 20, 50), (600, 20, 1)]
    engine = toy_engine(max_num_seqs=1, async_scheduling=True)
    simulation = play(toy_trace(rows), clients(timeout=610), engine=engine)
    assert simulation.recorder.cancelled == [(0, NO_LAST_TOKEN)]
    assert waits(simulation) == {1: 700 - 600}
    assert [row.prefill_ns for row in simulation.recorder.requests] == [834 - 700 + 304]


def test_blocks_of_who_gives_up_are_free_and_stay_reusable() -> None:
    """Request 1 continues what request 0 had computed: 5 of its 5 full blocks are found."""
    rows = [(0, 22, 50), (1000, 24, 1)]
    segments = [[(1, 20), (2, 2)], [(1, 20), (3, 4)]]
    simulation = play(toy_trace(rows, segments), clients(timeout=900), cache=toy_cache(20))
    assert simulation.recorder.cancelled == [(0, NO_LAST_TOKEN)]
    assert [row.cached_tokens for row in simulation.recorder.requests] == [20]
    assert simulation.replicas[0].manager.held_bytes == 0


def test_a_user_who_leaves() -> None:
    """Both at 500 after they came: the first one is through then, the second has not begun."""
    setting = clients(cancel=Cancel.model_construct(share=1.0, after=500, distribution="constant"))
    simulation = play(toy_trace([(0, 20, 2), (10, 20, 1)]), setting, engine=toy_engine(max_num_seqs=1))
    assert waits(simulation) == {0: 0}
    assert simulation.recorder.cancelled == [(1, BY_USER)]


def test_who_follows_a_request_that_was_given_up_comes_all_the_same() -> None:
    rows = [(0, 20, 50), (0, 20, 1)]
    trace = toy_trace(rows, after=[-1, 0], think_ns=[0, 100])
    simulation = play(trace, clients(timeout=400))
    assert simulation.recorder.cancelled == [(0, NO_LAST_TOKEN)]
    assert [(row.request, row.arrival_ns) for row in simulation.recorder.requests] == [(1, 501)]


def test_a_prompt_that_is_still_taken_in_is_given_up_before_it_meets_the_router() -> None:
    trace = toy_trace([(0, 20, 1)])
    simulation = play(trace, clients(timeout=50), engine=toy_engine(front_in_ns=100))
    assert simulation.recorder.cancelled == [(0, NO_LAST_TOKEN)]
    assert simulation.replicas[0].num_steps == 0


def test_what_is_on_its_way_out_comes_too_late() -> None:
    """The engine is through at 304, the client has the token at 354."""
    for timeout, done in ((354, 1), (353, 0)):
        simulation = play(
            toy_trace([(0, 20, 1)]), clients(timeout=timeout), engine=toy_engine(front_out_ns=50)
        )
        assert len(simulation.recorder.requests) == done
        assert len(simulation.recorder.cancelled) == 1 - done


def test_the_router_hears_of_it() -> None:
    """Request 0 leaves replica 0 at 500: request 1, which comes later, finds it empty."""
    rows = [(0, 20, 50), (700, 20, 1)]
    simulation = play(
        toy_trace(rows),
        clients(timeout=500),
        router=make_router("least_outstanding_requests"),
        num_replicas=20,
    )
    assert [row.replica for row in simulation.recorder.requests] == [0]
    assert [replica.outstanding_requests for replica in simulation.replicas] == [0] * 20


def test_shares_and_times_are_drawn_by_request() -> None:
    n = 20_000
    for distribution, most in (("exponential", None), ("uniform", 2000), ("constant", 1000)):
        draws = [
            Patience(
                clients(cancel=Cancel.model_construct(share=share, after=1000, distribution=distribution)),
                n,
                3,
            )._user
            for share in (0.1, 0.3)
        ]
        few, many = ({i: at for i, at in enumerate(drawn or []) if at < 1 << 60} for drawn in draws)
        assert abs(len(few) - 0.1 * n) < 150 and abs(len(many) - 0.3 * n) < 250
        assert few.items() <= many.items()  # common random numbers
        assert np.mean(list(many.values())) == pytest.approx(1000, rel=0.05)
        assert most is None or max(many.values()) <= most


# ---- the same fused or not, and nothing is lost


@st.composite
def cases(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    n = draw(st.integers(2, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrivals = np.sort(rng.integers(0, n * draw(st.sampled_from([10, 200, 1000])), n)).tolist()
    rows, segments, after, think = [], [], [], []
    closed = draw(st.booleans())
    for i, at in enumerate(arrivals):
        parts = [(int(rng.integers(3)), int(rng.choice([4, 10, 20]))), (100 + i, int(rng.integers(1, 20)))]
        rows.append((at, sum(tokens for _, tokens in parts), int(rng.choice([1, 2, 9, 40]))))
        segments.append(parts)
        follows = closed and i > 0 and rng.random() < 0.3
        after.append(int(rng.integers(i)) if follows else -1)
        think.append(int(rng.integers(1, 300)) if follows else 0)
    limits = st.sampled_from([None, 50, 300, 1000, 3000])
    share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    setting = clients(
        first_token_timeout=draw(limits),
        timeout=draw(limits),
        cancel=Cancel.model_construct(
            share=share, after=draw(st.sampled_from([100, 800])), distribution="exponential"
        ),
    )
    tiers, links = (), ()
    if draw(st.booleans()):
        mode = draw(st.sampled_from(["before", "layerwise"]))
        tiers = (TierConfig("ddr", draw(st.sampled_from([40, 400])), mode, "through", "lru", 4),)
        links = (LinkSpec("pcie", draw(st.sampled_from([1e8, 1e10])), 1e9, 10, 20),)
    deep = draw(st.booleans())
    return {
        "trace": toy_trace(rows, segments, after=after, think_ns=think),
        "setting": setting,
        "seed": draw(st.integers(0, 5)),
        "engine": toy_engine(
            max_num_seqs=draw(st.sampled_from([1, 4])),
            max_num_batched_tokens=draw(st.sampled_from([8, 64])),
            async_scheduling=deep,
            cpu_ns=draw(st.sampled_from([0, 30])),
            front_in_ns=draw(st.sampled_from([0, 15])),
            front_out_ns=draw(st.sampled_from([0, 15])),
            load_decisions=draw(st.sampled_from([0, 1])),
            queue=draw(st.sampled_from(["fcfs", "priority", "vtc", "cached_share"])),
        ),
        "cache": toy_cache(draw(st.sampled_from([16, 24, 400])), tiers=tiers),
        "links": links,
        "num_replicas": draw(st.sampled_from([1, 2])),
    }


@settings(max_examples=200)
@given(options=cases())
def test_nothing_is_lost_and_fused_equals_unfused(options: dict[str, object]) -> None:
    fused, unfused = fused_and_unfused(lambda: play(**options))  # type: ignore[arg-type]
    assert sorted(fused.recorder.cancelled) == sorted(unfused.recorder.cancelled)
    rows = fused.recorder
    through = [
        *(row.request for row in rows.requests),
        *(row for row, _ in rows.rejected),
        *(row for row, _ in rows.cancelled),
    ]
    assert sorted(through) == list(range(len(options["trace"])))  # type: ignore[arg-type]
    setting = options["setting"]
    assert isinstance(setting, Clients)
    for row in rows.requests:
        ttft = row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns
        assert setting.first_token_timeout is None or ttft <= setting.first_token_timeout
        assert setting.timeout is None or row.e2e_ns <= setting.timeout
    for replica in fused.replicas:
        assert replica.outstanding_requests == replica.outstanding_tokens == 0
        assert replica.manager.held_bytes == 0
        assert not replica.running and not replica.waiting and not replica._gone


def test_cancelling_everything_at_once() -> None:
    """Sequence: all leave at their own arrival."""
    rows: Sequence[tuple[int, int, int]] = [(i, 20, 30) for i in range(50)]
    simulation = play(toy_trace(rows), clients(timeout=0))
    assert len(simulation.recorder.cancelled) == 50

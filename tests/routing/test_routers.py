"""Where requests go: exact stories, equality with plain searches over all replicas, and theory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toys import toy_cache, toy_engine, toy_simulation, toy_trace

import kvsim.cluster.loads as loads_module
from kvsim.cluster.router import Router, make_router
from kvsim.cluster.simulation import Simulation
from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.errors import ScenarioError
from kvsim.workloads.trace import Trace


def replicas_of(simulation: Simulation) -> list[int]:
    return [row.replica for row in sorted(simulation.recorder.requests)]


def with_names(
    trace: Trace, session: Sequence[int] | None = None, tenant: Sequence[int] | None = None
) -> Trace:
    for name, values in (("session", session), ("tenant", tenant)):
        if values is not None:
            getattr(trace, name)[:] = values
    return trace


# ---- stories


def test_fewest_requests_and_fewest_tokens_differ() -> None:
    """A long prompt on the first replica, two short ones later: by requests they spread, by tokens they do not."""
    rows = [(0, 60, 5), (1, 10, 5), (2, 10, 5), (3, 10, 5)]
    tokens = toy_simulation(toy_trace(rows), router=make_router("least_outstanding_tokens"), num_replicas=2)
    requests = toy_simulation(
        toy_trace(rows), router=make_router("least_outstanding_requests"), num_replicas=2
    )
    assert replicas_of(tokens) == [0, 1, 1, 1]
    assert replicas_of(requests) == [0, 1, 0, 1]


def test_a_load_ends_when_the_last_token_is_out() -> None:
    """A prompt of 10 tokens and one output token takes 100 + 100 + 1 ns: at 201 its replica still has it, at 202 not."""
    for at, expected in ((201, 1), (202, 0)):
        trace = toy_trace([(0, 10, 1), (at, 10, 1)])
        simulation = toy_simulation(trace, router=make_router("least_outstanding_requests"), num_replicas=2)
        assert replicas_of(simulation) == [0, expected]


def test_session_affinity_keeps_and_spills() -> None:
    """Session 0 stays on its replica while the other one idles; with a factor of 1.5 its second request moves."""
    rows = [(0, 40, 5), (1, 10, 5), (2, 10, 5), (3, 10, 5)]
    session = [0, 0, 1, 0]
    never = toy_simulation(
        with_names(toy_trace(rows), session),
        router=make_router({"policy": "session_affinity", "spill_factor": None}),
        num_replicas=2,
    )
    assert replicas_of(never) == [0, 0, 1, 0]
    spills = toy_simulation(
        with_names(toy_trace(rows), session),
        router=make_router({"policy": "session_affinity", "spill_factor": 1.5}),
        num_replicas=2,
    )
    # request 1 finds 40 tokens on replica 0, twice the mean, and takes its session to replica 1
    assert replicas_of(spills) == [0, 1, 1, 1]


@pytest.mark.parametrize("key", ["session", "tenant", "prefix"])
def test_consistent_hash_sends_equal_keys_together(key: str) -> None:
    n = 60
    names = [i % 6 for i in range(n)]
    segments = [[(name, 8), (100 + i, 4)] for i, name in enumerate(names)]
    trace = with_names(toy_trace([(1000 * i, 12, 2) for i in range(n)], segments), names, names)
    router = {"policy": "consistent_hash", "key": key, "prefix_tokens": 8, "load_factor": None}
    found = replicas_of(toy_simulation(trace, router=make_router(router), num_replicas=5))
    homes = {name: {found[i] for i in range(n) if names[i] == name} for name in range(6)}
    assert all(len(home) == 1 for home in homes.values())
    assert len(set(found)) > 1


def test_consistent_hash_moves_few_keys_when_a_replica_joins() -> None:
    """Of 2,000 sessions on 10 replicas only those move that go to the eleventh, about 1/11."""
    n = 2000
    trace = [(1000 * i, 4, 1) for i in range(n)]
    router = {"policy": "consistent_hash", "load_factor": None}
    few, more = (
        replicas_of(
            toy_simulation(
                with_names(toy_trace(trace), range(n)),
                router=make_router(router),
                num_replicas=replicas,
                check=False,
            )
        )
        for replicas in (10, 11)
    )
    moved = [b for a, b in zip(few, more, strict=True) if a != b]
    assert set(moved) == {10}
    assert 0.5 * n / 11 < len(moved) < 1.7 * n / 11


def test_consistent_hash_with_bounded_loads() -> None:
    """All requests have one key and none ends: no replica has more than ceil(1.5 (m + 1) / 4) at any time."""
    n, factor = 40, 1.5
    trace = with_names(toy_trace([(i, 4, 500) for i in range(n)]), [7] * n)
    router = make_router({"policy": "consistent_hash", "load_factor": factor})
    found = replicas_of(
        toy_simulation(trace, engine=toy_engine(max_num_seqs=n), router=router, num_replicas=4)
    )
    count: Counter[int] = Counter()
    for m, replica in enumerate(found):
        count[replica] += 1
        assert count[replica] <= -(-factor * (m + 1) // 4)
    assert max(count.values()) == 15  # the bound is met


# ---- the same as asking every replica


class PlainLeast(Router):
    """Asks all."""

    def __init__(self, measure: str) -> None:
        self._measure = loads_module.LOADS[measure]

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        return min(replicas, key=lambda replica: (self._measure(replica), replica.index))


class PlainPrefixAware(Router):
    """Asks all."""

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        def work(replica: Replica) -> tuple[int, int]:
            replica.sync()
            load = replica.outstanding_tokens
            return replica.manager.match(request).compute_tokens + load, replica.index

        return min(replicas, key=work)


@st.composite
def busy_traces(draw: st.DrawFn) -> Trace:
    """Shared prefixes, bursts, some closed loops."""
    n = draw(st.integers(5, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrivals = np.sort(rng.integers(0, n * draw(st.sampled_from([20, 100, 500])), n)).tolist()
    rows, parts, after, think = [], [], [], []
    closed = draw(st.booleans())
    for i, at in enumerate(arrivals):
        segments = [(int(rng.integers(4)), int(rng.choice([4, 12, 30])))]
        if rng.random() < 0.5:
            segments.append((10 + int(rng.integers(6)), int(rng.choice([3, 8]))))
        segments.append((1000 + i, int(rng.integers(1, 20))))
        follows = closed and i > 2 and rng.random() < 0.4
        rows.append((at, sum(tokens for _, tokens in segments), int(rng.choice([1, 2, 7, 30]))))
        parts.append(segments)
        after.append(int(rng.integers(i)) if follows else -1)
        think.append(int(rng.integers(1, 300)) if follows else 0)
    return toy_trace(rows, parts, after=after, think_ns=think)


@settings(max_examples=40)
@given(
    trace=busy_traces(),
    replicas=st.sampled_from([2, 5, 20, 33]),
    deep=st.booleans(),
    blocks=st.sampled_from([24, 40, 1000]),
    which=st.sampled_from(["least_outstanding_tokens", "least_outstanding_requests", "prefix_aware"]),
)
def test_the_choice_is_that_of_asking_everybody(
    trace: Trace, replicas: int, deep: bool, blocks: int, which: str
) -> None:
    plain = PlainPrefixAware() if which == "prefix_aware" else PlainLeast(which.removeprefix("least_"))
    found, expected = (
        toy_simulation(
            trace,
            engine=toy_engine(async_scheduling=deep, cpu_ns=20),
            cache=toy_cache(blocks),
            router=router,
            num_replicas=replicas,
        ).recorder.requests
        for router in (make_router(which), plain)
    )
    assert sorted(found) == sorted(expected)


def test_few_replicas_are_asked_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 replicas, 4,000 requests: loads are asked for about as often as replicas decide, not 200 times a request."""
    asked = 0
    measure = loads_module.LOADS["outstanding_tokens"]

    def counted(replica: Replica) -> int:
        nonlocal asked
        asked += 1
        return measure(replica)

    monkeypatch.setitem(loads_module.LOADS, "outstanding_tokens", counted)
    trace = toy_trace([(3 * i, 10, 20) for i in range(4000)])
    simulation = toy_simulation(
        trace, "paged", router=make_router("least_outstanding_tokens"), num_replicas=200, check=False
    )
    events = sum(replica.num_events for replica in simulation.replicas)
    assert asked < 2 * events + 4000 + 200
    assert asked < 0.1 * 200 * 4000


# ---- theory


def most_loaded(policy: str, seed: int, n: int) -> int:
    """As many requests as replicas, all at once: how many the fullest replica gets."""
    router = make_router({"policy": policy, "load": "outstanding_requests"} if policy != "random" else policy)
    router.rng = np.random.default_rng(seed)
    simulation = toy_simulation(
        toy_trace([(i, 4, 100) for i in range(n)]), "paged", router=router, num_replicas=n, check=False
    )
    return max(Counter(replicas_of(simulation)).values())


def test_two_choices_against_one() -> None:
    """Balls into bins (Azar et al. 1994): the fullest of n bins has about ln n / ln ln n balls, with two choices
    ln ln n / ln 2 + O(1). For n = 300 that is 3.3 + O(1) and 2.5 + O(1); over ten seeds two choices never have more than 3."""
    one = [most_loaded("random", seed, 300) for seed in range(10)]
    two = [most_loaded("power_of_two_choices", seed, 300) for seed in range(10)]
    assert max(two) <= 3 < np.mean(one)


def test_random_routing_splits_poisson_arrivals() -> None:
    """Each of four replicas is then an M/D/1 queue with a quarter of the rate: mean wait rho / (2 (1 - rho)) services."""
    utilisation, waits = 0.6, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        arrivals = np.cumsum(rng.exponential(304 / utilisation / 4, 20_000)).astype(np.int64)
        trace = toy_trace([(int(at), 20, 1) for at in arrivals])  # a service is 100 + 200 + 4 ns
        router = make_router("random")
        router.rng = np.random.default_rng(100 + seed)
        simulation = toy_simulation(
            trace, "paged", toy_engine(max_num_seqs=1), router=router, num_replicas=4, check=False
        )
        waits.append(np.mean([row.queue_ns for row in simulation.recorder.requests]))
    theory = 304 * utilisation / (2 * (1 - utilisation))
    half = stats.t.ppf(0.995, 9) * np.std(waits, ddof=1) / np.sqrt(10)
    assert half < 0.04 * theory
    assert abs(np.mean(waits) - theory) < half, f"{np.mean(waits):.1f} +- {half:.1f}, theory {theory:.1f}"


# ---- mistakes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"policy": "consistent_hash", "key": "user"},
            "key: unknown value 'user'; known: prefix, session, tenant",
        ),
        (
            {"policy": "consistent_hash", "load_factor": 0.5},
            "load_factor: expected a number of at least 1, found 0.5",
        ),
        (
            {"policy": "session_affinity", "spil_factor": 2},
            "no option 'spil_factor'; did you mean 'spill_factor'?",
        ),
        ({"policy": "power_of_two_choices", "load": "tokens"}, "load: unknown value 'tokens'; "),
        ({"policy": "round_robin", "load": 1}, "has no option 'load'; it has none"),
    ],
)
def test_options_that_cannot_be_used(spec: dict[str, object], message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        make_router(spec)
    assert message in str(error.value)
    assert str(error.value).startswith(f"router '{spec['policy']}'")

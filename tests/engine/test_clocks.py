"""The GPU's power limit: what long steps take on top, and what a rest spares."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import fused_and_unfused, toy_engine, toy_simulation, toy_trace

from kvsim.cluster.simulation import Simulation
from kvsim.engine.clocks import Clocks, PowerLimit
from kvsim.engine.profile import load_engine
from kvsim.errors import ScenarioError

LIMIT = PowerLimit(((1000, 1.1), (3000, 1.05)), credit_ns=4_000, recovery_ns=100_000)


def slowed(*steps: tuple[int, int, int]) -> list[int]:
    """Of (tokens, start, price) in turn."""
    clocks = Clocks(LIMIT)
    return [clocks.slowed_ns(*step) for step in steps]


def test_a_rested_gpu_is_spared_its_credit_once() -> None:
    # 30 us x 0.1 = 3 us of 4 spared, then the last one, then nothing
    assert slowed((1000, 0, 30_000), (1000, 30_000, 30_000), (1000, 62_000, 30_000)) == [0, 2_000, 3_000]


def test_a_pause_brings_the_credit_back_in_proportion() -> None:
    end = 40_000 + 1_000  # 50 us x 0.1 = 5 us, 4 of them spared
    assert slowed((1000, -10_000, 50_000), (1000, end + 25_000, 50_000)) == [1_000, 4_000]
    assert slowed((1000, -10_000, 50_000), (1000, end + 500_000, 50_000)) == [
        1_000,
        1_000,
    ]  # no more than all of it


def test_sustained_prefill_takes_its_own_factor_until_a_pause() -> None:
    limit = PowerLimit(((1000, 1.05),), 0, 1_000, sustained=1.2, sustained_after_ns=30_000_000)
    clocks = Clocks(limit)
    starts = [0, 21_000_000, 42_000_000, 70_000_000]  # the last one after a pause of 4 ms
    assert [clocks.slowed_ns(1000, at, 20_000_000) // 1_000_000 for at in starts] == [1, 1, 4, 1]


@pytest.mark.parametrize(("tokens", "factor"), [(513, 0.1), (2000, 0.075), (3000, 0.05), (9000, 0.05)])
def test_the_factor_goes_by_tokens(tokens: int, factor: float) -> None:
    assert slowed((tokens, 0, 1_000_000)) == [round(1_000_000 * factor) - 4_000]


def limited(**more: object) -> Simulation:
    """Prompts of 100, 40 and 100 tokens, the last one long after the others."""
    limit = PowerLimit(((60, 1.5),), credit_ns=200, recovery_ns=1_000)
    engine = toy_engine(max_num_batched_tokens=2000, graph_tokens=50, power_limit=limit, **more)
    return toy_simulation(toy_trace([(0, 100, 4), (1_900, 40, 30), (90_000, 100, 40)]), engine=engine)


def test_steps_of_long_prompts_alone_are_slowed_and_all_of_it_is_counted() -> None:
    simulation = limited()
    firsts = [row.queue_ns + row.prefill_ns for row in simulation.recorder.requests]
    # 100 + 10 x 100 + 100 x 100 / 100 = 1,200 ns, half of that on top, but for 200; the last one on a rested GPU again
    assert firsts[0] == firsts[2] == 1_600
    # decodes end at 1,811 and 2,023; the second prompt goes beside the third: 100 + 10 x 41 + 103 + 16, not slowed
    assert firsts[1] == 2_023 + 629 - 1_900
    [replica] = simulation.replicas
    assert simulation.pools[0].cost.accounted == replica.busy_ns


@pytest.mark.parametrize("deep", [False, True])
def test_fused_equals_unfused_at_the_power_limit(deep: bool) -> None:
    fused, unfused = fused_and_unfused(lambda: limited(async_scheduling=deep))
    assert fused.replicas[0].busy_ns == unfused.replicas[0].busy_ns


def test_the_profile_names_what_is_wrong(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("engine") / "odd.yaml"
    for part, message in (
        ("{factors: [[3000, 0.9]], recovery: 1 ms}", "factors \\[tokens, factor >= 1\\]"),
        ("{factors: [[3000, 1.1]]}", "recovery > 0 s"),
        ("{factors: [[3000, 1.1]], recovery: 1 ms, full: 4 ms}", "power_limit.full: unknown key"),
        ("{factors: [[3000, 1.1]], recovery: 1 ms, sustained: 0.9}", "sustained >= 1, found .* 0.9"),
        (
            "{factors: [[3000, 1.1]], recovery: 1 ms, sustained: .nan}",
            "sustained: expected a number, found nan",
        ),
        ("{factors: 1.1, recovery: 1 ms}", "factors: expected a list, found 1.1"),
        (
            "{factors: [3000, 1.1], recovery: 1 ms}",
            "factors: expected pairs \\[number, factor\\], found 3000",
        ),
        ("{factors: [[3000, high]], recovery: 1 ms}", "factors: expected a number, found 'high'"),
        ("{factors: [[-1, 1.1]], recovery: 1 ms}", "factors: expected a whole number, 0 or more, found -1"),
        (
            "{factors: [[9, 1.1], [3, 1.2]], recovery: 1 ms}",
            "factors: numbers have to rise, found 9 before 3",
        ),
    ):
        path.write_text(f"name: odd\ndevice: {{power_limit: {part}}}\n")
        with pytest.raises(ScenarioError, match=message):
            load_engine(str(path), max_num_seqs=8, max_num_batched_tokens=512, max_model_len=1024)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host:", "host: expected keys and values, found None"),
        ("host: {graph_tokens: many}", "host.graph_tokens: expected a whole number, 0 or more, found 'many'"),
        ("device: {prefill_factor: x}", "device.prefill_factor: expected a number, found 'x'"),
        ("device: {graphs: [[8, 1.4], [4, 1.3]]}", "device.graphs: numbers have to rise, found 8 before 4"),
        ("device: {graph_sizes: 8}", "device.graph_sizes: expected a list, found 8"),
        ("device_by_kv_dtype: {fp8: 3}", "device_by_kv_dtype: fp8: expected keys and values, found 3"),
    ],
)
def test_a_profile_of_ones_own_with_odd_values(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"name: odd\n{text}\n")
    with pytest.raises(ScenarioError, match=message):
        load_engine(str(path), max_num_seqs=8, max_num_batched_tokens=512, max_model_len=1024, kv_dtype="fp8")

"""The GPU's power limit: what long steps take on top, and what a rest spares."""

from __future__ import annotations

import pytest

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


def test_the_profile_names_what_is_wrong(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("engine") / "odd.yaml"
    for part, message in (
        ("{factors: [[3000, 0.9]], recovery: 1 ms}", "factors \\[tokens, factor >= 1\\]"),
        ("{factors: [[3000, 1.1]]}", "recovery > 0 s"),
        ("{factors: [[3000, 1.1]], recovery: 1 ms, full: 4 ms}", "power_limit.full: unknown key"),
    ):
        path.write_text(f"name: odd\ndevice: {{power_limit: {part}}}\n")
        with pytest.raises(ScenarioError, match=message):
            load_engine(str(path), max_num_seqs=8, max_num_batched_tokens=512, max_model_len=1024)

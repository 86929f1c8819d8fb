"""Which timings are taken once more, and which of the two stays."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.timing import REST_S, Timing, steadied


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (Timing(201.0, 10.06), Timing(190.0, 1.0), "second"),
        (Timing(201.0, 10.06), Timing(210.0, 1.0), "first"),
        (Timing(201.0, 10.05), None, "first"),  # five percent is steady enough
        (Timing(200.0, 100.0), None, "first"),  # too short to heat anything
    ],
)
def test_a_long_kernel_whose_replays_lie_apart_rests_and_is_timed_again(
    first: Timing, second: Timing | None, kept: str
) -> None:
    given, rests = [second, first], list[float]()

    def timed() -> Timing:
        timing = given.pop()
        assert timing is not None
        return timing

    assert steadied(timed, rests.append) == {"first": first, "second": second}[kept]
    assert rests == ([] if second is None else [REST_S])

"""What the runs of a replica amount to."""

from __future__ import annotations

import numpy as np
from toys import ToyCost, ToyPriced

from kvsim.engine.run import Run, Tally


def test_the_sum_of_a_long_run_is_a_plain_number() -> None:
    cost, gaps = ToyCost(), []
    tally = Tally(cost, True, lambda times, nums: None, lambda times, nums: gaps.extend(times))
    run = Run()
    run.fused, run.priced, run.began, run.decodes = True, ToyPriced([10] * 100), 90, 3
    run.steps, run.boundaries, run.ends, run.end = 100, 100 + 10 * np.arange(100), None, 1_100
    tally.close(run)
    tally.settle()
    assert (tally.busy_ns, tally.num_steps, len(gaps)) == (1_000, 100, 1)
    assert type(tally.busy_ns) is int

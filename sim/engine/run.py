"""A run: steps that follow from one decision. What is known of them in advance, and what they amount to in the end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from kvsim.cost.model import CostModel, Priced
from kvsim.engine.timing import Times
from kvsim.entities import Request

RUNS_AT_ONCE = 256  # are counted together


Effects = tuple[list[Request], list[Request]]
"""What becomes true when a step's output is taken: whose first token it has, and who has finished."""


class Run:
    """Steps that are priced and laid out. A cut makes ``steps`` smaller: what is left out was never decided.

    Decision i + 1 is taken at ``boundaries[i]``, step i ends on the device at ``ends[i]``; without ``ends`` the device is
    the bottleneck, and it ends at ``boundaries[i + 1]``. The last one ends at ``end``. A replica has one object for all its
    runs, one after the other.
    """

    __slots__ = (
        "began", "boundaries", "decodes", "done", "end", "ends", "fused", "output", "priced", "steps", "whole",
    )  # fmt: skip

    # of a fused run: decode steps, committed when somebody looks; else it is one step, committed and counted when it was decided
    fused: bool
    priced: Priced
    steps: int
    whole: bool  # it was not cut
    began: int  # when the first step was decided
    boundaries: Times
    ends: Times | None
    end: int
    decodes: int  # output tokens of each step, without first tokens
    done: int  # steps that are committed
    output: Effects | None  # of the step before the run, where it does not end the run: due at boundaries[0]

    def decided_by(self, now: int) -> int:
        """Steps that are decided before ``now``; the first one always is."""
        return min(self.steps, 1 + bisect_left(self.boundaries, now))

    def end_of(self, step: int) -> int:
        """When it ends on the device."""
        if step == self.steps - 1:
            return self.end
        return int(self.boundaries[step + 1] if self.ends is None else self.ends[step])

    def cut(self, steps: int) -> None:
        """Change. Only so many steps, fewer than there were, are decided."""
        self.end = self.end_of(steps - 1)
        self.steps, self.whole = steps, False
        self.boundaries = self.boundaries[:steps]

    def busy_ns(self, steps: int) -> int:
        """How long the first ``steps`` steps of a fused run take on the device."""
        if self.ends is None:
            return self.end_of(steps - 1) - int(self.boundaries[0])
        rows = self.priced.step_ns
        if len(rows) != steps:
            rows = rows[:steps]
        return sum(rows) if type(rows) is list else int(np.add.reduce(rows))


Closed = tuple[Priced | None, int, int, int, int, Times | None]
"""Of a run that is over: price (None = counted already), steps, nanoseconds of these, from its first decision to the one after
it, output tokens of each step, and its boundaries if there are gaps between them that count."""


class Tally:
    """What the runs of one replica amount to: device time, steps, gaps between output tokens."""

    def __init__(
        self,
        cost: CostModel,
        deep: bool,
        record_each: Callable[[Sequence[int], Sequence[int]], None],
        record_gaps: Callable[[Sequence[Times], Sequence[int]], None],
    ) -> None:
        """``deep``: two steps are in flight, so that a boundary takes the output of the step before the last."""
        self._account_each = cost.account_each
        self._deep = deep
        self._record_each, self._record_gaps = record_each, record_gaps
        self._untaken = 0  # decodes of the step in flight, after the runs that are counted
        self.closed: list[Closed] = []  # over, and not counted: :meth:`settle` when there are RUNS_AT_ONCE
        self.busy_ns = self.num_steps = 0

    def close(self, run: Run) -> None:
        """Change. A fused run is over."""
        steps, boundaries = run.steps, run.boundaries
        first = boundaries[0]
        if type(first) is not int:  # a long run has arrays; sums of nanoseconds stay plain numbers
            first = int(first)
        busy_ns = run.end - first if run.ends is None else run.busy_ns(steps)
        times = boundaries if steps > 1 else None
        self.closed.append((run.priced, steps, busy_ns, first - run.began, run.decodes, times))
        if len(self.closed) >= RUNS_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Change. Count the steps of the runs that are over."""
        if not self.closed:
            return
        prices, num_steps, times_ns, gaps_ns, decodes, longer = zip(*self.closed, strict=True)
        self.closed.clear()
        self._account_each(prices, num_steps, times_ns)
        self.busy_ns += sum(times_ns)
        self.num_steps += sum(num_steps)
        # output tokens of decodes come as far apart as the boundaries at which they are taken
        self._record_each(gaps_ns, (self._untaken, *decodes[:-1]) if self._deep else decodes)
        self._untaken = decodes[-1]
        times = [one for one in longer if one is not None]
        if times:
            nums = [num for num, one in zip(decodes, longer, strict=True) if one is not None]
            self._record_gaps(times, nums)

    def wait(self, gap_ns: int) -> None:
        """There was no step to decide; ``gap_ns`` later the output of the last one was taken."""
        self.settle()
        if self._deep:
            self._record_each((gap_ns,), (self._untaken,))
        self._untaken = 0

"""A run: steps that follow from one decision. What is known of them in advance, and what they amount to in the end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from kvsim.cost.model import CostModel, Priced
from kvsim.engine.timing import Times
from kvsim.entities import Request

RUNS_AT_ONCE = 256  # are counted together


class Effects:
    """What becomes true when a step's output is taken."""

    __slots__ = ("finished", "first_tokens")

    def __init__(self, first_tokens: list[Request], finished: list[Request]) -> None:
        self.first_tokens = first_tokens
        self.finished = finished


class Run:
    """Steps that are priced and laid out. A cut makes ``steps`` smaller: what is left out was never decided.

    Decision i + 1 is taken at ``boundaries[i]``, step i ends on the device at ``ends[i]``.
    """

    __slots__ = ("began", "boundaries", "decodes", "done", "ends", "fused", "output", "priced", "steps")

    def __init__(
        self, priced: Priced, began: int, boundaries: Times, ends: Times, decodes: int, fused: bool
    ) -> None:
        self.priced = priced
        self.steps = len(boundaries)
        self.began = began  # when the first step was decided
        self.boundaries = boundaries
        self.ends = ends
        self.decodes = decodes  # output tokens of each step, without first tokens
        self.fused = (
            fused  # decode steps, committed when somebody looks; else one step, committed when it was decided
        )
        self.done = 0  # steps that are committed
        self.output: Effects | None = (
            None  # of the step before the run, where it does not end the run: due at boundaries[0]
        )

    def decided_by(self, now: int) -> int:
        """Steps that are decided before ``now``; the first one always is."""
        return min(self.steps, 1 + bisect_left(self.boundaries, now))


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
        self.closed: list[Run] = []  # over, and not counted: :meth:`settle` when there are RUNS_AT_ONCE
        self.busy_ns = self.num_steps = 0

    def settle(self) -> None:
        """Change. Count the steps of the runs that are over."""
        closed = self.closed
        if not closed:
            return
        num_steps = [run.steps for run in closed]
        self.busy_ns += self._account_each([run.priced for run in closed], num_steps)
        self.num_steps += sum(num_steps)
        # output tokens of decodes come as far apart as the boundaries at which they are taken
        decodes = [run.decodes for run in closed]
        first = [self._untaken, *decodes[:-1]] if self._deep else decodes
        self._untaken = decodes[-1]
        self._record_each([run.boundaries[0] - run.began for run in closed], first)
        longer = [run for run in closed if run.steps > 1 and run.decodes]
        if longer:
            times = [run.boundaries[: run.steps] for run in longer]
            self._record_gaps(times, [run.decodes for run in longer])
        closed.clear()

    def wait(self, gap_ns: int) -> None:
        """There was no step to decide; ``gap_ns`` later the output of the last one was taken."""
        self.settle()
        if self._deep:
            self._record_each((gap_ns,), (self._untaken,))
        self._untaken = 0

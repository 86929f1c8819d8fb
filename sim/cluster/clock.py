"""The simulated clock, with a short cut for what happens next in any case."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import simpy

SKIPS = 16  # in a row; then whoever watches the run has a turn


class Clock(simpy.Environment):
    """SimPy's environment in integer nanoseconds."""

    now = property(attrgetter("_now"))  # SimPy's is a method in Python

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._skips = 0

    def skip_to(self, at_ns: int) -> bool:
        """Change. Move the clock there, as the event that a process would now sleep on: done if nothing else comes first.

        Not every time: after some skips the process has to sleep once.
        """
        queue = self._queue
        if (queue and queue[0][0] <= at_ns) or self._skips >= SKIPS:
            self._skips = 0
            return False
        self._skips += 1
        self._now = at_ns
        return True

"""What prices one kernel by its sizes, and the registry of kernels by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kvsim.cost.line import Line
from kvsim.cost.setting import Setting
from kvsim.cost.work import Column

Array = np.ndarray[Any, Any]


class Pricer(ABC):
    """Times of one kernel for one model on one GPU; lattice nanoseconds (:mod:`kvsim.cost.lattice`)."""

    lines: Sequence[Line] = ()  # all that :meth:`line` has given

    @abstractmethod
    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        """(nanoseconds of one call on all layers, provenance). ``share``: of the link, for copy lanes."""

    def line(
        self, args: Mapping[str, Column], lane: str = "gpu", share: float = 1.0, steps: int = 1
    ) -> tuple[Line, Column] | None:
        """The line on which :meth:`price` lies in the first of so many steps, and the size x that it is over.

        No other size changes the price in these steps; None where one does, or the price is on no line. Which line it is
        depends on the sizes of the first step alone. ``steps`` 0: in any number of them, backwards, too, as long as x is
        on the line. Runs of steps without lines are priced step by step.
        """
        return None


kernel_pricers: dict[str, Callable[[Setting], Pricer]] = {}
"""Kernels with a price function of their own; others are priced by a table or by their bytes and FLOPs."""


def register_kernel(name: str) -> Callable[[Callable[[Setting], Pricer]], Callable[[Setting], Pricer]]:
    """Decorator for a Pricer class (or factory): ``name`` is the kernel's name in :class:`Kernel`."""

    def add(factory: Callable[[Setting], Pricer]) -> Callable[[Setting], Pricer]:
        if name in kernel_pricers:
            raise ValueError(f"kernel '{name}' has a pricer already: {kernel_pricers[name]}")
        kernel_pricers[name] = factory
        return factory

    return add

"""What prices one kernel by its sizes, and the registry of kernels by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvsim.cost.setting import Setting
from kvsim.cost.work import Column, column

Array = np.ndarray[Any, Any]


class Pricer(ABC):
    """Times of one kernel for one model on one GPU; lattice nanoseconds (:mod:`kvsim.cost.lattice`)."""

    @abstractmethod
    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        """(nanoseconds of one call on all layers, provenance). ``share``: of the link, for copy lanes."""

    def column(
        self, args: Mapping[str, Column], steps: int, lane: str = "gpu", share: float = 1.0
    ) -> tuple[Array, str | list[str]]:
        """:meth:`price` of each of ``steps`` steps: shape (steps,), and the provenance of all or of each."""
        if all(isinstance(value, int | float) for value in args.values()):
            time_ns, provenance = self.price(args, lane, share)  # type: ignore[arg-type]
            return np.full(steps, time_ns), provenance
        rows = {name: column(value, steps).tolist() for name, value in args.items()}
        found = [
            self.price({name: values[i] for name, values in rows.items()}, lane, share) for i in range(steps)
        ]
        provenances = [provenance for _, provenance in found]
        same = len(set(provenances)) == 1
        return np.array([time_ns for time_ns, _ in found]), provenances[0] if same else provenances


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

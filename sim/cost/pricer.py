"""What prices one kernel by its sizes, and the registry of kernels by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvsim.cost.setting import Setting
from kvsim.cost.work import Column, listed

Array = np.ndarray[Any, Any]


class Pricer(ABC):
    """Times of one kernel for one model on one GPU; lattice nanoseconds (:mod:`kvsim.cost.lattice`)."""

    @abstractmethod
    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        """(nanoseconds of one call on all layers, provenance). ``share``: of the link, for copy lanes."""

    def rows(
        self, args: Mapping[str, Column], steps: int, lane: str = "gpu", share: float = 1.0
    ) -> tuple[float | list[float], str | list[str]]:
        """:meth:`price` of ``steps`` steps, one by one: of all or of each; and so the provenance."""
        for value in args.values():
            if not isinstance(value, int | float):
                break
        else:
            return self.price(args, lane, share)  # type: ignore[arg-type]
        rows = zip(*(listed(value, steps) for value in args.values()), strict=True)
        found = [self.price(dict(zip(args, row, strict=True)), lane, share) for row in rows]
        provenances = [provenance for _, provenance in found]
        same = len(set(provenances)) == 1
        return [time_ns for time_ns, _ in found], provenances[0] if same else provenances

    def column(
        self, args: Mapping[str, Column], steps: int, lane: str = "gpu", share: float = 1.0
    ) -> tuple[Array, str | list[str]]:
        """:meth:`rows` as an array: shape (steps,)."""
        time_ns, provenance = self.rows(args, steps, lane, share)
        return (np.array(time_ns) if isinstance(time_ns, list) else np.full(steps, time_ns)), provenance


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

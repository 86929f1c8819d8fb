"""The device as kernels see it: where to allocate, how to draw data, how much goes round the caches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

from kvsim.calibrate.device import Device

T = TypeVar("T")


class Bench:
    """Allocates random inputs on one device; the same seed gives the same data."""

    def __init__(self, device: Device, seed: int = 0) -> None:
        self.facts = device
        self.device = torch.device(device.kind)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.busy_until = 0.0  # when the last timing ended, by time.perf_counter
        self._kept: dict[str, tuple[Hashable, Any]] = {}

    @property
    def on_gpu(self) -> bool:
        return bool(self.device.type == "cuda")

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
        """Normal numbers of standard deviation ``scale``."""
        values = torch.randn(
            *shape,
            dtype=torch.float32 if not self.on_gpu else _wide(dtype),
            device=self.device,
            generator=self.generator,
        )
        return (values * scale).to(dtype) if scale != 1.0 else values.to(dtype)

    def randint(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Whole numbers from 0 to ``high`` - 1."""
        return torch.randint(high, shape, device=self.device, generator=self.generator, dtype=dtype)

    def permutation(self, count: int) -> torch.Tensor:
        """0 .. ``count`` - 1, shuffled; int64. For block tables and scattered rows."""
        return torch.randperm(count, device=self.device, generator=self.generator)

    def sets(self, num_bytes: float, most: int = 64) -> int:
        """How many sets of ``num_bytes`` outgrow L2 four times over, so that each launch finds it cold; 1 on a CPU.

        Twice over is not enough: replacement is not strictly in turn, and an eighth of the lines would stay.

        ``most`` bounds it for small inputs: an engine's small inputs are warm or cost nothing.
        """
        if not self.on_gpu or num_bytes <= 0:
            return 1
        return int(max(1, min(most, -(-4 * self.facts.l2_bytes // num_bytes))))

    def keep(self, slot: str, key: Hashable, make: Callable[[], T]) -> T:
        """``make()``, or what it gave last time in ``slot`` if ``key`` is still the same.

        For inputs that neighbouring points share. What was in the slot is dropped before ``make`` runs.
        """
        if slot not in self._kept or self._kept[slot][0] != key:
            self._kept.pop(slot, None)
            self._kept[slot] = (key, make())
        kept: T = self._kept[slot][1]
        return kept

    def drop(self) -> None:
        """Forget everything kept, and hand free memory back to the device."""
        self._kept.clear()
        if self.on_gpu:
            torch.cuda.empty_cache()


def worst(errors: Sequence[float]) -> float:
    """The largest; NaN if one is (Python's max may pass over it)."""
    return float(torch.tensor(errors, dtype=torch.float64).max())


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What random numbers are drawn in: fp8 has no generator of its own."""
    return dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.bfloat16


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected|| in float64; NaN if either holds one."""
    expected = expected.double()
    return float(
        torch.linalg.vector_norm(found.double() - expected)
        / torch.linalg.vector_norm(expected).clamp_min(1e-30)
    )

"""What a kernel of the calibration suite promises: its grid, how it is launched, and what it must give.

A kernel file says three things: at which points it is run (:meth:`Kernel.points`), how one point is launched
(:meth:`Kernel.prepare`), and a float32 or float64 reference that a sample of its result is checked against
before any clock is read (:attr:`Launch.error`). Timing, guards, resuming and writing are the suite's
(:mod:`kvsim.calibrate.suite`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from kvsim.model.spec import ModelSpec

if TYPE_CHECKING:
    from kvsim.calibrate.bench import (
        Bench,
    )  # imports torch; what is known of kernels without it stays at hand

Point = Mapping[str, int | str]
"""One row of a table without its times: text for variants, int for axes; keys as :attr:`Kernel.columns`."""

Size = Literal["full", "quick", "tiny"]
T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """One point, ready to run.

    ``run(i)`` launches the kernel on input set ``i`` of ``sets``: it neither synchronises nor reads the device, so
    that it can be captured in a CUDA graph. Sets let the timing go round more memory than L2 holds, where the
    engine would find the cache cold (``Bench.sets``). The clock of a launch that cannot be captured (``graph``
    false: copies, collectives, disk) includes what it costs the host.
    """

    run: Callable[[int], Any]
    error: Callable[[], float]  # relative error of a sample of set 0's result; NaN fails
    tolerance: float
    num_bytes: float = 0.0  # compulsory traffic of HBM: for the floor
    flops: float = 0.0
    dtype: str = "bfloat16"  # whose peak bounds the FLOPs
    sets: int = 1
    graph: bool = True


@dataclass(frozen=True)
class Shape:
    """A model on ``tensor_parallel`` GPUs: what one of them holds."""

    model: ModelSpec
    tensor_parallel: int

    @property
    def heads(self) -> int:
        return self.model.num_heads // self.tensor_parallel

    @property
    def kv_heads(self) -> int:
        return max(1, self.model.num_kv_heads // self.tensor_parallel)


@dataclass(frozen=True)
class Plan:
    """What a suite covers: models by tensor parallelism, and how densely."""

    size: Size
    shapes: tuple[Shape, ...]
    fp8: bool = True  # the device computes in fp8

    def pick(self, full: T, quick: T, tiny: T) -> T:
        """The one of the three that goes with :attr:`size`; tiny is for a CPU and must take milliseconds."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.size]

    def heads(self, split: bool = True) -> list[tuple[int, int, int]]:
        """(heads, KV heads, head_dim) of one GPU, every combination of the shapes once, most heads first.

        ``split`` false: only of models that one GPU holds whole, where the plan has such.
        """
        shapes = [shape for shape in self.shapes if split or shape.tensor_parallel == 1] or self.shapes
        found = {(shape.heads, shape.kv_heads, shape.model.head_dim) for shape in shapes}
        return sorted(found, reverse=True)


class Kernel(ABC):
    """One table of a profile. State: none but what ``bench.keep`` holds."""

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]  # of the table in its order: variants (text), then axes (int)
    needs: ClassVar[tuple[str, ...]] = ()  # of: gpu, triton, vllm, gpus (two or more), disk
    summary: ClassVar[str]  # a line for people: what is run

    @abstractmethod
    def points(self, plan: Plan) -> Sequence[Point]:
        """The grid, each point once; neighbours share what is dear to make (weights, a KV cache)."""

    @abstractmethod
    def prepare(self, point: Point, bench: Bench) -> Launch:
        """Allocate random inputs for ``point``.

        Raises:
            torch.OutOfMemoryError: the point does not fit; the suite leaves it out and says so.
        """

    def measure(
        self, points: Sequence[Point], bench: Bench
    ) -> tuple[dict[str, Any], Mapping[str, Any]] | None:
        """For a kernel with a clock of its own (collectives, one process a GPU): checked and timed here.

        Gives what the header says of the table, and its columns; None: the suite prepares and times each point.
        """
        return None

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        """Points like those of real steps, off the grid; [] = this kernel is not checked that way."""
        return []

    def source(self, point: Point) -> str:
        """The library kernel that ran, for the profile's header."""
        return self.name


@dataclass(frozen=True)
class Draw:
    """Sizes that real traces made a real engine run: see :mod:`kvsim.calibrate.off_grid`.

    Every list holds whole steps in the order in which they were drawn; equal positions belong together.
    """

    tokens: Sequence[int]  # scheduled in the step
    chunks: Sequence[tuple[int, int]]  # (new, past) of one prefill chunk
    decodes: Sequence[tuple[int, int]]  # (sequences, tokens cached of each, rounded)

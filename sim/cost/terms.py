"""What an engine adds to the kernels of a profile: constants fitted on the running engine."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from kvsim.cost.model import PROVENANCES
from kvsim.errors import CalibrationError
from kvsim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class EngineTerms:
    """Device time that no kernel table shows (launch gaps, clocks under the load of whole steps).

    A step costs ``kernels * factors + step_ns``, and ``stall_ns`` without prefill. A decode-only step runs as one CUDA graph;
    where that was measured, it costs a multiple of the roofline of its linear layers, which stands for these layers and
    all that the engine adds, plus reading the KV. The defaults are neutral: kernels only.
    """

    step_ns: float = 0.0  # per step
    stall_ns: float = (
        0.0  # per step without prefill: mean wait for an engine's thread that its machine held up
    )
    prefill_factor: float = (
        1.0  # on the GPU kernels of a step that carries prefill: whole steps against lone kernels
    )
    mixed_attention_factor: float = 1.0  # on decode attention in a step that carries prefill, on top
    graph_factors: tuple[tuple[int, float], ...] = ()
    """(tokens, factor on the roofline of the linear layers) of decode-only steps of a dense model on one GPU, in
    place of table and step_ns; straight between the points, the nearest beyond them."""
    kv_read_bytes_per_s: float = 0.0
    """Rate at which decode attention reads KV, on each GPU; in place of the profile's table. 0 = as the table has it."""
    uneven_factors: tuple[tuple[int, float], ...] = ()
    """((sequence, KV head) pairs on a GPU, factor on decode attention of two sequences and more): contexts of real
    batches differ, those of the table do not. Straight between the points, the nearest beyond them; () = 1. What it adds
    shrinks as KV heads grow in number beyond the fitted model's (on an H100 32 add a third of what 8 do)."""
    shared_factors: tuple[tuple[int, float], ...] = ()
    """(bytes of a layer's KV on a GPU that several sequences of the decode step read, price of reading them again, in
    first reads): the GPU's L2 cache serves what it holds. As above; () = 1."""
    graph_sizes: tuple[int, ...] = ()
    """Batches that CUDA graphs were captured for: others run in the next larger one, padded. () = every size."""
    provenance: str = "measured"
    fitted: tuple[ModelSpec, EngineTerms] | None = None
    """The model that the engine was fitted on and its terms, where it is another one. With graph_factors a decode-only step of a
    dense model on one GPU then costs its own kernels and what the fitted model's step takes beyond the fitted model's, whatever
    its number of layers (compared with an engine for 32 layers, up to 256 sequences)."""

    def graph_factor(self, tokens: int) -> float:
        """Factor on the roofline of the linear layers of a decode-only step."""
        above = bisect_left(self.graph_sizes, tokens)
        if above < len(self.graph_sizes):
            tokens = self.graph_sizes[above]
        return between(self.graph_factors, tokens)

    def uneven_factor(self, num_seqs: float, kv_heads: int) -> float:
        """Factor on decode attention of ``num_seqs`` sequences, each with so many KV heads on a GPU."""
        if num_seqs <= 1 or not self.uneven_factors:
            return 1.0
        known = min(kv_heads, self.fitted[0].num_kv_heads) if self.fitted else kv_heads
        return 1 + (between(self.uneven_factors, num_seqs * known) - 1) * (known / kv_heads)

    def shared_factor(self, num_bytes: float) -> float:
        """Price of reading KV again that several decodes read, ``num_bytes`` of it in a layer on a GPU, in first reads."""
        if not self.shared_factors:
            return 1.0
        return between(self.shared_factors, num_bytes)

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCES:
            raise CalibrationError(
                f"engine terms: provenance '{self.provenance}' is not one of {', '.join(PROVENANCES)}"
            )
        for name, points in (
            ("graph_factors", self.graph_factors),
            ("uneven_factors", self.uneven_factors),
            ("shared_factors", self.shared_factors),
        ):
            if list(points) != sorted(points):
                raise CalibrationError(
                    f"engine terms: {name} must rise in their first number, found {points}"
                )
        factors = [
            self.prefill_factor,
            self.mixed_attention_factor,
        ]
        factors += [factor for _, factor in (*self.graph_factors, *self.uneven_factors)]
        if any(factor < 0 for _, factor in self.shared_factors):
            raise CalibrationError(f"engine terms: shared_factors must be >= 0, found {self.shared_factors}")
        if min(self.step_ns, self.stall_ns, self.kv_read_bytes_per_s) < 0 or min(factors) <= 0:
            raise CalibrationError(f"engine terms: times must be >= 0 and factors > 0, found {self}")


def between(points: Sequence[tuple[int, float]], at: float) -> float:
    """Straight between the points, the nearest beyond them."""
    i = bisect_right(points, (at, float("inf")))
    if i == 0 or i == len(points):
        return points[max(0, i - 1)][1]
    (low, below), (high, over) = points[i - 1], points[i]
    return below + (over - below) * (at - low) / (high - low)

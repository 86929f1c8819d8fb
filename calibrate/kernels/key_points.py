"""Points of kernels over keys alone: every width of the plan's models, numbers of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvsim.calibrate.kernels.kernel import Point


def key_points(widths: Iterable[tuple[int, int]], tokens: Sequence[int]) -> list[Point]:
    """``widths``: (KV heads, head_dim), as :func:`kvsim.calibrate.kernels.quantise_kv.kv_widths` has them."""
    return [
        {"head_dim": head_dim, "kv_heads": kv_heads, "tokens": count}
        for kv_heads, head_dim in widths
        for count in tokens
    ]


def keys_between(
    widths: Sequence[tuple[int, int]], tokens: Iterable[int], grid: Sequence[int]
) -> list[Point]:
    """Drawn numbers of tokens, no further than ``grid`` goes, on the widths in turn."""
    points: list[Point] = []
    for number, drawn in enumerate(tokens):
        kv_heads, head_dim = widths[number % len(widths)]
        points.append(
            {"head_dim": head_dim, "kv_heads": kv_heads, "tokens": min(max(drawn, grid[0]), grid[-1])}
        )
    return points

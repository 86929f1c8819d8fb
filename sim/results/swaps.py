"""Preemption by swapping in the summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvsim.results.outcome import Outcome
from kvsim.results.statistics import ratio
from kvsim.results.units import duration, number, percent, size


def swaps(outcome: Outcome) -> dict[str, Any]:
    """``swaps`` of summary.json, of all replicas and the whole run; nothing where preempted requests are not swapped.

    ``stalled_ratio``: of the replicas' time, that in which a step that could have run waited for swaps.
    """
    use = outcome.swaps
    if use is None:
        return {}
    return {
        "swaps": {
            "out": use.num_out,
            "in": use.num_in,
            "out_bytes": use.out_bytes,
            "in_bytes": use.in_bytes,
            "spared_bytes": use.spared_bytes,
            "without_room": use.num_without_room,
            "mean_away_s": ratio(use.swapped_ns / 1e9, use.num_in),
            "stalled_s": use.stalled_ns / 1e9,
            "stalled_ratio": ratio(use.stalled_ns, sum(outcome.paid_ns)),
        }
    }


def swap_words(swapped: Mapping[str, Any]) -> list[str]:
    """What a summary's ``swaps`` say, in parts."""
    words = [f"{number(swapped['out'])} out, {size(swapped['out_bytes'])}"]
    if swapped["spared_bytes"]:
        words[0] += f" ({size(swapped['spared_bytes'])} spared by kept copies)"
    words.append(f"{number(swapped['in'])} in, {size(swapped['in_bytes'])}")
    if swapped["in"]:
        words.append(f"away for {duration(swapped['mean_away_s'])} in the mean")
    words.append(f"steps stalled {percent(swapped['stalled_ratio'])}")
    if swapped["without_room"]:
        words.append(f"{number(swapped['without_room'])} computed again, as the tier was full")
    return words

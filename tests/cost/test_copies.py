"""Copies priced by a profile's table: by hand on small tables, and laws on the shipped ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.cost.copies import DIRECTIONS, CopyTimes
from kvsim.cost.profile import Profile, Table, load_profile
from kvsim.errors import CalibrationError


def profile(name: str, rows: list[tuple[str, str, int, int, float]]) -> Profile:
    """Rows: direction, memory (empty: no such column), bytes, pieces or queue depth, microseconds."""
    direction, memory, num_bytes, number, latency_us = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    columns = {
        "direction": direction,
        "num_bytes": num_bytes,
        "pieces" if name == "host_copy" else "queue_depth": number,
        "latency_us": latency_us,
    }
    if memory[0]:
        columns["memory"] = memory
    header = {"name": "tiny", "gpu": {"name": "tiny"}, "tables": {name: {}}}
    return Profile(Path("tiny.yaml"), header, {name: Table(name, columns, "measured")})


HOST = profile(
    "host_copy",
    [
        ("h2d", "pinned", 1000, 1, 2.0), ("h2d", "pinned", 4000, 1, 5.0), ("h2d", "pinned", 4000, 4, 8.0),
        ("h2d", "pinned", 16000, 4, 17.0), ("h2d", "pageable", 1000, 1, 9.0), ("d2h", "pinned", 1000, 1, 3.0),
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    ("num_bytes", "pieces", "expected"),
    [
        (1000, 1, (2000, "measured")),
        (2000, 1, (3000, "measured")),
        (4000, 4, (8000, "measured")),
        (2000, 2, (4000, "measured")),  # pieces of 1000: 2 us for one, 8 for four
        (12000, 4, (14000, "measured")),  # pieces of 3000: a third of the way from 17 back to 8
        (32000, 8, (34000, "derived")),  # as two of the largest
        (16000, 8, (22000, "derived")),  # pieces of 2000: 11 us for four, twice that
        (500, 1, (2000, "extrapolated")),
        (8000, 1, (10000, "extrapolated")),
    ],
)
def test_host_copies_by_hand(num_bytes: int, pieces: int, expected: tuple[int, str]) -> None:
    assert CopyTimes(HOST, "host_copy", "h2d", "pinned")(num_bytes, pieces) == expected


def test_directions_and_memory_are_apart() -> None:
    assert CopyTimes(HOST, "host_copy", "h2d", "pageable")(1000, 1) == (9000, "measured")
    assert CopyTimes(HOST, "host_copy", "d2h", "pinned")(1000, 1) == (3000, "measured")
    with pytest.raises(CalibrationError, match="tiny: table host_copy has no points for pageable d2h"):
        CopyTimes(HOST, "host_copy", "d2h", "pageable")


def test_links_share_a_copy() -> None:
    """Four pieces of 1000 over two links: two of 1000 on each."""
    assert CopyTimes(HOST, "host_copy", "h2d", "pinned", links=2)(4000, 4) == (4000, "measured")
    assert CopyTimes(HOST, "host_copy", "h2d", "pinned", links=2).bytes_per_s == 2 * 16000 / 17e-6


def test_requests_of_a_disk_are_in_flight_together() -> None:
    """``num_bytes`` is of one request there; beyond the deepest queue, batch after batch."""
    disk = profile("disk", [("read", "", 1000, 1, 10.0), ("read", "", 1000, 4, 16.0)])
    times = CopyTimes(disk, "disk", "read")
    assert [times(1000 * n, n) for n in (1, 4, 8)] == [
        (10_000, "measured"), (16_000, "measured"), (32_000, "derived")
    ]  # fmt: skip


def test_what_was_disturbed_takes_as_long_as_what_does_more() -> None:
    slow = profile("disk", [("read", "", 1000, 1, 50.0), ("read", "", 2000, 1, 12.0)])
    assert CopyTimes(slow, "disk", "read")(1000, 1) == (12_000, "measured")


def test_extrapolation_can_be_refused() -> None:
    times = CopyTimes(HOST, "host_copy", "h2d", "pinned", strict=True)
    assert times(32000, 8)[1] == "derived"
    with pytest.raises(
        CalibrationError, match="pieces of 500 bytes would be extrapolated; measured are 1,000 to"
    ):
        times(500, 1)


SHIPPED = [
    CopyTimes(load_profile(f"{gpu}-sxm-measured"), table, direction, memory)
    for gpu in ("h100", "h200")
    for table, memories in (("host_copy", ("pinned", "pageable")), ("disk", ("",)))
    for memory in memories
    for direction in DIRECTIONS[table]
]


@given(
    which=st.integers(0, len(SHIPPED) - 1),
    pieces=st.integers(1, 20_000),
    size=st.integers(1, 2**26),
    more=st.integers(1, 4096),
)
def test_more_pieces_or_larger_ones_never_take_less(which: int, pieces: int, size: int, more: int) -> None:
    times = SHIPPED[which]
    least = times(pieces * size, pieces)[0]
    assert least <= times((pieces + more) * size, pieces + more)[0]
    assert least <= times(pieces * (size + more), pieces)[0]


@given(which=st.integers(0, len(SHIPPED) - 1), pieces=st.integers(1, 20_000), power=st.integers(12, 21))
def test_nothing_is_faster_than_the_fastest_copy_that_was_run(which: int, pieces: int, power: int) -> None:
    times = SHIPPED[which]
    num_bytes = pieces * 2**power
    assert times(num_bytes, pieces)[0] >= 0.999 * num_bytes / times.bytes_per_s * 1e9

"""Quantities with units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.scenario.units import (
    BYTE_UNITS,
    RATE_UNITS,
    TIME_UNITS,
    UnitError,
    format_quantity,
    parse_bytes,
    parse_rate,
    parse_time,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64 GB", 64 * 10**9),
        ("64GB", 64 * 10**9),
        ("64 GiB", 64 * 2**30),
        ("0.5 TB", 5 * 10**11),
        (" 1 kB ", 1000),
        ("1 KB", 1000),
        ("1e3 MB", 10**9),
        ("7 B", 7),
        ("0 B", 0),
        ("12_000 B", 12_000),
    ],
)
def test_bytes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 ns", 1),
        ("80 us", 80_000),
        ("2.5 ms", 2_500_000),
        ("1 s", 10**9),
        ("2 min", 120 * 10**9),
        ("1.5 h", 5400 * 10**9),
    ],
)
def test_times_are_nanoseconds(text: str, value: int) -> None:
    assert parse_time(text) == value


def test_rates() -> None:
    assert parse_rate("50 GB/s") == 50 * 10**9


def test_whole_numbers_stay_exact() -> None:
    assert parse_bytes("9007199254740993 B") == 9007199254740993  # no float holds it


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (64, "64 has no unit; write '64 GB' or '64 GiB'"),
        ("64", "64 has no unit; write '64 GB' or '64 GiB'"),
        (1.5, "1.5 has no unit; write '1.5 GB' or '1.5 GiB'"),
        (
            "64 GHz",
            "unknown unit 'GHz' in '64 GHz'; known here: B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB",
        ),
        ("much", "expected a number and a unit such as '1 GB', found 'much'"),
        (None, "expected a number and a unit such as '1 GB', found None"),
        (True, "expected a number and a unit such as '1 GB', found True"),
        ("-1 GB", "-1 GB is below zero"),
    ],
)
def test_what_cannot_be_read(value: object, line: str) -> None:
    with pytest.raises(UnitError) as error:
        parse_bytes(value)
    assert str(error.value) == line


def test_rate_and_time_propose_their_own_units() -> None:
    with pytest.raises(UnitError) as rate:
        parse_rate(50)
    assert str(rate.value) == "50 has no unit; write '50 GB/s'"
    with pytest.raises(UnitError) as time:
        parse_time(3)
    assert str(time.value) == "3 has no unit; write '3 s' or '3 ms'"


@given(st.integers(0, 2**60), st.sampled_from([BYTE_UNITS, RATE_UNITS, TIME_UNITS]))
def test_written_quantities_read_back(value: int, units: dict[str, int]) -> None:
    parse = {id(BYTE_UNITS): parse_bytes, id(RATE_UNITS): parse_rate, id(TIME_UNITS): parse_time}[id(units)]
    assert parse(format_quantity(value, units)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(64 * 10**9, "64 GB"), (64 * 2**30, "64 GiB"), (0, "0 B"), (1001, "1001 B"), (10**12, "1 TB")],
)
def test_the_shortest_exact_writing(value: int, text: str) -> None:
    assert format_quantity(value, BYTE_UNITS) == text

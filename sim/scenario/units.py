"""Quantities as people write them (``64 GB``, ``50 GB/s``, ``80 us``) and as the simulator wants them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer
from pydantic_core import PydanticCustomError

BYTE_UNITS = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
RATE_UNITS = {f"{unit}/s": factor for unit, factor in BYTE_UNITS.items()}
TIME_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}

_QUANTITY = re.compile(r"\s*([+-]?[\d_]*\.?\d+(?:[eE][+-]?\d+)?)\s*([A-Za-zµ/]*)\s*")


class UnitError(ValueError):
    """A quantity that cannot be read; the message says what to write instead."""


def parse_quantity(value: object, units: dict[str, int], examples: tuple[str, ...]) -> int:
    """``value``, such as "64 GB", as a whole number of the unit whose factor is 1.

    Raises:
        UnitError: no unit, a unit of something else, no number, or below zero.
    """
    proposal = " or ".join(f"'{_number(value)} {unit}'" for unit in examples)
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise UnitError(f"{value} has no unit; write {proposal}")
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise UnitError(f"expected a number and a unit such as '1 {examples[0]}', found {value!r}")
    number, unit = match.groups()
    if not unit:
        raise UnitError(f"{number} has no unit; write {proposal}")
    if unit not in units:
        raise UnitError(f"unknown unit '{unit}' in '{value}'; known here: {', '.join(units)}")
    if float(number) < 0:
        raise UnitError(f"{value} is below zero")
    exact = int(number) * units[unit] if number.lstrip("+").isdigit() else round(float(number) * units[unit])
    return exact


def _number(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def parse_bytes(value: object) -> int:
    """Bytes of "64 GB" (10^9) or "64 GiB" (2^30)."""
    return parse_quantity(value, BYTE_UNITS, ("GB", "GiB"))


def parse_rate(value: object) -> int:
    """Bytes per second of "50 GB/s"."""
    return parse_quantity(value, RATE_UNITS, ("GB/s",))


def parse_time(value: object) -> int:
    """Nanoseconds of "80 us" or "2 h"."""
    return parse_quantity(value, TIME_UNITS, ("s", "ms"))


def format_quantity(value: int, units: dict[str, int]) -> str:
    """The shortest exact writing: 64000000000 bytes are "64 GB". Parses back to the same number."""
    if value == 0:
        return f"0 {next(iter(units))}"
    exact = [
        (value // factor, unit) for unit, factor in units.items() if value % factor == 0 and unit != "KB"
    ]
    number, unit = min(exact, key=lambda pair: (len(str(pair[0])), len(pair[1])))
    return f"{number} {unit}"


def _validator(parse: Any, word: str | None = None) -> BeforeValidator:
    """``word`` is taken as it is."""

    def validate(value: object) -> int | str:
        try:
            return word if word is not None and value == word else int(parse(value))
        except UnitError as error:
            raise PydanticCustomError("unit", "{text}", {"text": str(error)}) from None

    return BeforeValidator(validate)


def _serializer(units: dict[str, int]) -> PlainSerializer:
    return PlainSerializer(
        lambda value: value if isinstance(value, str) else format_quantity(value, units), return_type=str
    )


ByteSize = Annotated[int, _validator(parse_bytes), _serializer(BYTE_UNITS)]
BytesPerSecond = Annotated[int, _validator(parse_rate), _serializer(RATE_UNITS)]
Nanoseconds = Annotated[int, _validator(parse_time), _serializer(TIME_UNITS)]
NanosecondsOrAuto = Annotated[int | Literal["auto"], _validator(parse_time, "auto"), _serializer(TIME_UNITS)]

"""What ``--set`` means in a study: an override with several values is an axis of the grid."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvsim.errors import ScenarioError

MAX_POINTS = 100_000

_RANGE = re.compile(
    r"\s*([+-]?[\d.]*\d(?:[eE][+-]?\d+)?)\s*([A-Za-z/]*?)\s*\.\.\s*"
    r"([+-]?[\d.]*?\d(?:[eE][+-]?\d+)?)\s*((?!log\s*$)[A-Za-z/]*?)(?:\s*x\s*(\d+))?(\s+log)?\s*"
)
_OPEN_RANGE = re.compile(r"\s*(?:[\d.]*\d\s*\w*\s*\.\.[\s\w]*|\.\.\s*\d[\d.]*[\s\w]*)")
_CLOSING = {"[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the scenario and its values, as YAML text; one value is an override of every point."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A range of numbers, as ``A..B`` says it."""

    key: str
    text: str
    first: float
    last: float
    unit: str
    count: int | None  # of values, where the text says how many
    log: bool  # evenly spaced in the logarithm
    whole: bool  # written as whole numbers, without a unit

    def value(self, number: float) -> str:
        """``number`` as YAML text with the span's unit."""
        return f"{_plain(number)} {self.unit}".strip()


def parse_axes(settings: Sequence[str]) -> list[Axis]:
    """The axes that ``--set`` gave, in that order: ``KEY=A..B``, ``KEY=A..BxN``, ``KEY=A..BxN log`` or ``KEY=V1,V2,...``.

    ``A..B`` are all whole numbers from A to B; ``xN`` are N evenly spaced values, in which A takes the unit of B
    if it has none; ``log`` spaces them evenly in the logarithm. Commas in brackets or quotes do not separate.

    Raises:
        ScenarioError: no value, a range that runs backwards, a key or a value given twice, or nothing varies.
    """
    axes = read_axes(settings)
    if not any(len(axis.values) > 1 for axis in axes):
        raise ScenarioError(
            "the grid is empty: no --set has more than one value; give one such as --set cluster.replicas=1..4"
        )
    return axes


def read_axes(settings: Sequence[str]) -> list[Axis]:
    """As :func:`parse_axes`, where nothing needs to vary."""
    axes = [_axis(setting) for setting in settings]
    check_keys([axis.key for axis in axes])
    size = grid_size(axes)
    if size > MAX_POINTS:
        raise ScenarioError(f"the grid has {size:,} points; give fewer values, {MAX_POINTS:,} points at most")
    return axes


def grid_size(axes: Sequence[Axis]) -> int:
    size = 1
    for axis in axes:
        size *= len(axis.values)
    return size


def check_keys(keys: Sequence[str]) -> None:
    """Raises:
    ScenarioError: a key is given twice.
    """
    for key in keys:
        if keys.count(key) > 1:
            raise ScenarioError(
                f"--set {key}: given twice; list its values in one --set, separated by commas"
            )


def parse_setting(setting: str) -> Span | Axis:
    """One ``--set``: a range, or a list of values.

    Raises:
        ScenarioError: as :func:`parse_axes`.
    """
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ScenarioError(f"--set {setting}: expected KEY=A..B or KEY=V1,V2, such as cluster.replicas=1..4")
    match = _RANGE.fullmatch(text)
    if match is not None:
        return _span(key, text.strip(), match)
    if _OPEN_RANGE.fullmatch(text):
        raise ScenarioError(
            f"--set {key}: '{text.strip()}' is no range; give both ends, such as 1..4 or 0..512 GB x5"
        )
    return _listed(key, text, [part.strip() for part in _split(text)])


def _axis(setting: str) -> Axis:
    parsed = parse_setting(setting)
    return parsed if isinstance(parsed, Axis) else spaced(parsed)


def _listed(key: str, text: str, values: list[str]) -> Axis:
    if not all(values):
        found = f"an empty value in '{text.strip()}'" if text.strip() else "no value"
        raise ScenarioError(f"--set {key}: {found}; give a range A..B or values separated by commas")
    for value in values:
        if values.count(value) > 1:
            raise ScenarioError(f"--set {key}: {value} is given twice")
    return Axis(key, tuple(values))


def _span(key: str, text: str, match: re.Match[str]) -> Span:
    first, unit_of_first, last, unit, count, log = match.groups()
    if unit_of_first not in ("", unit):
        raise ScenarioError(f"--set {key}: {text}: both ends of a range need the same unit")
    try:
        start, end = float(first), float(last)
    except ValueError:
        raise ScenarioError(f"--set {key}: {text}: the ends of a range are numbers") from None
    if end <= start:
        raise ScenarioError(f"--set {key}: {text} is an empty range; the larger end comes last")
    if log and start <= 0:
        raise ScenarioError(f"--set {key}: {text}: {_plain(start)} has no logarithm; begin above 0")
    number = None if count is None else int(count)
    if number is not None and not 2 <= number <= MAX_POINTS:
        raise ScenarioError(f"--set {key}: {text}: {number:,} values; give 2 to {MAX_POINTS:,}")
    whole = not unit and first.lstrip("+-").isdigit() and last.lstrip("+-").isdigit()
    return Span(key, text, start, end, unit, number, bool(log), whole)


def spaced(span: Span) -> Axis:
    """The values of a grid along ``span``.

    Raises:
        ScenarioError: nothing says how many.
    """
    number, first, last = span.count, span.first, span.last
    if number is None:
        if span.unit or span.log or first != int(first) or last != int(last):
            raise ScenarioError(
                f"--set {span.key}: {span.text}: say how many values, such as "
                f"{span.text.removesuffix('log').strip()}x5{' log' if span.log else ''}; "
                "only whole numbers without a unit go one by one"
            )
        number = int(last - first) + 1
        if number > MAX_POINTS:
            raise ScenarioError(f"--set {span.key}: {span.text}: {number:,} values; give 2 to {MAX_POINTS:,}")
    shares = [i / (number - 1) for i in range(number)]
    if span.log:
        values = [_rounded(first * (last / first) ** share) for share in shares]
    else:
        values = [first + (last - first) * share for share in shares]
    return Axis(span.key, tuple(span.value(value) for value in values))


def _rounded(value: float) -> float:
    """To six significant digits: powers do not come out even."""
    return round(value, 5 - math.floor(math.log10(abs(value)))) if value else 0.0


def _plain(value: float) -> str:
    """``value`` without the last digits, in which rounding shows: 0.30000000000000004 is 0.3."""
    value = round(value, 12)
    return str(int(value)) if value == int(value) else repr(value)


def _split(text: str) -> Iterator[str]:
    """Parts between the commas that stand in no brackets and no quotes."""
    start = 0
    open_until: list[str] = []
    for place, letter in enumerate(text):
        if open_until and letter == open_until[-1]:
            open_until.pop()
        elif open_until and open_until[-1] in "'\"":
            continue
        elif letter in _CLOSING or letter in "'\"":
            open_until.append(_CLOSING.get(letter, letter))
        elif letter == "," and not open_until:
            yield text[start:place]
            start = place + 1
    yield text[start:]
